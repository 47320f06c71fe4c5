"""The commands of docs/executorch.md, run one after the other as they stand there, on two tiny releases."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from autoglm.model.checkpoint import write_release
from autoglm.releases import HealthCheck, Manifest
from tiny_model import TINY, random_state, tokenizer_text


def shown_commands(page: Path) -> list[str]:
    """The lines after a prompt in the page's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_shown_commands_export_patch_and_fill(project_root: Path, tmp_path: Path) -> None:
    """They make the environment, export a release, fill the next one's weights in, and make the patch."""
    for version, seed in (("v1.2", 1), ("v1.3", 2)):
        write_release(
            tmp_path / "runs" / "releases" / version, config=TINY, tokenizer=tokenizer_text(),
            state=random_state(seed), health=HealthCheck(()), model="tiny", variant="int8", name="tiny",
            version=version, counter=seed,
        )  # fmt: skip
    script = project_root / "scripts" / "executorch_env.sh"
    subprocess.run(
        ["sh", str(script), str(project_root / "build" / "executorch"), sys.executable], check=True
    )
    for name in ("scripts", "build"):
        (tmp_path / name).symlink_to(project_root / name)
    autoglm = tmp_path / "bin" / "autoglm"
    autoglm.parent.mkdir()
    autoglm.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m autoglm.cli "$@"\n')
    autoglm.chmod(0o755)
    environment = os.environ | {"PATH": f"{autoglm.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    lines = shown_commands(project_root / "docs" / "executorch.md")
    for line in lines:
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert len(lines) >= 4
    assert Manifest.read(tmp_path / "exported" / "v1.3").version == "v1.3"
    assert (tmp_path / "v1.3-executorch.wpatch").stat().st_size > 0
