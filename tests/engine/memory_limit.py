"""Update a model of 450 MB in a process that may hold one and a half of it; prints what happened as JSON.

Run as a program of its own: memory_limit.py WORK
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autoglm.device import room
from autoglm.engine import Engine, GenerationRequest, devices
from autoglm.engine.release import Placement, load_resident
from autoglm.errors import EngineError, OutOfMemoryError
from autoglm.model import step
from autoglm.model.checkpoint import write_release
from autoglm.model.network import PhoneModel
from autoglm.model.prompt import Message
from autoglm.releases import HealthCheck, HealthPrompt
from tiny_model import TINY, tokenizer_text

CONFIG = replace(
    TINY, name="large", width=512, num_layers=36, num_heads=8, num_kv_heads=4, head_dim=64, ffn_width=1536
)
NUM_CALLERS = 4
devices.MIN_WEIGHTS = 1 << 60
step.pays = lambda _: False  # a large model is wanted here: its weights are multiplied out


def vm_data() -> int:
    """Return the private writable memory of this process, which RLIMIT_DATA bounds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    return int(line.split()[1]) * 1024


def write(directory: Path, version: str, counter: int, expect: str = "") -> Path:
    """Write a release of random weights."""
    torch.manual_seed(counter)
    state = {
        name: torch.randn_like(tensor) * 0.02 if tensor.dim() > 1 else tensor.clone()
        for name, tensor in PhoneModel(CONFIG).state_dict().items()
    }
    prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect=expect, max_tokens=4)
    names: dict[str, Any] = {"model": "autoglm-phone-9b", "variant": "large", "name": "large"}
    names |= {"version": version, "counter": counter}
    health = HealthCheck((prompt,))
    text = tokenizer_text()
    write_release(
        directory,
        config=CONFIG,
        tokenizer=text,
        state=state,
        health=health,
        **names,
    )
    return directory


class Callers:
    """Threads that ask one question each."""

    def __init__(self, engine: Engine) -> None:
        self.answers: list[Any] = []
        self._engine = engine
        self._submitted = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(NUM_CALLERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        request = GenerationRequest([Message("user", f"question {number}")], max_tokens=4)
        try:
            generation = self._engine.submit(request)
            self._submitted.release()
            self.answers.append(generation.result(300).finished.release)
        except Exception as error:  # noqa: BLE001 - counted as lost
            self.answers.append(repr(error))

    def wait_submitted(self) -> None:
        for _ in self._threads:
            assert self._submitted.acquire(timeout=300)

    def join(self) -> list[Any]:
        for thread in self._threads:
            thread.join(300)
        return self.answers


def in_child(action: Any) -> Any:
    """Run ``action`` in a child, so that what it used is gone, and return nothing."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(work: Path) -> None:
    torch.set_num_threads(1)
    threading.stack_size(512 << 10)  # the limit counts stacks in full, however little of them is used
    old, new, bad = work / "old", work / "new", work / "bad"
    in_child(lambda: (write(old, "v1.2", 12), write(new, "v1.3", 13), write(bad, "v1.4", 14, "never said")))
    placement = Placement(max_batch=2, max_context=64)
    base = vm_data()
    with torch.device("meta"):
        model = sum(parameter.numel() for parameter in PhoneModel(CONFIG).parameters()) * 4
    limit = base + model * 3 // 2
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    said: dict[str, Any] = {"model_bytes": model, "base_bytes": base, "limit_bytes": limit, "beside": []}
    answered: dict[str, list[Any]] = {}
    with Engine.load(old, devices="cpu", threads=1, max_batch=2, max_context=64) as engine:
        try:
            engine.stage(new)
        except OutOfMemoryError:
            said["beside"].append("OutOfMemoryError")
        before = Callers(engine)
        before.wait_submitted()
        loaded = room.load(engine, new, old, "auto")
        staged, said["good_mode"] = loaded.handle, loaded.mode
        answered["before"] = before.join()
        during = Callers(engine)
        assert engine.self_test(staged).ok
        said["gap_s"] = engine.swap(staged).pause_s
        answered["during"] = during.join()
        loaded = room.load(engine, bad, new, "auto")
        staged, said["bad_mode"] = loaded.handle, loaded.mode
        waiting = Callers(engine)
        report = engine.self_test(staged)
        assert not report.ok
        engine.discard(staged)
        answered["bad"] = waiting.join()
        said["score"] = report.score
        try:  # and not for the sake of the sum: it really is too much
            load_resident(old, placement, beside=engine.active, check_room=False)
        except EngineError as error:
            said["beside"].append(type(error).__name__)
        said["peak_bytes"] = vm_data() - base
    everything = [answer for answers in answered.values() for answer in answers]
    said["lost"] = 3 * NUM_CALLERS - sum(answer in ("v1.2", "v1.3", "v1.4") for answer in everything)
    said["answered_by"] = {name: sorted(set(answers)) for name, answers in answered.items()}
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
