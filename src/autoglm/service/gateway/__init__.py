"""A gateway to vLLM servers, in the shape of the engine: submit, stage, self-test, swap, roll back.

The service, its limits, its API and the device SDK above it do not know which of the two they use. What the
gateway adds to vLLM: a request is computed by one release from its first token to its last, a release that
fails its self-test answers nobody, and the release before it can be had back.

It does not know of hubs. What a vLLM server cannot do (other checkpoints than those it knows, two releases at
once in one server, tools that must be called) is said in ``docs/vllm.md``.
"""

from autoglm.service.gateway.gateway import Gateway
from autoglm.service.gateway.opening import open_gateway

__all__ = ["Gateway", "open_gateway"]
