"""Run a whole service in this process: hub, engine, updater, agent, worker and HTTP server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from autoglm.hub.worker import Worker
from autoglm.service.machine import bind
from autoglm.service.serve import running_parts, write_service_file
from autoglm.service.server import Server, make_server
from autoglm.service.settings import Settings, parse_settings
from autoglm.service.state import ServiceState

TIMEOUT_S = 60


@dataclass
class RunningService:
    """A service that listens.

    Attributes:
        url: its address.
        state: the parts behind it.
        server: what listens.
    """

    url: str
    state: ServiceState
    server: Server

    @property
    def token(self) -> str:
        """The admin token."""
        assert self.state.hub is not None
        return self.state.hub.admin_token

    def build_packages(self) -> None:
        """Do the worker process's work in this process, to the end: nothing then waits for it."""
        assert self.state.hub is not None
        worker = Worker(self.state.hub.config)
        while worker.run_once():
            pass
        worker.close()

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET a path."""
        return requests.get(self.url + path, timeout=TIMEOUT_S, **options)

    def post(self, path: str, body: object = None, **options: Any) -> requests.Response:
        """POST a JSON body, or ``data`` as it is."""
        return requests.post(self.url + path, json=body, timeout=TIMEOUT_S, **options)

    def chat(self, text: str = "hi", **fields: object) -> requests.Response:
        """POST a chat request of one user message."""
        body = {"model": "autoglm-phone-9b", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        return self.post("/v1/chat/completions", body | fields)

    def admin(self, method: str, path: str, **options: Any) -> requests.Response:
        """Call an admin route with the token."""
        headers = {"authorization": f"Bearer {self.token}"}
        return requests.request(
            method, f"{self.url}/v1/admin{path}", headers=headers, timeout=TIMEOUT_S, **options
        )


def tiny_settings(store: Path, directory: Path, **sections: Any) -> Settings:
    """Settings for a service on the tiny model; sections are merged over them."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "model": {"store": str(store), "device": "cpu", "threads": 1, "max_batch": 4},
        "hub": {"worker": False},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return parse_settings(values, where="the test", directory=directory)


@contextmanager
def running_service(settings: Settings, clock: Callable[[], float] = time.time) -> Generator[RunningService]:
    """Run a whole service until the block ends; the clock is the hub's."""
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        state = stack.enter_context(running_parts(settings, clock=clock))
        listening = threading.Event()
        server = make_server(state, listening.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        port = listener.getsockname()[1]
        thread.start()
        assert listening.wait(TIMEOUT_S)
        try:
            scheme = "http" if settings.tls.cert is None else "https"
            url = f"{scheme}://127.0.0.1:{port}"
            write_service_file(settings, url)  # so that the command line finds it
            yield RunningService(url, state, server)
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
