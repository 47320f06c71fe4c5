"""Behind a real nginx: it forwards, and sends packages by itself."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import requests

from autoglm.hub import Claims

TIMEOUT_S = 60
CONFIG = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {service};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
        location /packages/ {{ internal; alias {objects}/; }}
    }}
}}
"""

pytestmark = pytest.mark.needs("nginx")


@pytest.fixture
def behind(tmp_path: Path) -> Generator[Callable[[Any], str]]:
    """Put nginx in front of a service; return the address there."""
    running: list[subprocess.Popen[bytes]] = []

    def start(service: Any) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        directory = tmp_path / "nginx"
        directory.mkdir()
        objects = service.state.settings.data_path / "objects"
        text = CONFIG.format(directory=directory, port=port, service=service.url, objects=objects)
        (directory / "nginx.conf").write_text(text)
        command = [
            shutil.which("nginx") or "nginx",
            "-p",
            str(directory),
            "-c",
            str(directory / "nginx.conf"),
        ]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ))
        pause = threading.Event()
        for _ in range(TIMEOUT_S * 20):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                assert running[-1].poll() is None, (directory / "error.log").read_text()
                pause.wait(0.05)
        raise AssertionError("nginx does not listen")

    yield start
    for process in running:
        process.terminate()
        process.wait(TIMEOUT_S)


def test_nginx_sends_packages_that_the_service_lets_go(
    start_service: Any, behind: Callable[[Any], str]
) -> None:
    """With accel_redirect, who has a link gets the bytes from nginx, in ranges too; others get nothing.

    Whoever reaches the service itself is sent the bytes by the service, and cannot ask nginx for them.
    """
    service = start_service(
        auth={"required": True}, trusted_proxies=["127.0.0.1"], hub={"accel_redirect": "/packages/"}
    )
    front = behind(service)
    token = service.state.hub.issue_token(Claims("device", "one", device_id="d1"))
    headers = {"authorization": f"Bearer {token}"}
    asked = requests.post(
        f"{front}/v1/model/update", json={"device_id": "d1"}, headers=headers, timeout=TIMEOUT_S
    )
    answer = asked.json()
    assert answer["download_url"].startswith(front)
    whole = requests.get(answer["download_url"], timeout=TIMEOUT_S)
    assert hashlib.sha256(whole.content).hexdigest() == answer["sha256"]
    assert "x-accel-redirect" not in whole.headers
    part = requests.get(answer["download_url"], headers={"range": "bytes=100-199"}, timeout=TIMEOUT_S)
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    same = {"range": "bytes=50-", "if-range": whole.headers["etag"]}
    rest = requests.get(answer["download_url"], headers=same, timeout=TIMEOUT_S)
    assert (rest.status_code, rest.content) == (206, whole.content[50:])
    changed = requests.get(answer["download_url"] + "A", timeout=TIMEOUT_S)
    assert (changed.status_code, changed.json()["error"]["code"]) == (403, "E_LINK")
    assert requests.get(f"{front}/packages/{answer['sha256']}", timeout=TIMEOUT_S).status_code == 404
    directly = requests.get(answer["download_url"].replace(front, service.url), timeout=TIMEOUT_S)
    assert directly.content == whole.content


def test_without_a_proxy_the_service_sends_by_itself(start_service: Any) -> None:
    """A caller that is no trusted proxy is never answered with a place that only a proxy can read."""
    service = start_service(trusted_proxies=["10.0.0.1"], hub={"accel_redirect": "/packages/"})
    answer = service.post("/v1/model/update", {"device_id": "d1"}).json()
    content = requests.get(answer["download_url"], timeout=TIMEOUT_S).content
    assert hashlib.sha256(content).hexdigest() == answer["sha256"]
