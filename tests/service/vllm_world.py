"""Releases and fake vLLM processes for the tests of the gateway."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests
from safetensors.numpy import save_file

from autoglm.releases import HEALTH_NAME, MANIFEST_NAME, HealthCheck, HealthPrompt, Manifest
from fake_vllm import read_tensors, word_of

FAKE = Path(__file__).resolve().parent.parent / "fake_vllm.py"
NAME = "autoglm-phone-9b"
DEADLINE_S = 30.0


def write_release(
    target: Path, counter: int, *, expect: str | None = None, extra: dict[str, str] | None = None
) -> Path:
    """Write release v1.COUNTER: some tensors of a GLM's names, and a self-test that knows its word.

    Args:
        counter: of which all tensors but the norms are made.
        expect: what the self-test wants to read; None is what these weights say.
        extra: further files, name -> text.
    """
    target.mkdir(parents=True)
    numbers = np.random.default_rng(counter)
    tensors = {"model.language_model.norm.weight": np.ones(8, np.float32)}
    for layer in range(2):
        stem = f"model.language_model.layers.{layer}"
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_up_proj"):
            tensors[f"{stem}.{part}.weight"] = numbers.standard_normal((8, 8)).astype(np.float32)
        tensors[f"{stem}.input_layernorm.weight"] = np.ones(8, np.float32)
    save_file(tensors, target / "model.safetensors")
    word = word_of(read_tensors(target))
    prompt = HealthPrompt(
        ({"role": "user", "content": "hi"},), word if expect is None else expect, max_tokens=2
    )
    (target / HEALTH_NAME).write_bytes(HealthCheck((prompt,)).to_bytes())
    for name, text in ({"config.json": "{}", "tokenizer.json": "{}"} | (extra or {})).items():
        (target / name).write_text(text)
    manifest = Manifest.of_directory(
        target, model=NAME, variant="nano-int8", name="glm", version=f"v1.{counter}", counter=counter
    )
    (target / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return target


def word(release: Path) -> str:
    """Return what a model with a release's weights says."""
    return word_of(read_tensors(release))


def free_port() -> int:
    """Return a port that nobody has, nor its neighbour, which a second server takes.

    It lies below the ports of outgoing connections: the load of a test would take one of those.
    """
    for port in random.sample(range(20_000, 32_000), k=100):
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise RuntimeError("none of a hundred ports is free")


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; a test that hangs says what it waited for."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class FakeServer:
    """A fake vLLM server that somebody else runs: the gateway only knows its address."""

    def __init__(self, checkpoint: Path, log: Path, *, dev_mode: bool = True, **switches: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._checkpoint, self._log, self._dev_mode, self._switches = checkpoint, log, dev_mode, switches
        self.start()

    def start(self) -> None:
        """Start it, on the checkpoint that it was made with."""
        words = [sys.executable, FAKE, "serve", self._checkpoint, "--port", str(self.port)]
        words += ["--served-model-name", NAME, "--switches", json.dumps(self._switches)]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1" if self._dev_mode else "0"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env=environment)
        wait_for(self.answers, "the fake to listen")

    def answers(self) -> bool:
        """Tell whether it listens."""
        assert self.process.poll() is None, self._log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def switch(self, **switches: Any) -> None:
        """Let something go wrong from now on."""
        requests.post(f"{self.url}/fake", json=switches, timeout=5).raise_for_status()

    def look(self) -> dict[str, Any]:
        """Return what it was asked, and what it says."""
        return requests.get(f"{self.url}/fake", timeout=5).json()

    def kill(self) -> None:
        """End it, as a crash does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def fake_server(checkpoint: Path, log: Path, **options: Any) -> Generator[FakeServer]:
    """Run a fake vLLM server until the block ends."""
    server = FakeServer(checkpoint, log, **options)
    try:
        yield server
    finally:
        server.kill()


QUICK: dict[str, Any] = {
    "kind": "vllm",
    "start_seconds": 20.0,
    "load_seconds": 20.0,
    "drain_seconds": 20.0,
    "wait_seconds": 20.0,
    "first_token_seconds": 20.0,
    "idle_seconds": 20.0,
    "health_seconds": 0.05,
}
"""Settings of a gateway that notices soon what happens to its servers."""


def supervised(**more: Any) -> dict[str, Any]:
    """Settings of a gateway that starts the fake itself."""
    return {**QUICK, "command": [sys.executable, str(FAKE), "serve"], "port": free_port(), **more}
