"""Inference: continuous batching on one thread, and releases that are swapped while requests run.

It does not know of HTTP, of hubs or of the device SDK; the SDK uses an :class:`Engine` by the shape of its
methods.
"""

from autoglm.engine.devices import MemoryPlan, pick_devices, preflight
from autoglm.engine.embedding import EmbeddingBatch
from autoglm.engine.engine import Engine
from autoglm.engine.generation import (
    Completion,
    Event,
    Finished,
    Generation,
    GenerationRequest,
    SharedPrompt,
    TextDelta,
    TokenLogprob,
    Usage,
)
from autoglm.engine.release import Release
from autoglm.engine.reports import EngineStats, Staged, SwapReport
from autoglm.engine.sampling import Sampling
from autoglm.engine.selftest import SelfTestReport
from autoglm.engine.structure import JsonAnswer, Structure, ToolAnswer

__all__ = [
    "Completion",
    "EmbeddingBatch",
    "Engine",
    "EngineStats",
    "Event",
    "Finished",
    "Generation",
    "GenerationRequest",
    "JsonAnswer",
    "MemoryPlan",
    "Release",
    "Sampling",
    "SelfTestReport",
    "SharedPrompt",
    "Staged",
    "Structure",
    "SwapReport",
    "TextDelta",
    "TokenLogprob",
    "ToolAnswer",
    "Usage",
    "pick_devices",
    "preflight",
]
