"""How the next token is chosen."""

from __future__ import annotations

import math

import pytest
import torch

from autoglm.engine.sampling import Sampler, Sampling
from autoglm.errors import EngineError, RequestError

LOGITS = torch.tensor([0.0, 2.0, 1.0, -3.0])


def draw(sampling: Sampling, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(logits).token_id for _ in range(count)]


def test_greedy_takes_the_likeliest() -> None:
    """Temperature 0 is an argmax."""
    assert draw(Sampling(), 3) == [1, 1, 1]


def test_a_tiny_temperature_is_greedy() -> None:
    """A temperature that would divide to infinity still answers."""
    assert draw(Sampling(temperature=1e-300), 3) == [1, 1, 1]


def test_a_seed_repeats_and_another_differs() -> None:
    """The same seed draws the same tokens; a negative seed is a seed too."""
    flat = torch.zeros(64)
    first = draw(Sampling(temperature=1.0, seed=7), 20, flat)
    assert first == draw(Sampling(temperature=1.0, seed=7), 20, flat)
    assert first != draw(Sampling(temperature=1.0, seed=-7), 20, flat)


def test_draws_follow_the_distribution() -> None:
    """Frequencies over many draws are near the softmax probabilities."""
    tokens = draw(Sampling(temperature=1.0, seed=1), 4000)
    wanted = LOGITS.softmax(-1)
    for token in range(4):
        assert tokens.count(token) / 4000 == pytest.approx(float(wanted[token]), abs=0.03)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.6, {1}), (0.8, {1, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, allowed: set[int]) -> None:
    """The nucleus holds just enough tokens to reach the probability (0.66, 0.24, 0.09, 0.00)."""
    tokens = set(draw(Sampling(temperature=1.0, top_p=top_p, seed=3), 3000))
    assert tokens <= allowed
    assert max(allowed - {3}, key=lambda token: -LOGITS[token]) in tokens


def test_top_k_bounds_the_choice() -> None:
    """Only the k likeliest are drawn."""
    assert set(draw(Sampling(temperature=2.0, top_k=2, seed=5), 200)) == {1, 2}


def test_min_p_leaves_out_what_is_far_from_the_likeliest() -> None:
    """Tokens below the share of the likeliest one are never drawn (0.66, 0.24, 0.09, 0.00)."""
    assert set(draw(Sampling(temperature=1.0, min_p=0.2, seed=5), 300)) == {1, 2}
    assert draw(Sampling(temperature=1.0, min_p=1.0, seed=5), 5) == [1] * 5


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    """A positive score is divided, a negative one multiplied, for tokens seen in either."""
    assert draw(Sampling(repetition_penalty=3.0), 3) == [1, 2, 1]
    sampler = Sampler(Sampling(repetition_penalty=3.0), prompt_ids=[1])
    assert sampler.choose(LOGITS).token_id == 2
    negative = torch.tensor([-1.0, -2.0])
    assert Sampler(Sampling(repetition_penalty=3.0), prompt_ids=[0]).choose(negative).token_id == 1


def test_only_allowed_tokens_are_chosen() -> None:
    """A mask binds greedy and sampled choices alike, whatever the scores are."""
    mask = torch.tensor([True, False, False, True])
    for sampling in (Sampling(), Sampling(temperature=2.0, seed=1), Sampling(temperature=1.0, top_p=0.1)):
        assert Sampler(sampling).choose(LOGITS, mask).token_id in (0, 3)


def test_a_frequency_penalty_grows_with_each_occurrence() -> None:
    """Token 1 leads by 1: a penalty of 0.6 lets it lead once more, then gives way to token 2."""
    assert draw(Sampling(frequency_penalty=0.6), 4) == [1, 1, 2, 1]


def test_a_presence_penalty_is_taken_once() -> None:
    """A penalty of 0.6 never lets token 2 catch up by repetition of token 1."""
    assert draw(Sampling(presence_penalty=0.6), 4) == [1, 1, 1, 1]


def test_a_bias_moves_a_token_and_ids_outside_are_ignored() -> None:
    """A bias of 100 wins; an id beyond the vocabulary does nothing."""
    assert draw(Sampling(logit_bias={3: 100.0, 99: 100.0}), 1) == [3]


def test_logprobs_are_those_of_the_softmax() -> None:
    """The chosen token and the likeliest come with their natural log-probabilities."""
    choice = Sampler(Sampling(logprobs=True, top_logprobs=2)).choose(LOGITS)
    wanted = LOGITS.log_softmax(-1)
    assert choice.logprob == pytest.approx(float(wanted[1]))
    assert [token for token, _ in choice.top] == [1, 2]
    assert choice.top[1][1] == pytest.approx(float(wanted[2]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    """A broken model's logits are never sampled from."""
    with pytest.raises(EngineError, match="not finite"):
        Sampler(Sampling()).choose(torch.tensor([0.0, value]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"presence_penalty": 3.0},
        {"frequency_penalty": -2.5},
        {"top_logprobs": 21},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: 1000.0}},
    ],
)
def test_settings_out_of_range_name_their_field(wrong: dict[str, object]) -> None:
    """A wrong value raises RequestError with the field at fault."""
    with pytest.raises(RequestError) as caught:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert caught.value.param in wrong
