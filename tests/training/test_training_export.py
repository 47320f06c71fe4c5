"""ExecuTorch: the exported pair answers as torch does, takes a patched ``.ptd``, and refuses a wrong one.

ExecuTorch lies in an environment of its own, build/executorch, which is made once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm import patch
from autoglm.errors import ConfigError, EngineError, FormatError
from autoglm.model.checkpoint import write_release
from autoglm.model.config import ModelConfig
from autoglm.model.network import PhoneModel
from autoglm.model.weights import load_release
from autoglm.releases import HealthCheck, Manifest
from autoglm.training import export
from autoglm.training.export import DATA_NAME, PROGRAM_NAME, export_release, export_weights
from autoglm.training.probe import PROBE_NAME, Probe, make_probe
from tiny_model import TINY, random_state, tokenizer_text

NARROW = dataclasses.replace(TINY, ffn_width=32)
CONTEXT = 256


def release_of(directory: Path, version: str, seed: int, config: ModelConfig = TINY) -> Path:
    """Write a tiny INT8 release of random weights."""
    if config is TINY:
        state = random_state(seed)
    else:
        torch.manual_seed(seed)
        state = PhoneModel(config).state_dict()
    write_release(
        directory / version, config=config, tokenizer=tokenizer_text(), state=state, health=HealthCheck(()),
        model="tiny", variant="int8", name="tiny", version=version, counter=seed + 1,
    )  # fmt: skip
    return directory / version


STORY = """
import dataclasses, json, sys
from pathlib import Path
import numpy, torch
from PIL import Image
from autoglm.errors import AutoGLMError
from autoglm.model.prompt import AudioPart, ImagePart, Message, TextPart
from autoglm.model.weights import load_release
from autoglm.training.export import export_release, export_weights
from autoglm.training.exported import ExportedModel
from autoglm.training.generate import _greedy

root, command = Path(sys.argv[1]), sys.argv[2]
if command == "export":
    for name in ("v1.2", "v1.3", "narrow"):
        export_release(root / "releases" / name, root / name, context=256)
    print("{}")
    raise SystemExit(0)

def answers(model, name):
    torch_model = load_release(root / "releases" / name)
    sound = numpy.sin(numpy.arange(8000) / 20).astype(numpy.float32) / 4
    picture = Image.fromarray(numpy.arange(768, dtype=numpy.uint8).reshape(16, 16, 3))
    asked = {
        "text": [Message("user", "Who are you?")],
        "long": [Message("user", "a" * 130)],
        "image": [Message("user", [ImagePart(picture), TextPart("what?")])],
        "audio": [Message("user", [AudioPart((sound, 16000))])],
    }
    out = {}
    for kind, messages in asked.items():
        prompt = model.processor.prompt(messages, enable_thinking=False)
        with torch.inference_mode():
            (theirs,) = _greedy(torch_model.model, torch_model.tokenizer, [prompt], 24)
        out[kind] = [model.greedy(prompt, 24), theirs]
    return out

def outcome(**paths):
    try:
        ExportedModel(root / "v1.2", **paths)
    except AutoGLMError as error:
        return [type(error).__name__, str(error)]
    return None

found = {"answers": answers(ExportedModel(root / "v1.2"), "v1.2")}
found["patched"] = answers(ExportedModel(root / "v1.3", data=root / "patched.ptd"), "v1.3")
found["right"] = outcome()
found["other weights"] = outcome(data=root / "v1.3" / "model.ptd")
found["other sizes"] = outcome(data=root / "narrow" / "model.ptd")
found["other program"] = outcome(program=root / "narrow" / "model.pte")
found["torn"] = outcome(data=root / "torn.ptd")
found["missing"] = outcome(data=root / "nothing.ptd")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> tuple[Path, dict[str, Any]]:
    """Export three tiny releases, patch the weights of one into those of another, and run all pairs."""
    root = tmp_path_factory.mktemp("executorch")
    release_of(root / "releases", "v1.2", 1)
    release_of(root / "releases", "v1.3", 2)
    release_of(root / "releases", "narrow", 3, NARROW)
    script = project_root / "scripts" / "executorch_env.sh"
    place = project_root / "build" / "executorch"
    subprocess.run(["sh", str(script), str(place), sys.executable], check=True)
    (root / "story.py").write_text(STORY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(command: str) -> dict[str, Any]:
        python = [str(place / "bin" / "python"), "-W", "ignore", str(root / "story.py"), str(root), command]
        done = subprocess.run(python, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    run("export")
    old, new = root / "v1.2" / DATA_NAME, root / "v1.3" / DATA_NAME
    patch.diff(old, new, root / "update.wpatch")
    patch.apply(old, root / "update.wpatch", root / "patched.ptd")
    (root / "torn.ptd").write_bytes(old.read_bytes()[:5000])
    return root, run("use")


@pytest.mark.parametrize("kind", ["text", "long", "image", "audio"])
def test_the_exported_pair_answers_as_torch_does(story: tuple[Path, dict[str, Any]], kind: str) -> None:
    """Greedy answers to text, long text, a picture and sound are torch's, id by id."""
    mine, theirs = story[1]["answers"][kind]
    assert mine == theirs and len(mine) == 24


@pytest.mark.parametrize("kind", ["text", "long", "image", "audio"])
def test_a_patched_ptd_needs_no_new_export(story: tuple[Path, dict[str, Any]], kind: str) -> None:
    """The old program with weights that a patch made of the old ones answers as the new release does."""
    mine, theirs = story[1]["patched"][kind]
    assert mine == theirs
    assert mine != story[1]["answers"][kind][0]


def test_a_patch_gives_the_very_file(story: tuple[Path, dict[str, Any]]) -> None:
    """The patched weights are the exported ones byte for byte; the programs of both releases are one."""
    root, _ = story
    assert (root / "patched.ptd").read_bytes() == (root / "v1.3" / DATA_NAME).read_bytes()
    assert (root / "v1.2" / PROGRAM_NAME).read_bytes() == (root / "v1.3" / PROGRAM_NAME).read_bytes()


@pytest.mark.parametrize("pair", ["other weights", "other sizes", "other program", "torn", "missing"])
def test_a_wrong_pair_is_refused(story: tuple[Path, dict[str, Any]], pair: str) -> None:
    """Weights of another release, of other sizes, torn or missing: refused before the first answer."""
    assert story[1]["right"] is None
    kind, message = story[1][pair]
    assert kind in ("EngineError", "FormatError"), message
    if pair == "other weights":
        assert kind == "EngineError" and "install them together" in message


def test_a_later_release_is_exported_without_executorch(
    story: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Filling an export with a further release's weights gives the files that exporting it anew gives."""
    root, _ = story
    made = export_weights(root / "releases" / "v1.3", root / "v1.2", tmp_path / "v1.3")
    for path in sorted((root / "v1.3").iterdir()):
        assert (made.directory / path.name).read_bytes() == path.read_bytes(), path.name
    manifest = Manifest.read(made.directory)
    assert (manifest.version, manifest.variant) == ("v1.3", export.VARIANT)
    with pytest.raises(ConfigError, match="export it anew"):
        export_weights(root / "releases" / "narrow", root / "v1.2", tmp_path / "narrow")


def test_without_executorch_the_way_to_it_is_told(tmp_path: Path) -> None:
    """Where it is not installed, an export says which script makes its environment, and leaves nothing."""
    release = release_of(tmp_path / "releases", "v1.2", 1)
    with pytest.raises(ConfigError, match=r"executorch_env\.sh"):
        export_release(release, tmp_path / "out" / "v1.2", context=CONTEXT)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match="the context must be 256 to 256"):
        export_release(release, tmp_path / "out" / "v1.2", context=512)


def test_a_probe_knows_its_model(tmp_path: Path) -> None:
    """A probe read back accepts its own model's numbers, and refuses others and those not finite."""
    model = load_release(release_of(tmp_path / "releases", "v1.2", 1)).model
    probe = make_probe(model, 256)
    (tmp_path / PROBE_NAME).write_bytes(probe.to_bytes())
    assert Probe.read(tmp_path / PROBE_NAME) == probe
    stride = max(1, TINY.vocab_size // len(probe.logits[0]))
    full = [[row[i // stride] for i in range(len(row) * stride)] for row in probe.logits]
    probe.check(lambda ids, prefill: full)
    for wrong in ([[2 * v for v in row] for row in full], [[float("nan")] * len(full[0])] * len(full)):
        with pytest.raises(EngineError, match="output check failed"):
            probe.check(lambda ids, prefill, wrong=wrong: wrong)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"ids": [1], "prefill": 2, "max_tokens": 8, "logits": [[1.0]]}', b"\xff" * 10],
)
def test_a_damaged_probe_is_refused(tmp_path: Path, content: bytes) -> None:
    """What is no probe raises a format error that names the file."""
    (tmp_path / PROBE_NAME).write_bytes(content)
    with pytest.raises(FormatError, match=PROBE_NAME):
        Probe.read(tmp_path / PROBE_NAME)
