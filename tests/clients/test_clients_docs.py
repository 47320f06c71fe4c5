"""The programs in docs/clients.md run as they stand, but for the address."""

from __future__ import annotations

import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from clients.environment import client_python
from story.processes import DEADLINE_SECONDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_runs(program: str, url: str, tmp_path: Path) -> None:
    """It ends well and prints something."""
    assert "http://localhost:8000" in program
    with wave.open(str(tmp_path / "command.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(bytes(32_000))
    python = client_python("litellm") if "import litellm" in program else Path(sys.executable)
    done = subprocess.run(
        [python, "-c", program.replace("http://localhost:8000", url)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        cwd=tmp_path,
        env={"PYTHONUTF8": "1", "PATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
