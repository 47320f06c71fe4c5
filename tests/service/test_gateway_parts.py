"""The gateway's small parts: text out of tags, the check of reloaded weights, up and down, chunks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoglm.engine import GenerationRequest, JsonAnswer, ToolAnswer
from autoglm.errors import BackendError, EngineError, FormatError, OverloadedError, RequestError
from autoglm.model.prompt import Message
from autoglm.model.tools import Tool
from autoglm.releases import canonical_json
from autoglm.service.gateway.asking import Asked
from autoglm.service.gateway.process import Program, Supervised
from autoglm.service.gateway.release import Checkpoints
from autoglm.service.gateway.tags import TagReader
from autoglm.service.gateway.watch import Hysteresis
from autoglm.service.gateway.weights import changed_places, faults, num_placed, place_of
from autoglm.service.gateway.wire import body_of, chunk_of, refusal_of
from fake_vllm import read_tensors
from service.vllm_world import wait_for, write_release

KINDS = {"<think>": "thought", "</think>": "answer", "<answer>": "answer"}


def read(pieces: list[str], stops: tuple[str, ...] = ()) -> dict[str, str]:
    """Push a text in pieces; return what each kind said."""
    reader, said = TagReader(stops), {"thought": "", "answer": ""}
    for piece in pieces:
        for kind, text in reader.push(piece):
            said[kind] += text
    for kind, text in reader.finish():
        said[kind] += text
    return said


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("just text", "", "just text"),
        ("<think>a</think><answer>b</answer>c", "a", "b"),
        ("<think>\na\n</think>\n<answer>\nb</answer>", "a\n", "b"),
        ("<think>a</think>b", "a", "b"),
        ("<think>no end", "no end", ""),
        ("<answer>b", "", "b"),
        ("1 < 2 <thin air> </answers", "", "1 < 2 <thin air> </answers"),
        ("", "", ""),
    ],
)
def test_thought_and_answer_are_told_apart(text: str, thought: str, answer: str) -> None:
    """However the text is cut, down to single characters."""
    for pieces in ([text], list(text), [text[: len(text) // 2], text[len(text) // 2 :]]):
        assert read(pieces) == {"thought": thought, "answer": answer}


def test_a_stop_string_ends_the_answer_and_not_the_thought() -> None:
    """As with the project's own engine, of which it is a promise."""
    text = "<think>stop it</think><answer>now stop it"
    assert read(list(text), ("stop",)) == {"thought": "stop it", "answer": "now "}


@settings(max_examples=3000)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "a", "<", "th", " ", "</", "answer>"])))
def test_no_cut_changes_what_is_read(pieces: list[str]) -> None:
    """The pieces of a stream are the server's accident: what counts are the tags of the whole text."""
    kind, said = "answer", {"thought": "", "answer": ""}
    for part in re.split("(<think>|</think>|<answer>)", "".join(pieces).partition("</answer>")[0]):
        if part in KINDS:
            kind = KINDS[part]
        else:
            said[kind] += part.lstrip()
    assert read(pieces) == said


def sums(directory: Path, old: Path | None = None, kept: str = "") -> dict[str, str]:
    """What a server with two devices would answer; what has ``kept`` in its name is still of ``old``."""
    tensors, before = read_tensors(directory), read_tensors(old or directory)
    chosen = {name: (before if kept and kept in name else tensors)[name] for name in tensors}
    return {
        f"rank{rank}.{name.replace('q_proj', 'qkv_proj')}": hashlib.sha256(content[rank::2]).hexdigest()
        for name, content in chosen.items()
        if "k_proj" not in name
        for rank in (0, 1)
    }


def test_weights_that_were_left_out_or_spoilt_are_found(tmp_path: Path) -> None:
    """Where a tensor changed, a parameter of it must have; where none did, none may."""
    old, new = write_release(tmp_path / "1", 1), write_release(tmp_path / "2", 2)
    places = changed_places(old, new)
    assert places["layers", "0", "self_attn.qkv_proj.weight"]
    assert not places["layers", "0", "input_layernorm.weight"]
    before, after = sums(old), sums(new)
    assert num_placed(places, after) == len(after)
    assert faults(places, before, after) == []
    assert "1 parameters still have" in faults(places, before, sums(new, old, "layers.1.mlp"))[0]
    assert len(faults(places, before, before)) == 1
    spoilt = after | {"rank0.model.language_model.norm.weight": "0" * 64}
    assert "should not" in faults(places, before, spoilt)[0]
    assert faults(places, before, after | {"rank0.more": ""}) == [
        "the server has other parameters than before"
    ]


def test_checkpoints_that_cannot_take_each_others_place_are_refused(tmp_path: Path) -> None:
    """Other tensors, or what is no safetensors file."""
    old, new = write_release(tmp_path / "1", 1), write_release(tmp_path / "2", 2)
    content = (new / "model.safetensors").read_bytes()
    (new / "model.safetensors").write_bytes(content.replace(b"layers.1.mlp", b"layers.9.mlp"))
    with pytest.raises(EngineError, match="different tensors"):
        changed_places(old, new)
    for broken in (b"", b"\xff" * 64, content[:200], (2**40).to_bytes(8, "little") + b"{}"):
        (new / "model.safetensors").write_bytes(broken)
        with pytest.raises((FormatError, EngineError)):
            changed_places(old, new)


def test_names_find_their_places() -> None:
    """Prefixes of ranks and models do not matter, numbers of layers do."""
    assert place_of("tp1/pp0/language_model.model.layers.3.mlp.up_proj.weight") == (
        "layers",
        "3",
        "mlp.gate_up_proj.weight",
    )
    assert place_of("visual.blocks.3.norm1.weight") == ("blocks", "3", "norm1.weight")
    assert place_of("lm_head.weight") == ("", "", "lm_head.weight")


def test_a_release_has_a_directory_of_its_own(tmp_path: Path) -> None:
    """Named by its bytes, verified again when it is found, removed when nobody needs it."""
    checkpoints, source = Checkpoints(tmp_path / "checkpoints", "/there"), write_release(tmp_path / "1", 1)
    release = checkpoints.publish(source)
    assert release.directory.name.endswith(release.manifest_sha256[:16])
    assert checkpoints.path_there(release) == f"/there/{release.directory.name}"
    assert checkpoints.publish(source) == release
    config = release.directory / "config.json"
    config.unlink()
    config.write_text("[]")
    with pytest.raises(Exception, match=r"config\.json"):
        checkpoints.publish(source)
    checkpoints.keep_only()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_release_without_safetensors_is_refused(tmp_path: Path) -> None:
    """vLLM would look for weights in vain."""
    source = write_release(tmp_path / "1", 1)
    (source / "model.safetensors").unlink()
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "model.safetensors"]
    (source / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(FormatError, match="safetensors"):
        Checkpoints(tmp_path / "checkpoints").publish(source)


def test_one_bad_look_is_not_down() -> None:
    """Several in a row are, and several good ones are needed to come back."""
    state = Hysteresis(failures=3, successes=2)
    looks = [False, False, True, False, False, False, True, False, True, True]
    assert [state.look(ok) for ok in looks] == [True] * 5 + [False] * 4 + [True]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'"x"', b"5", b'{"choices": 5}', b'{"choices": [{"delta": 5}]}']
)
def test_a_chunk_that_is_none_is_an_error(data: bytes) -> None:
    """Whatever a server sends, the request ends with an error of ours."""
    with pytest.raises(BackendError):
        chunk_of(data)


def test_a_refusal_becomes_the_right_error() -> None:
    """The client's fault, the load's, or the server's; its text is bounded."""
    assert isinstance(refusal_of(400, b'{"error": {"message": "too long"}}', None), RequestError)
    busy = refusal_of(429, b"", "9")
    assert isinstance(busy, OverloadedError)
    assert busy.retry_after_s == 9
    assert isinstance(refusal_of(500, b"<html>", "x"), BackendError)
    assert len(str(refusal_of(400, b"x" * 10_000, None))) < 1000


def test_structures_are_asked_for_in_vllms_way() -> None:
    """A schema goes as response_format; free tools need nothing; a forced call cannot be had."""
    messages = (Message("user", "hi"),)
    schema = JsonAnswer({"type": "integer"})
    body = body_of(GenerationRequest(messages, structure=schema), "m")
    assert body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    tools = (Tool("tap", "", {}),)
    assert "response_format" not in body_of(GenerationRequest(messages, structure=ToolAnswer(tools)), "m")
    with pytest.raises(RequestError) as caught:
        body_of(GenerationRequest(messages, structure=ToolAnswer(tools, required=True)), "m")
    assert caught.value.param == "tool_choice"


def test_a_server_and_its_workers_end_together(tmp_path: Path) -> None:
    """vLLM's workers are processes of their own, which must not keep the cards."""
    script = "sleep 300 & echo $! > worker; exec sleep 300"
    program = Program(("sh", "-c", f"cd {tmp_path}; {script}"), 1, "m", tmp_path / "log")
    process = Supervised(program)
    process.start("ignored")
    note = tmp_path / "worker"
    wait_for(lambda: note.exists() and note.read_text().strip(), "the worker to begin")
    worker = int(note.read_text())
    process.stop()
    process.stop()
    assert not process.is_running
    state = Path(f"/proc/{worker}/stat")  # whoever inherited it may not have read its end yet
    wait_for(lambda: not state.exists() or " Z " in state.read_text(), "the worker to end")


def test_cancelling_again_does_not_interrupt_the_closing() -> None:
    """A consumer who leaves and the response that ends both cancel: the connection closes all the same."""
    closed: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):  # a connection closes in several turns of the loop
                await asyncio.sleep(0)
            closed.append(True)

    async def leave() -> None:
        asked = Asked("v1.1", "fp", asyncio.get_running_loop())
        asked.run(work())
        for _ in range(4):
            await asyncio.sleep(0)
            asked.cancel()
        for _ in range(8):
            await asyncio.sleep(0)

    asyncio.run(leave())
    assert closed == [True]
