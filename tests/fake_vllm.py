"""A stand-in for ``vllm serve`` that speaks the routes that the gateway uses, as a process of its own.

Its "model" is honest about its weights: every word of an answer is a hash of all tensors that it holds at
that moment, so an answer computed by two releases, or by half of one, shows. On command it fails, hangs,
loads half of the tensors, crashes, or is slow: ``POST /fake {"reload": "half"}``. A checkpoint may hold
``fake.json`` with the same switches, for a release that does harm by itself.

Routes and bodies follow vLLM's sources; nothing here is vLLM's code.

    python fake_vllm.py serve CHECKPOINT --host 127.0.0.1 --port 8001 --served-model-name NAME
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERSION = "0.0-fake"
DEFAULT_LABEL = "default"
DEV_ROUTES = (
    "/pause",
    "/resume",
    "/is_paused",
    "/collective_rpc",
    "/update_weight_version",
    "/weight_info",
    "/weight_checker",
    "/reset_prefix_cache",
)


def read_tensors(checkpoint: Path) -> dict[str, bytes]:
    """Return name -> bytes of all tensors in a checkpoint."""
    tensors: dict[str, bytes] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = content[8 + length + begin : 8 + length + end]
    if not tensors:
        raise FileNotFoundError(f"no weights in {checkpoint}")
    return tensors


def word_of(tensors: dict[str, bytes]) -> str:
    """Return the word that a model with these weights says."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name])
    return f"w{digest.hexdigest()[:12]}"


class Model:
    """The weights, and what goes wrong with them."""

    def __init__(self, checkpoint: Path) -> None:
        self.switches: dict[str, Any] = {}
        self.seen: list[dict[str, Any]] = []
        self.label = DEFAULT_LABEL
        self.root = str(checkpoint)
        self.changed = threading.Condition()
        self.is_paused = self.is_frozen = False
        self.running = 0
        self.tensors: dict[str, bytes] = {}
        self.word = ""
        self.load(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Load in place, as reload_weights does; half of it where that was asked for."""
        if (extra := checkpoint / "fake.json").is_file():
            self.switches |= json.loads(extra.read_text())
        if self.switches.get("load") == "crash":
            os._exit(3)
        tensors = read_tensors(checkpoint)
        names = sorted(tensors)
        if self.switches.get("reload") == "half" and self.tensors:
            names = names[: len(names) // 2]
        self.tensors = self.tensors | {name: tensors[name] for name in names}
        self.word = word_of(self.tensors)

    def checksums(self) -> dict[str, str]:
        """Return the hash of every parameter, as two devices would name them."""
        found: dict[str, str] = {}
        for name, content in self.tensors.items():
            for rank in (0, 1):
                shard = content[rank::2]
                found[f"tp{rank}.{name}"] = hashlib.sha256(shard).hexdigest()
        return found


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    model: Model
    served_name: str
    key: str | None
    has_dev_mode: bool

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        """Answer what only tells."""
        model, path = self.model, urlsplit(self.path).path
        if path == "/health":
            if model.switches.get("health") == "hang":
                time.sleep(60)
            self.answer(503 if model.switches.get("health") == "fail" else 200, {})
        elif path == "/version":
            self.answer(200, {"version": VERSION})
        elif path == "/v1/models":
            if not self.is_allowed():
                return
            self.answer(200, {"object": "list", "data": [{"id": self.served_name, "root": model.root}]})
        elif path == "/fake":
            self.answer(200, {"seen": model.seen, "running": model.running, "word": model.word})
        elif not self.has_dev_mode or path not in DEV_ROUTES or path in model.switches.get("missing", []):
            self.answer(404, {"detail": "Not Found"})
        elif path == "/is_paused":
            self.answer(200, {"is_paused": model.is_paused})
        elif path == "/weight_info":
            self.answer(200, {"weight_version": model.label})
        else:
            self.answer(405, {"detail": "Method Not Allowed"})

    def do_POST(self) -> None:
        """Answer what does something."""
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(content) if content else {}
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == "/fake":
            self.model.switches |= body
            self.answer(200, self.model.switches)
        elif path == "/v1/chat/completions":
            self.model.seen.append(body)
            if self.is_allowed():
                self.chat(body)
        elif not self.has_dev_mode or path not in DEV_ROUTES:
            self.answer(404, {"detail": "Not Found"})
        else:
            self.administer(path, query, body)

    def administer(self, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> None:
        """Answer a development route."""
        model = self.model
        if path == "/pause":
            with model.changed:
                model.is_paused = True
                model.is_frozen = query.get("mode") == ["keep"]
                if query.get("mode") == ["wait"]:
                    model.changed.wait_for(lambda: model.running == 0)
            self.answer(200, {"status": "paused"})
        elif path == "/resume":
            with model.changed:
                model.is_paused = model.is_frozen = False
                model.changed.notify_all()
            self.answer(200, {"status": "resumed"})
        elif path == "/collective_rpc":
            self.reload(body)
        elif path == "/update_weight_version":
            model.label = body["new_version"]
            self.answer(200, {"success": True, "new_version": model.label})
        elif path == "/weight_checker":
            if model.is_paused and model.switches.get("checker") == "unpaused":
                self.answer(409, {"detail": "weight_checker requires an awake, unpaused engine"})
            else:
                self.answer(200, {"checksums": model.checksums()})
        else:
            self.answer(200, {})

    def reload(self, body: dict[str, Any]) -> None:
        """Replace the weights, or do what goes wrong."""
        how = self.model.switches.get("reload")
        if self.model.switches.get("once"):
            self.model.switches["reload"] = None
        if how == "fail":
            self.answer(500, {"error": {"message": "CUDA error: device-side assert triggered"}})
        elif how == "crash":
            os._exit(4)
        elif how == "hang":
            time.sleep(600)
        else:
            self.model.switches["reload"] = how
            self.model.load(Path(body["kwargs"]["weights_path"]))
            if self.model.switches.get("once"):
                self.model.switches["reload"] = None
            self.answer(200, {"results": [None, None]})

    def is_allowed(self) -> bool:
        """Ask for the key under /v1."""
        if self.key is None or self.headers.get("authorization") == f"Bearer {self.key}":
            return True
        self.answer(401, {"error": "Unauthorized"})
        return False

    def chat(self, body: dict[str, Any]) -> None:
        """Stream an answer: one word a token, in the form that a GLM writes."""
        model, how = self.model, self.model.switches.get("chat")
        if body["model"] != self.served_name:
            return self.answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if how == "refuse":
            return self.answer(
                400, {"error": {"message": "This model's maximum context length is 16 tokens"}}
            )
        if how == "busy":
            return self.answer(503, {"error": {"message": "overloaded"}}, {"retry-after": "7"})
        if how == "mute":
            time.sleep(60)
        if how == "drop":
            self.close_connection = True
            return None
        with model.changed:
            model.changed.wait_for(lambda: not model.is_paused)
            model.running += 1
        try:
            self.stream(body)
        finally:
            with model.changed:
                model.running -= 1
                model.changed.notify_all()
        return None

    def stream(self, body: dict[str, Any]) -> None:
        model, how = self.model, self.model.switches.get("chat")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        limit = int(body.get("max_tokens") or 16)
        thinking = body.get("chat_template_kwargs", {}).get("enable_thinking")
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.event(body, {"role": "assistant", "content": ""})
            if thinking:
                for part in ("<thi", "nk>hm</th", "ink><ans", "wer>"):
                    self.event(body, {"content": part})
            if how == "reasoning":
                self.event(body, {"reasoning": "hm"})
            for count in range(1, limit + 1):
                if (
                    how in ("crash_later", "hang_later", "abort_later", "error_later", "cut_later")
                    and count == 4
                ):
                    return self.go_wrong(body, how)
                time.sleep(float(model.switches.get("token_s", 0.0)))
                with model.changed:
                    model.changed.wait_for(lambda: not model.is_frozen)
                self.event(body, {"content": f"{model.word} "}, count)
            if thinking:
                self.event(body, {"content": "</answer>never seen"}, limit)
            self.event(body, {}, limit, model.switches.get("reason", "length"))
            self.write(b"data: [DONE]\n\n")
            self.write(b"")
        return None

    def go_wrong(self, body: dict[str, Any], how: str) -> None:
        """Break an answer in its middle."""
        if how == "crash_later":
            os._exit(5)
        if how == "hang_later":
            time.sleep(60)
        if how == "abort_later":
            self.event(body, {}, 3, "abort")
            self.write(b"data: [DONE]\n\n")
            self.write(b"")
        if how == "error_later":
            self.write(b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n')
            self.write(b"")
        self.close_connection = True

    def event(
        self, body: dict[str, Any], delta: dict[str, Any], tokens: int = 0, reason: str | None = None
    ) -> None:
        prompt = len(body["messages"])
        chunk = {
            "object": "chat.completion.chunk",
            "model": body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens},
        }
        self.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def write(self, content: bytes) -> None:
        """Send one piece of a chunked body; an empty one ends it."""
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """Send a JSON answer."""
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Takes as many connections as come."""

    daemon_threads = True
    request_queue_size = 512


def main() -> None:
    """Load, listen, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--switches", default="{}")
    options = parser.parse_args()
    Handler.model = Model(options.checkpoint)
    Handler.model.switches |= json.loads(options.switches)
    Handler.served_name = options.served_model_name
    Handler.key = os.environ.get("VLLM_API_KEY")
    Handler.has_dev_mode = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    print("loaded", options.checkpoint, Handler.model.word, flush=True)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    sys.exit(main())
