"""Weights swapped under load, over HTTP: every answer is compared with what its release answers alone.

A real service with its patch worker serves a tiny model to clients that never pause: greedy and sampled text,
several choices, a JSON form, pictures, streams and whole answers, some pinned to ``model@version``. Meanwhile
release after release is published, staged and committed through the admin routes, and some are rolled back.
Every second release has the other of two sets of weights, whose answers to every request differ.

    python benchmarks/swap_torture.py [--swaps 100] [--requests 10000] [--clients 16] [--json]

Counted are requests that fail, end early, or are not, to the last character, their release's own answer; and
for each commit how many requests were in flight and how long the engine's thread was held.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from autoglm import patch
from autoglm.model.checkpoint import write_release
from autoglm.model.config import AudioConfig, ImageConfig, ModelConfig, TopKConfig
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import CONTROLS
from autoglm.releases import HealthCheck, HealthPrompt, Manifest

T = TypeVar("T")

MODEL = "autoglm-phone-9b"
MIN_TOKENS = 64
SEEDS = {"even": 12, "odd": 13}
PATIENCE_S = 300.0
TINY = ModelConfig(
    name="tiny", vocab_size=288, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    ffn_width=48, rope_base=100.0, rotary_fraction=0.5, norm_eps=1e-5, post_norm_gain=1.0,
    tie_embeddings=False, max_context=512,
    image=ImageConfig("patches", 8, (), 16, 16, 16, bins=0, x_token=0, y_token=0),
    audio=AudioConfig(16, 8, 3, batch_norm=False, min_tokens=4, max_tokens=50),
    topk=TopKConfig(page=32, keep=4, dense_below=4096),
)  # fmt: skip

Answer = tuple[tuple[str, ...], tuple[str, ...]]
"""Of each choice: its text, and why it ended."""


# The releases


def tokenizer_text() -> str:
    """Return a tokenizer of control tokens and single bytes."""
    names = [*CONTROLS, *sorted(ByteLevel.alphabet())]
    backend = Backend(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    return backend.to_str()


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Return random weights whose output is long: control tokens are never likely."""
    torch.manual_seed(seed)
    state = {
        name: torch.randn_like(tensor) * 0.2 if tensor.dim() > 1 else tensor.clone()
        for name, tensor in PhoneModel(TINY).state_dict().items()
    }
    state["head.weight"][: len(CONTROLS)] = 0.0
    state["head.weight"][len(CONTROLS) + 256 :] = 0.0
    return state


@dataclass(frozen=True)
class Published:
    """A release that is published in the course of the run.

    Attributes:
        version, kind: its name, and which weights it has.
        fingerprint: what its answers are marked with.
        package: the full package.
    """

    version: str
    kind: str
    fingerprint: str
    package: Path


class Press:
    """Makes releases ``r1``, ``r2``, ... with the two sets of weights in turn."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._count = directory, 0
        self._states = {kind: random_state(seed) for kind, seed in SEEDS.items()}

    def make(self) -> Published:
        """Write the next release and its full package."""
        self._count += 1
        version, kind = f"r{self._count}", ("even", "odd")[self._count % 2]
        target = self._directory / version
        prompt = HealthPrompt(({"role": "user", "content": "hi"},), expect="", max_tokens=8)
        write_release(
            target, config=TINY, tokenizer=tokenizer_text(), state=self._states[kind],
            health=HealthCheck((prompt,)), model=MODEL, variant="nano-int8", name="tiny",
            version=version, counter=self._count,
        )  # fmt: skip
        package = self._directory / f"{version}.wpatch"
        patch.diff(None, target, package)
        return Published(version, kind, f"fp_{Manifest.read(target).sha256[:16]}", package)


# The requests


def picture(seed: int) -> str:
    """Return a small picture as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def cases() -> list[dict[str, Any]]:
    """Return the bodies of the requests, without ``model``."""
    form = {"type": "object", "properties": {"text": {"type": "string", "minLength": 60, "maxLength": 60}},
            "required": ["text"], "additionalProperties": False}  # fmt: skip
    schema = {"type": "json_schema", "json_schema": {"name": "form", "schema": form}}
    texts = [_body(f"question number {number}", max_tokens=64 + 4 * number) for number in range(8)]
    long = {"logit_bias": {str(token): -100 for token in range(len(CONTROLS))}}  # no end before the limit
    drawn = [_body(f"tell me {number}", temperature=0.8, seed=number, **long) for number in range(3)]
    several = [_body(f"some choices {number}", n=2, temperature=0.7, seed=7, **long) for number in range(2)]
    forms = [_body("fill the form in", response_format=schema, max_tokens=200)]
    seen = [{"type": "image_url", "image_url": {"url": picture(1)}}, {"type": "text", "text": "what is it?"}]
    return [*texts, *drawn, *several, *forms, _body(seen), _body("all at once", stream=False)]


def _body(content: Any, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 80, "stream": True} | fields
    return body | ({"stream_options": {"include_usage": True}} if body["stream"] else {})


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP.
        version: the release that the header names.
        fingerprints: all that the body names.
        answer: the choices.
        tokens: written, all choices together.
        whole: whether the stream ended as it should.
        text: of a refusal.
    """

    status: int
    version: str = ""
    fingerprints: frozenset[str] = frozenset()
    answer: Answer = ((), ())
    tokens: int = 0
    whole: bool = False
    text: str = ""


class Client:
    """One connection, and requests over it.

    Args:
        url: the service's.
        on_token: called when a token's event has arrived, with the monotonic time.
    """

    def __init__(self, url: str, on_token: Callable[[float, bool], None] = lambda at, first: None) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        self._on_token = on_token

    def ask(self, body: dict[str, Any], model: str = MODEL) -> Reply:
        """Ask, and read the answer to its end."""
        content = json.dumps(body | {"model": model})
        self._connection.request(
            "POST", "/v1/chat/completions", content, {"content-type": "application/json"}
        )
        response = self._connection.getresponse()
        if response.status != 200:
            return Reply(response.status, text=response.read().decode("utf-8", "replace"))
        version = response.headers["x-autoglm-version"]
        bodies = self._streamed(response) if body["stream"] else [json.loads(response.read())]
        return _reply(version, bodies, body["stream"])

    def _streamed(self, response: http.client.HTTPResponse) -> list[dict[str, Any]]:
        bodies: list[dict[str, Any]] = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                self._on_token(time.perf_counter(), not bodies)
                bodies.append(json.loads(line[6:]))
            elif line.startswith(b"data: [DONE]"):
                bodies.append({"done": True})
        return bodies


def _reply(version: str, bodies: list[dict[str, Any]], streamed: bool) -> Reply:
    whole = not streamed or (bool(bodies) and bodies[-1] == {"done": True})
    bodies = [body for body in bodies if "done" not in body]
    texts: Counter[int] = Counter()
    parts: dict[int, str] = {}
    ends: dict[int, str] = {}
    tokens = 0
    for body in bodies:
        if "error" in body:
            return Reply(200, version, text=json.dumps(body), whole=False)
        tokens = (body.get("usage") or {}).get("completion_tokens", tokens)
        for choice in body["choices"]:
            index = choice["index"]
            said = choice.get("delta") or choice.get("message") or {}
            parts[index] = parts.get(index, "") + (said.get("content") or "")
            ends[index] = choice["finish_reason"] or ends.get(index, "")
            texts[index] += 1
    answer = tuple(parts[i] for i in sorted(parts)), tuple(ends[i] for i in sorted(ends))
    return Reply(200, version, frozenset(b["system_fingerprint"] for b in bodies), answer, tokens, whole)


# The service


class Service:
    """``autoglm serve`` as a process of its own, with the patch worker."""

    def __init__(self, directory: Path, first: Published, *, max_batch: int, worker: bool = True) -> None:
        self._directory = directory
        (directory / "store").mkdir(parents=True)
        (directory / "store" / f"{first.version}.wpatch").write_bytes(first.package.read_bytes())
        settings = {
            "host": "127.0.0.1", "port": 0,
            "model": {"store": "store", "device": "cpu", "threads": 1, "max_batch": max_batch},
            "hub": {"worker": worker},
            "update": {"automatic": False, "trial_minutes": 0, "trial_answers": 3},
        }  # fmt: skip
        (directory / "config.yaml").write_text(json.dumps(settings))
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "autoglm.cli", "serve", "--config", str(directory / "config.yaml")],
            stdout=self._log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            self.url = wait_for(self._listening, "the service to listen")
        except BaseException:
            self.stop()
            raise
        self._token = (directory / "data" / "admin.token").read_text().strip()

    def _listening(self) -> str | None:
        text = (self._directory / "log").read_text(errors="replace")
        if self._process.poll() is not None:
            raise SystemExit(f"the service ended:\n{text}")
        match = re.search(r"Server listening on (http://\S+)", text)
        return None if match is None else match.group(1)

    def admin(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Call an admin route; return status and body."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
        try:
            connection.request(method, f"/v1/admin{path}", body, {"authorization": f"Bearer {self._token}"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def resident_mib(self) -> float:
        """Return the process's resident memory."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", text)
        return 0.0 if match is None else int(match.group(1)) / 1024

    def stop(self) -> int:
        """End it in order; return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        finally:
            self._log.close()


@contextmanager
def serving(directory: Path, first: Published, **options: Any) -> Iterator[Service]:
    """Run a service for the length of a block."""
    service = Service(directory, first, **options)
    try:
        yield service
    finally:
        service.stop()


def wait_for(look: Callable[[], T | None], what: str, pause_s: float = 0.02) -> T:
    """Return the first true value of ``look``."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(pause_s)
    return found


def references(directory: Path, releases: list[Published]) -> dict[str, list[Reply]]:
    """Return what each set of weights answers when one request at a time is asked, on its own."""
    found: dict[str, list[Reply]] = {}
    for release in releases:
        with serving(directory / release.kind, release, max_batch=2, worker=False) as service:
            client = Client(service.url)
            found[release.kind] = [client.ask(body) for body in cases()]
    for number, body in enumerate(cases()):
        replies = [found[kind][number] for kind in SEEDS]
        enough = MIN_TOKENS * body.get("n", 1)
        if not all(reply.whole and reply.tokens >= enough for reply in replies):
            raise SystemExit(f"case {number} is too short: {replies}")
        if replies[0].answer == replies[1].answer:
            raise SystemExit(f"case {number} does not tell the releases apart")
    return found


# The torture


@dataclass
class Record:
    """What happened; written by many threads under one lock.

    Attributes:
        done: requests answered rightly, by kind of trouble where they were not.
        examples: the first few troubles.
        gaps: milliseconds between two events of a stream, by what went on.
    """

    done: Counter[str] = field(default_factory=Counter[str])
    examples: list[str] = field(default_factory=list[str])
    gaps: dict[str, list[float]] = field(default_factory=lambda: {"quiet": [], "staging": []})
    pauses_ms: list[float] = field(default_factory=list[float])
    in_flight: list[float] = field(default_factory=list[float])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, detail: str = "") -> None:
        """Count one request."""
        with self.lock:
            self.done[what] += 1
            if detail and len(self.examples) < 10:
                self.examples.append(f"{what}: {detail[:300]}")


class Torture:
    """Clients and swaps against one service."""

    def __init__(self, service: Service, press: Press, first: Published, expected: dict[str, list[Reply]],
                 *, clients: int, seed: int) -> None:  # fmt: skip
        self.record = Record()
        self._service, self._press, self._expected = service, press, expected
        self._releases = {first.version: first}
        self._active, self._previous = first.version, ""
        self._phase, self._stop = "quiet", threading.Event()
        self._bodies = cases()
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(seed + number),), daemon=True)
            for number in range(clients)
        ]

    def run(self, swaps: int, requests: int, told: Callable[[int, int], None]) -> int:
        """Swap and ask until both numbers are reached; return the swaps made."""
        for thread in self._threads:
            thread.start()
        made = 0
        try:
            while made < swaps or self._num_done() < requests:
                if made < swaps and self._num_done() >= requests * made // max(1, swaps):
                    made += self._swap(made)
                else:
                    time.sleep(0.05)
                told(made, self._num_done())
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE_S)
        return made

    def _num_done(self) -> int:
        return sum(self.record.done.values()) - self.record.done["pin gone"]

    def _swap(self, made: int) -> int:
        """Publish, stage and commit one release; roll every fourth back. Return the swaps made."""
        release = self._press.make()
        self._releases[release.version] = release
        status, answer = self._service.admin("POST", "/releases?percent=100", release.package.read_bytes())
        if status != 201:
            raise SystemExit(f"publishing {release.version}: {status} {answer}")
        self._stage(release)
        status, answer = self._service.admin("POST", "/engine/commit")
        if status != 200 or answer["version"] != release.version:
            raise SystemExit(f"committing {release.version}: {status} {answer}")
        self._committed(answer["pause_s"], answer["in_flight"], answer["running"])
        before, self._active, self._previous = self._active, release.version, self._active
        if made % 4 != 3:
            return 1
        target = self._num_done() + 4
        wait_for(lambda: self._num_done() >= target, "answers of the new release")
        status, answer = self._service.admin("POST", "/engine/rollback")
        if status == 200:  # a conflict where the trial is over and nothing is kept
            self._active, self._previous = before, ""
            last = self._service.admin("GET", "/engine")[1]
            self._committed(last["last_swap"]["pause_s"], last["last_swap"]["in_flight"], 0)
        return 1 + (status == 200)

    def _stage(self, release: Published) -> None:
        def staged() -> bool:
            self._phase = "staging"
            status, answer = self._service.admin("POST", "/engine/stage")
            self._phase = "quiet"
            if status not in (200, 409):
                raise SystemExit(f"staging {release.version}: {status} {answer}")
            return status == 200 and answer["result"] == "staged" and answer["version"] == release.version

        wait_for(staged, f"{release.version} to be staged", 0.1)

    def _committed(self, pause_s: float, in_flight: int, running: int) -> None:
        self.record.pauses_ms.append(pause_s * 1e3)
        self.record.in_flight.append(in_flight)

    def _client(self, chance: random.Random) -> None:
        last = 0.0

        def on_token(at: float, first: bool) -> None:
            nonlocal last
            if not first:
                self.record.gaps[self._phase].append((at - last) * 1e3)
            last = at

        client = Client(self._service.url, on_token)
        while not self._stop.is_set():
            number = chance.randrange(len(self._bodies))
            pin = chance.choice(("", "", "", self._active, self._previous))
            try:
                reply = client.ask(self._bodies[number], f"{MODEL}@{pin}" if pin else MODEL)
            except (OSError, http.client.HTTPException) as error:
                self.record.count("failed", repr(error))
                client = Client(self._service.url, on_token)
                continue
            self._judge(number, pin, reply)

    def _judge(self, number: int, pin: str, reply: Reply) -> None:
        if pin and reply.status == 404:
            self.record.count("pin gone")
        elif reply.status != 200:
            self.record.count("failed", f"{reply.status} {reply.text}")
        elif not reply.whole:
            self.record.count("truncated", reply.text)
        else:
            release = self._releases.get(reply.version)
            right = (
                release is not None
                and reply.fingerprints == {release.fingerprint}
                and (not pin or reply.version == pin)
                and reply.answer == self._expected[release.kind][number].answer
            )
            self.record.count("right" if right else "torn", "" if right else repr(reply))


def torture(
    directory: Path, *, swaps: int, requests: int, clients: int, max_batch: int = 8, seed: int = 1,
    told: Callable[[int, int], None] = lambda made, done: None,
) -> dict[str, Any]:  # fmt: skip
    """Run it all; return the figures."""
    (directory / "releases").mkdir(parents=True)
    press = Press(directory / "releases")
    first, second = press.make(), press.make()
    expected = references(directory / "alone", [first, second])
    with serving(directory / "service", first, max_batch=max_batch) as service:
        work = Torture(service, press, first, expected, clients=clients, seed=seed)
        before, started = service.resident_mib(), time.monotonic()
        made = work.run(swaps, requests, told)
        seconds, after = time.monotonic() - started, service.resident_mib()
        packages = service.admin("GET", "/packages")[1]["packages"]
        stats = service.admin("GET", "/engine")[1]["engine"]
        status = service.stop()
    return figures(work.record, made, max_batch) | {
        "seconds": round(seconds, 1),
        "patches_built": sum(row["state"] == "stored" and row["from"] is not None for row in packages),
        "engine_failed": stats["failed"],
        "rss_mib": [round(before, 1), round(after, 1)],
        "exit_status": status,
    }


def figures(record: Record, made: int, max_batch: int) -> dict[str, Any]:
    """Return what was counted and measured; times in milliseconds."""
    quiet, staging = record.gaps["quiet"], record.gaps["staging"]
    busy = sum(count >= max_batch / 2 for count in record.in_flight)
    return {
        "swaps": made,
        "requests": record.done["right"] + record.done["failed"] + record.done["truncated"]
        + record.done["torn"],
        "failed": record.done["failed"],
        "truncated": record.done["truncated"],
        "torn": record.done["torn"],
        "pins_to_releases_gone": record.done["pin gone"],
        "commits_with_half_in_flight": f"{busy} of {len(record.in_flight)}",
        "in_flight_median": statistics.median(record.in_flight) if record.in_flight else 0,
        "pause_ms": _spread(record.pauses_ms),
        "gap_ms": _spread(quiet),
        "gap_while_staging_ms": _spread(staging),
        "staging_p99_ratio": round(_spread(staging).get("p99", 0) / (_spread(quiet).get("p99", 0) or 1), 2),
        "troubles": record.examples,
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    found = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Parse, run, print; exit status 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    last = [0.0]

    def told(made: int, done: int) -> None:
        if time.monotonic() - last[0] > (0.5 if sys.stderr.isatty() else 15):
            last[0] = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{made} of {options.swaps} swaps, {done} requests  ", end=end, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        result = torture(
            Path(scratch), swaps=options.swaps, requests=options.requests, clients=options.clients,
            max_batch=options.max_batch, told=told,
        )  # fmt: skip
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(("| what | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in result.items()))))
    sys.exit(1 if result["failed"] or result["truncated"] or result["torn"] else 0)


if __name__ == "__main__":
    main()
