"""Choose the next token from logits: greedy or sampled, with penalties, log-probabilities and a seed.

What it guarantees: the same logits, settings and seed give the same tokens on every device, whatever else
runs at the same time, because each request draws from its own generator; logits that are not finite are
refused instead of sampled from.

    >>> sampler = Sampler(Sampling(temperature=0.0))
    >>> sampler.choose(torch.tensor([0.1, 2.0, -1.0])).token_id
    1
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from autoglm.errors import EngineError, RequestError

MAX_TOP_LOGPROBS = 20
MIN_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen; checked when made.

    Attributes:
        temperature: 0 (greedy) to 2.
        top_p: sample from the smallest set of tokens that holds this probability, in (0, 1].
        top_k: sample from the this many likeliest tokens; 0 means all.
        min_p: leave out tokens less likely than this share of the likeliest one, 0 to 1.
        presence_penalty: taken once from the logit of each token already generated, -2 to 2.
        frequency_penalty: taken from it once an occurrence, -2 to 2.
        repetition_penalty: the logit of each token of prompt and answer is divided by it when positive, else
            multiplied (CTRL, arXiv:1909.05858); above 0, up to 10.
        logit_bias: added to the logit of a token id, -100 to 100.
        seed: the request's own source of chance; None draws a fresh one.
        logprobs: also report the log-probability of each chosen token.
        top_logprobs: and of this many likeliest tokens, 0 to 20.

    Raises:
        RequestError: a value is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("top_k", self.top_k, 0, 1 << 20)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 1e-2, 10.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must be above 0: use temperature 0 for greedy answers", param="top_p")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken (a tiny temperature would divide by nothing)."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def is_plain(self) -> bool:
        """Whether the choice is a bare argmax, so that a whole batch may be decided at once."""
        adjusted = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.logprobs
        return self.is_greedy and not adjusted and self.repetition_penalty == 1.0


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, not {value:g}", param=name)


@dataclass(frozen=True)
class Choice:
    """The chosen token.

    Attributes:
        token_id: the token.
        logprob: its natural log-probability before temperature and cuts; None unless asked for.
        top: (token id, log-probability) of the likeliest tokens, best first.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The choices of one request, in order: it remembers what was generated and owns its chance.

    Args:
        sampling: how to choose.
        prompt_ids: tokens of the prompt, which a repetition penalty counts too.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        self.sampling = sampling
        self._prompt_ids = frozenset(prompt_ids) if sampling.repetition_penalty != 1.0 else frozenset[int]()
        self._counts: Counter[int] = Counter()
        self._chance = torch.Generator()
        if sampling.seed is None:
            self._chance.seed()
        else:
            self._chance.manual_seed(sampling.seed % (1 << 63))

    def choose(self, logits: Tensor, allowed: Tensor | None = None) -> Choice:
        """Choose from the logits (V,) of one position.

        Args:
            logits: scores of all tokens.
            allowed: which tokens may be chosen (V,) bool; log-probabilities are those without it.

        Raises:
            EngineError: the logits are not finite.
        """
        logits = logits.float()  # (V,)
        if not all_finite(logits).item():
            raise EngineError("the model computed values that are not finite: the release is broken")
        adjusted = self._penalised(logits)
        free = adjusted
        if allowed is not None:
            free = adjusted.masked_fill(~allowed.to(adjusted.device), -torch.inf)
        token_id = int(free.argmax()) if self.sampling.is_greedy else self._draw(free)
        return self._record(token_id, adjusted)

    def accept(self, token_id: int) -> Choice:
        """Record a token that was decided for this request as part of a batch."""
        self._counts[token_id] += 1
        return Choice(token_id)

    def _record(self, token_id: int, logits: Tensor) -> Choice:
        self._counts[token_id] += 1
        if not self.sampling.logprobs:
            return Choice(token_id)
        logprobs = logits.log_softmax(-1)  # (V,)
        best = logprobs.topk(min(self.sampling.top_logprobs, len(logprobs)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Choice(token_id, float(logprobs[token_id]), tuple(pairs))

    def _penalised(self, logits: Tensor) -> Tensor:
        s = self.sampling
        if s.repetition_penalty != 1.0:
            logits = self._discouraged(logits, s.repetition_penalty)
        shifts = {token: float(bias) for token, bias in s.logit_bias.items() if 0 <= token < len(logits)}
        if s.presence_penalty or s.frequency_penalty:
            for token, count in self._counts.items():
                penalty = s.presence_penalty + s.frequency_penalty * count
                shifts[token] = shifts.get(token, 0.0) - penalty
        if not shifts:
            return logits
        where = torch.tensor(list(shifts), device=logits.device)
        amount = torch.tensor(list(shifts.values()), device=logits.device)
        return logits.index_add(0, where, amount)

    def _discouraged(self, logits: Tensor, penalty: float) -> Tensor:
        """Make every token seen so far less likely, or more for a penalty below 1."""
        seen = [token for token in self._prompt_ids.union(self._counts) if token < len(logits)]
        where = torch.tensor(seen, dtype=torch.long, device=logits.device)
        scores = logits[where]
        return logits.index_copy(0, where, torch.where(scores > 0, scores / penalty, scores * penalty))

    def _draw(self, logits: Tensor) -> int:
        """Draw by inverting the cumulative distribution, so that one uniform number decides on any device."""
        probabilities = (logits / self.sampling.temperature).softmax(-1)  # (V,)
        ordered, token_ids = probabilities.sort(descending=True, stable=True)
        kept = self._nucleus(ordered)
        cumulative = ordered[:kept].double().cumsum(-1)  # (kept,)
        point = torch.rand((), generator=self._chance, dtype=torch.float64).item() * float(cumulative[-1])
        index = int(torch.searchsorted(cumulative, point, right=True))
        return int(token_ids[min(index, kept - 1)])

    def _nucleus(self, ordered: Tensor) -> int:
        """Return how many of the descending probabilities (V,) may be drawn; always at least one."""
        kept = self.sampling.top_k or len(ordered)
        if self.sampling.top_p < 1.0:
            before = ordered.double().cumsum(-1) - ordered.double()  # (V,) the mass ahead of each token
            kept = min(kept, int((before < self.sampling.top_p).sum()))
        if self.sampling.min_p:
            kept = min(kept, int((ordered >= self.sampling.min_p * ordered[0]).sum()))
        return max(1, min(kept, len(ordered)))


def all_finite(logits: Tensor) -> Tensor:
    """Tell for each row (..., V) whether every value is finite, by one sum: NaN and infinity survive it."""
    return logits.sum(-1, dtype=torch.float32).isfinite()
