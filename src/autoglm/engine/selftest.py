"""A release's own examination: its health prompts, with expected answers, through the real generation code.

What it guarantees: the examined release runs on its own cache and scheduler, so the live one is not
touched; a release that hangs, breaks, computes NaN or answers wrongly fails, within a bounded time.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from statistics import median

import torch

from autoglm.engine.generation import Completion, GenerationRequest
from autoglm.engine.pace import Pace
from autoglm.engine.release import Resident
from autoglm.engine.scheduler import Limits, Scheduler
from autoglm.engine.sequence import Sequence, WaitingQueue
from autoglm.errors import AutoGLMError, EngineError, HealthError
from autoglm.model.prompt import conversation
from autoglm.releases import HealthCheck, HealthPrompt

# A release without prompts of its own must at least compute; any answer will do.
_PROBE = HealthPrompt(({"role": "user", "content": "Hi"},), expect="", max_tokens=8)

Answer = Callable[[GenerationRequest, float], Completion]


@dataclass(frozen=True)
class SelfTestReport:
    """What came of a self-test.

    Attributes:
        ok: whether the release may serve.
        score: share of the prompts answered as expected.
        first_token_s: median time to the first token.
        tokens_per_s: decoding speed over all prompts; 0 when no answer had two tokens.
        peak_memory_bytes: highest memory use of the process (CPU) or of the devices so far.
        failures: one sentence for each thing wrong.
    """

    ok: bool
    score: float
    first_token_s: float
    tokens_per_s: float
    peak_memory_bytes: int
    failures: tuple[str, ...] = ()


def require_passed(version: str, report: SelfTestReport | None) -> None:
    """Let only a release through that passed its self-test.

    Raises:
        HealthError: it failed, or was not examined (None).
    """
    if report is None:
        raise HealthError(f"{version} has not run its self-test: run it before swapping")
    if not report.ok:
        raise HealthError(f"{version} failed its self-test: {'; '.join(report.failures)}")


def examine(health: HealthCheck, answer: Answer, *, budget_s: float) -> SelfTestReport:
    """Ask every prompt and judge the answers.

    Args:
        health: the prompts and the speed that is enough.
        answer: generates, within the seconds given.
        budget_s: for all prompts together.
    """
    deadline = time.monotonic() + budget_s
    completions: list[Completion] = []
    failures: list[str] = []
    prompts = health.prompts or (_PROBE,)
    num_right = 0
    for number, prompt in enumerate(prompts, start=1):
        try:
            completion = answer(_request(prompt), max(0.0, deadline - time.monotonic()))
        except AutoGLMError as error:
            failures.append(f"prompt {number}: {error}")
            continue
        completions.append(completion)
        if prompt.expect in completion.answer:
            num_right += 1
        else:
            failures.append(f"prompt {number}: {completion.answer[:80]!r}, not {prompt.expect[:80]!r}")
    return _report(health, completions, failures, num_right / len(prompts))


def examine_resident(resident: Resident, *, budget_s: float, pace: Pace | None = None) -> SelfTestReport:
    """Examine a release that serves nobody yet, in the calling thread, one prompt at a time.

    ``pace`` is called after each step, and between two layers of a prompt, so that the live release keeps its
    own; speeds are reported without the rests.
    """
    pace = pace or Pace(lambda: False)
    with _resting_between_layers(resident, pace):
        return examine(resident.release.health, _Examination(resident, pace).answer, budget_s=budget_s)


@contextlib.contextmanager
def _resting_between_layers(resident: Resident, pace: Pace) -> Generator[None]:
    """Call ``pace`` before each block that reads a prompt: the whole of it would hold the live release up."""
    norms = [block.attention_norm for block in resident.release.model.layers]
    hooks = [norm.register_forward_pre_hook(lambda module, given: pace()) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Examination:
    """A scheduler of its own for the release under examination."""

    def __init__(self, resident: Resident, pace: Pace) -> None:
        self._resident, self._pace = resident, pace
        self._waiting = WaitingQueue(1)
        self._scheduler = Scheduler(self._waiting, Limits(max_batch=1), on_end=lambda sequence, ending: None)

    def answer(self, request: GenerationRequest, seconds: float) -> Completion:
        """Generate one answer within ``seconds``."""
        deadline = time.monotonic() + seconds
        sequence = Sequence(request, self._resident)
        self._waiting.put(sequence)
        before_s = first_s = last_s = self._pace.rested_s
        while self._scheduler.has_work:
            if time.monotonic() > deadline:
                self._scheduler.fail_all(EngineError("the self-test's time was over before the answer was"))
                break
            self._scheduler.step()
            last_s = self._pace.rested_s
            first_s = last_s if len(sequence.token_ids) <= 1 else first_s
            self._pace()
        completion = sequence.generation.result(0.0)
        ending = completion.finished
        finished = replace(
            ending,
            first_token_s=ending.first_token_s - (first_s - before_s),
            total_s=ending.total_s - (last_s - before_s),
        )
        return replace(completion, finished=finished)


def _request(prompt: HealthPrompt) -> GenerationRequest:
    return GenerationRequest(conversation(prompt), prompt.enable_thinking, max_tokens=prompt.max_tokens)


def _report(
    health: HealthCheck, completions: list[Completion], failures: list[str], score: float
) -> SelfTestReport:
    endings = [completion.finished for completion in completions]
    decoding_s = sum(ending.total_s - ending.first_token_s for ending in endings)
    num_decoded = sum(max(0, ending.usage.completion_tokens - 1) for ending in endings)
    tokens_per_s = num_decoded / decoding_s if num_decoded and decoding_s > 0 else 0.0
    if num_decoded and tokens_per_s < health.min_tokens_per_s:
        failures = [*failures, f"{tokens_per_s:.1f} tokens/s where {health.min_tokens_per_s:g} are needed"]
    return SelfTestReport(
        ok=not failures,
        score=score,
        first_token_s=median(ending.first_token_s for ending in endings) if endings else 0.0,
        tokens_per_s=tokens_per_s,
        peak_memory_bytes=_peak_memory_bytes(),
        failures=tuple(failures),
    )


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
