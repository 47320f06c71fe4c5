"""Environments of their own for peers whose pins are not ours: made once, under ``build/``."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A library for this very processor, and nothing that is not measured.
_LLAMA_FLAGS = (
    "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"
)


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, made first if need be: ``llama`` or ``transformers``.

    llama.cpp is compiled from the source package on PyPI, which takes some minutes.
    """
    requirements = HERE / f"{peer}-requirements.txt"
    room = ROOT / "build" / "decode" / f"{peer}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    python = room / "bin" / "python"
    if (room / "complete").exists():
        return python
    print(f"making an environment for {peer} in {room} ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(room)], check=True)
    own_build = ["--no-binary", "llama-cpp-python"] if peer == "llama" else []
    command = [str(python), "-m", "pip", "install", "-q", *own_build, "-r", str(requirements)]
    environment = os.environ | {"CMAKE_ARGS": _LLAMA_FLAGS, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    (room / "complete").touch()
    return python
