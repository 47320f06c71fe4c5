"""Where the thought goes: the rules alone, without a model."""

from __future__ import annotations

import pytest

from autoglm.engine import Finished, TextDelta, TokenLogprob, Usage
from autoglm.service.replies import Presenter, Showing, choice_body, logprob_body, usage_body

THOUGHT, MORE = TextDelta("thought", "hm"), TextDelta("thought", "m")
ANSWER, REST = TextDelta("answer", "do("), TextDelta("answer", ")")
END = Finished("stop", Usage(5, 4, 2), "v1.2", 0.0, 0.0)


def shown(showing: Showing, *deltas: TextDelta) -> list[dict[str, str]]:
    presenter = Presenter(showing)
    return [presenter.fields(delta) for delta in deltas]


def test_fields_carry_the_thought_twice_and_the_answer_alone() -> None:
    """Clients read reasoning_content or reasoning; content is the answer."""
    assert shown("fields", THOUGHT, ANSWER) == [
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "do("},
    ]


def test_a_dropped_thought_leaves_no_trace() -> None:
    """Nothing of it is shown."""
    assert shown("dropped", THOUGHT, ANSWER) == [{}, {"content": "do("}]


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        ((THOUGHT, MORE, ANSWER, REST), "<think>hmm</think><answer>do()"),
        ((ANSWER, REST), "<answer>do()"),
        ((THOUGHT,), "<think>hm"),
        ((THOUGHT, ANSWER, MORE, REST), "<think>hm</think><answer>do()"),
    ],
)
def test_inline_tags_open_once_and_nothing_closes_the_answer(
    deltas: tuple[TextDelta, ...], text: str
) -> None:
    """Each part is opened by its tag once; what a model thinks after its answer is not shown."""
    assert "".join(fields.get("content", "") for fields in shown("inline", *deltas)) == text


def test_a_whole_choice_joins_its_events() -> None:
    """A choice is what the stream of the same events would have said."""
    choice = choice_body(1, "fields", [THOUGHT, MORE, ANSWER, REST, END])
    assert choice["index"] == 1
    assert choice["message"]["content"] == "do()"
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "hmm"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None


def test_usage_counts_the_prompt_once_for_all_choices() -> None:
    """Choices share a prompt; their tokens add up."""
    body = usage_body([Usage(5, 4, 2), Usage(5, 6, 1)])
    assert (body["prompt_tokens"], body["completion_tokens"], body["total_tokens"]) == (5, 10, 15)
    assert body["completion_tokens_details"]["reasoning_tokens"] == 3


def test_logprobs_are_always_json() -> None:
    """A token that cannot come has OpenAI's -9999, since JSON knows no infinity."""
    body = logprob_body(TokenLogprob(1, "é", float("-inf"), ((1, "é", -0.5),)))
    assert body["logprob"] == -9999.0
    assert body["bytes"] == [195, 169]
    assert body["top_logprobs"][0]["logprob"] == -0.5
