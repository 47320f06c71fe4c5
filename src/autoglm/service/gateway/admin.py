"""The routes of a vLLM server that replace its weights and say what it holds.

They exist only with ``VLLM_SERVER_DEV_MODE=1`` and ask for no key, so they are called at the private address
of the settings alone. Names and meanings are those of vLLM's sources (in ``vllm/entrypoints``:
``rl/online/api_router.py`` and ``serve/dev/rpc/api_router.py``; in versions before, ``serve/dev/rlhf``):

- ``POST /pause?mode=wait`` ends what is under way and lets nothing begin; ``POST /resume`` undoes it.
- ``POST /collective_rpc`` ``{"method": "reload_weights", "kwargs": {"weights_path": ...}}`` loads in place.
- ``POST /update_weight_version`` sets a label that lives as long as the server; ``GET /weight_info`` tells.
- ``POST /weight_checker`` ``{"action": "checksum"}`` hashes every parameter on the devices.
"""

from __future__ import annotations

import json
from typing import Any, cast

import httpx

from autoglm.errors import BackendError, BackendTimeoutError, ConfigError
from autoglm.service.gateway.wire import reason_of

# What a reload needs; a GET of a route that only takes POST is answered 405, one that is not there 404.
NEEDED = (
    "/pause",
    "/resume",
    "/is_paused",
    "/collective_rpc",
    "/update_weight_version",
    "/weight_info",
    "/weight_checker",
    "/reset_prefix_cache",
)
_CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")
_LOOK_S = 5.0
_MAX_CHECKSUMS = 1_000_000


class AdminClient:
    """Calls one server, from any thread.

    Args:
        url: where its development routes are.
        key: what it asks for under ``/v1``.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_LOOK_S, trust_env=False)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def require_routes(self) -> None:
        """Find out whether this server can be given other weights.

        Raises:
            ConfigError: it lacks routes; the message names them, its version, and what to do.
            BackendError: it was not reached.
        """
        missing = [path for path in NEEDED if self._get(path).status_code == 404]
        if missing:
            raise ConfigError(
                f"the vLLM server at {self.url} (version {self.version()}) lacks {', '.join(missing)}: "
                "start it with VLLM_SERVER_DEV_MODE=1 and a version that has them, or let this service start "
                "it (empty backend.url), which needs none of them"
            )

    def version(self) -> str:
        """Return vLLM's version, ``unknown`` where it does not say.

        Raises:
            BackendError: it was not reached.
        """
        response = self._get("/version")
        body = _json(response) if response.status_code == 200 else {}
        return str(body.get("version", "unknown"))[:64]

    def is_healthy(self) -> bool:
        """Tell whether it answers that it is."""
        try:
            return self._get("/health").status_code == 200
        except BackendError:
            return False

    def served_names(self) -> tuple[str, ...]:
        """Return the names under which it serves its model.

        Raises:
            BackendError: it was not reached, or refuses the key.
        """
        response = self._get("/v1/models")
        body = _succeeded(response, "tell its models")
        entries = cast("list[dict[str, Any]]", body.get("data") or [])
        return tuple(str(entry.get("id")) for entry in entries)

    def label(self) -> str:
        """Return the label of the weights that it holds.

        Raises:
            BackendError: it was not reached, or does not say.
        """
        body = _succeeded(self._get("/weight_info"), "tell the label of its weights")
        return str(body.get("weight_version"))

    def set_label(self, label: str) -> None:
        """Write down what it holds now.

        Raises:
            BackendError: it was not reached, or refuses.
        """
        self._post("/update_weight_version", {"new_version": label})

    def pause(self, seconds: float) -> None:
        """Wait until nothing is under way, and let nothing begin.

        Raises:
            BackendError: it was not reached, refuses, or took longer.
        """
        self._post("/pause?mode=wait&clear_cache=true", None, seconds)

    def resume(self) -> None:
        """Let requests begin again; harmless when they could.

        Raises:
            BackendError: it was not reached, or refuses.
        """
        self._post("/resume", None)

    def reload(self, path: str, seconds: float) -> None:
        """Load the weights of a checkpoint in the place of the present ones, on all its devices.

        Raises:
            BackendError: it was not reached, failed, or took longer: what it holds then is not known.
        """
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}, "timeout": seconds}
        self._post("/collective_rpc", body, seconds)

    def forget_caches(self) -> None:
        """Drop keys, values and encodings that older weights computed; a cache that it does not have is none.

        Raises:
            BackendError: it was not reached, or refuses.
        """
        for path in _CACHES:
            self._post(path, None, missing_is_fine=path != _CACHES[0])

    def checksums(self, seconds: float) -> dict[str, str] | None:
        """Return the SHA-256 of every parameter, by device and name; None while it is paused and so cannot.

        Raises:
            BackendError: it was not reached, failed, or took longer.
        """
        response = self._send("POST", "/weight_checker", {"action": "checksum"}, seconds)
        if response.status_code == 409:
            return None  # some versions compute them only after /resume
        found = _succeeded(response, "compute the checksums of its weights").get("checksums")
        if not isinstance(found, dict) or not 0 < len(cast("dict[str, Any]", found)) <= _MAX_CHECKSUMS:
            raise BackendError(f"{self.url} sent no checksums of its weights")
        return {str(name): str(digest) for name, digest in cast("dict[str, Any]", found).items()}

    def _get(self, path: str) -> httpx.Response:
        return self._send("GET", path, None, _LOOK_S)

    def _post(
        self, path: str, body: object, seconds: float = 60.0, *, missing_is_fine: bool = False
    ) -> dict[str, Any]:
        response = self._send("POST", path, body, seconds)
        if missing_is_fine and response.status_code == 404:
            return {}
        return _succeeded(response, path.partition("?")[0].strip("/"))

    def _send(self, method: str, path: str, body: object, seconds: float) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"content-type": "application/json"}
        limits = httpx.Timeout(seconds, connect=_LOOK_S)
        try:
            return self._client.request(method, path, content=content, headers=headers, timeout=limits)
        except httpx.TimeoutException as error:
            raise BackendTimeoutError(f"{self.url}{path} took longer than {seconds:g} s") from error
        except (httpx.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: the client is closed
            raise BackendError(
                f"{self.url}{path} was not reached: {error or type(error).__name__}"
            ) from error


def _succeeded(response: httpx.Response, doing: str) -> dict[str, Any]:
    body = _json(response)
    if response.status_code != 200:
        raise BackendError(f"{response.url.host}:{response.url.port} failed to {doing}: {reason_of(body)}")
    return body


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return {"error": response.content[:200].decode(errors="replace")}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}
