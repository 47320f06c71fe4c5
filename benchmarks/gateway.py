"""What the vLLM gateway costs, and what each way of changing a release does to answers under way.

    python benchmarks/gateway.py                # about a minute; Markdown tables

vLLM's place is taken by the stand-in of the tests (``tests/fake_vllm.py``), whose every word is a hash of the
weights that said it and whose loading takes milliseconds. So what is measured is the gateway alone: what it
adds to a request, how long a change takes apart from vLLM's own loading, and whether an answer is torn. The
direct request and the one through the gateway run in turns; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from autoglm.engine import GenerationRequest, TextDelta
from autoglm.model.prompt import Message
from autoglm.service.gateway import Gateway, open_gateway
from autoglm.service.settings import parse_settings
from service.vllm_world import NAME, QUICK, FakeServer, fake_server, supervised, wait_for, write_release

HELLO = (Message("user", "hello"),)
TOKENS = 64
CLIENTS = 6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="requests of each kind")
    parser.add_argument("--updates", type=int, default=10, help="changes of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        world = World(Path(folder), stack)
        overhead(world, options.rounds)
        updates(world, options.updates)
        keeping(world, options.updates)


class World:
    """Two releases, servers and gateways."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root, self._stack = root, stack
        self.releases = [write_release(root / str(counter), counter) for counter in (1, 2)]

    def serve(self, stack: ExitStack | None = None, **switches: Any) -> FakeServer:
        """Start a server on the first release."""
        server = fake_server(self.releases[0], self.root / "log", **switches)
        return (stack or self._stack).enter_context(server)

    def connect(self, stack: ExitStack, **backend: Any) -> Gateway:
        """Open a gateway on the first release."""
        values = {"backend": {**QUICK, **backend}}
        settings = parse_settings(values, where="the benchmark", directory=self.root)
        return stack.enter_context(open_gateway(self.releases[0], settings))


def overhead(world: World, rounds: int) -> None:
    """Print what the gateway adds to a streamed answer."""
    with ExitStack() as stack:
        server = world.serve(stack)
        gateway = world.connect(stack, url=[server.url])
        client = stack.enter_context(httpx.Client(trust_env=False))
        direct: list[tuple[float, float]] = []
        through: list[tuple[float, float]] = []
        for _ in range(rounds):
            direct.append(_timed(lambda: _texts_of(client, server.url)))
            through.append(_timed(lambda: _texts_through(gateway)))
    print(f"\n| answer of {TOKENS} tokens | first token, ms | whole, ms |\n|---|--:|--:|")
    for name, times in (("directly", direct), ("through the gateway", through)):
        print(f"| {name} | {_ms(first for first, _ in times)} | {_ms(total for _, total in times)} |")


def updates(world: World, count: int) -> None:
    """Print what a change does under load, in each way."""
    print(f"\n| {count} changes under {CLIENTS} clients | pause, ms | answers | torn | lost |")
    print("|---|--:|--:|--:|--:|")
    for name, open_it in _ways(world).items():
        with ExitStack() as stack:
            gateway = open_it(stack)
            load = Load(gateway)
            pauses = [_update(gateway, world.releases[number % 2]) for number in range(1, count + 1)]
            load.stop()
        print(f"| {name} | {_ms(pauses)} | {load.answers} | {load.torn} | {load.lost} |")


def keeping(world: World, count: int) -> None:
    """Print how many answers vLLM's own mode for freezing requests tears."""
    torn = 0
    with ExitStack() as stack:
        server = world.serve(stack, token_s=0.005)
        client = stack.enter_context(httpx.Client(trust_env=False))
        for number in range(1, count + 1):
            asked = [Direct(server.url) for _ in range(CLIENTS)]
            wait_for(lambda: server.look()["running"] == CLIENTS, "the requests to begin")
            client.post(f"{server.url}/pause?mode=keep&clear_cache=true").raise_for_status()
            path = str(world.releases[number % 2])
            body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            client.post(f"{server.url}/collective_rpc", json=body).raise_for_status()
            client.post(f"{server.url}/resume").raise_for_status()
            torn += sum(direct.is_torn() for direct in asked)
    print(f"\n/pause?mode=keep: {torn} of {count * CLIENTS} answers under way torn")


def _ways(world: World) -> dict[str, Callable[[ExitStack], Gateway]]:
    slow: dict[str, Any] = {"token_s": 0.002}
    switches = ["--switches", json.dumps(slow)]

    def remote(stack: ExitStack, servers: int) -> Gateway:
        return world.connect(stack, url=[world.serve(stack, **slow).url for _ in range(servers)])

    def own(stack: ExitStack, servers: int) -> Gateway:
        return world.connect(stack, **supervised(arguments=switches, servers=servers))

    return {
        "one server, weights reloaded": lambda stack: remote(stack, 1),
        "one server, started again": lambda stack: own(stack, 1),
        "two servers, weights reloaded": lambda stack: remote(stack, 2),
        "two servers, started again": lambda stack: own(stack, 2),
    }


def _update(gateway: Gateway, directory: Path) -> float:
    staged = gateway.stage(directory)
    report = gateway.self_test(staged)
    if not report.ok:
        raise SystemExit(f"the self-test failed: {report.failures}")
    pause_s = gateway.swap(staged).pause_s
    gateway.release_previous()
    return pause_s


class Load:
    """Clients that ask without end."""

    def __init__(self, gateway: Gateway) -> None:
        self.answers = self.torn = self.lost = 0
        self._gateway, self._stop, self._lock = gateway, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._go) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.answers >= CLIENTS, "the first answers")

    def stop(self) -> None:
        """Let the last answers come."""
        count = self.answers
        wait_for(lambda: self.answers >= count + CLIENTS, "the last answers")
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _go(self) -> None:
        while not self._stop.is_set():
            words = "".join(_texts_through(self._gateway)).split()
            with self._lock:
                self.answers += 1
                self.torn += len(set(words)) != 1
                self.lost += len(words) != TOKENS


class Direct:
    """A request straight to a server, on a thread of its own."""

    def __init__(self, url: str) -> None:
        self._words: list[str] = []
        self._thread = threading.Thread(target=self._go, args=(url,))
        self._thread.start()

    def _go(self, url: str) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            self._words = "".join(_texts_of(client, url)).split()

    def is_torn(self) -> bool:
        """Tell whether more than one release wrote the answer."""
        self._thread.join()
        return len(set(self._words)) > 1


def _texts_through(gateway: Gateway) -> Any:
    request = GenerationRequest(HELLO, max_tokens=TOKENS)
    return (event.text for event in gateway.submit(request) if isinstance(event, TextDelta))


def _texts_of(client: httpx.Client, url: str) -> Any:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": TOKENS,
        "stream": True,
    }
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if text:
                    yield text


def _timed(texts: Callable[[], Any]) -> tuple[float, float]:
    began = time.perf_counter()
    stream = iter(texts())
    next(stream)
    first = time.perf_counter() - began
    for _ in stream:
        pass
    return first, time.perf_counter() - began


def _ms(seconds: Any) -> str:
    return f"{median(seconds) * 1e3:.1f}"


if __name__ == "__main__":
    main()
