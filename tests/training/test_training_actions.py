"""The action grammar: exactly its own sentences, and a split of answers that no training set crosses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoglm.training.actions import (
    ACTION_LABELS,
    AGENT_SYSTEM_PROMPT,
    ALL_LABELS,
    APPS,
    MAX_ACTION_CHARS,
    NEW_APPS,
    app_action,
    finish_action,
    is_held_out,
    is_valid_action,
    parse_action,
    tap_action,
)

PINNED = {
    "Launch": {"地图", "短信", "Music", "Photos", "Spotify", "新闻", "Weather", "Phone", "Radio"},
    "Close": {
        "支付宝",
        "音乐",
        "时钟",
        "Wallet",
        "哔哩哔哩",
        "备忘录",
        "阅读",
        "Recorder",
        "Health",
        "Reminders",
    },
}


@pytest.mark.parametrize(
    "text",
    [
        'do(action="Tap", element=[0,999])',
        'do(action="Tap", element=[12, 34], message="pay")',
        'do(action="Launch", app="微信")',
        'do(action="Swipe", start=[1,2], end=[3,4])',
        'do(action="Back")',
        r'do(action="Type", text="a \"quoted\" word\nand a line")',
        'finish(message="")',
    ],
)
def test_actions_of_the_grammar_are_valid(text: str) -> None:
    """Every form the grammar knows is accepted."""
    assert is_valid_action(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "do()",
        'do(action="Tap")',
        'do(action="Tap", element=[1000,1])',
        'do(action="Tap", element=[-1,1])',
        'do(action="Tap", element=[1.5,1])',
        'do(action="Tap", element=[1,2,3])',
        'do(action="Tap", element="1,2")',
        'do(action="Tap", element=[1,2]',
        'do(action="Tap", element=[1,2]) ',
        'I will do(action="Tap", element=[1,2])',
        'do(action="Tap", element=[1,2], element=[3,4])',
        'do(action="Tap", message="x", element=[1,2])',
        'do(action="Tap", element=[1,2], other="x")',
        'do(action="Fly", app="x")',
        'do(action="Launch", app=微信)',
        'do(action="Launch", app="a"b")',
        'do(action="Launch", app=[1,2])',
        'do(action="Back", app="x")',
        "do(action='Back')",
        'do(action="Back")\n',
        'finish("done")',
        'finish(message="a\nb")',
        'finish(message="done\\")',
        '__import__("os").system("true")',
        f'finish(message="{"x" * MAX_ACTION_CHARS}")',
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """Near misses, hostile text and text without end are no actions."""
    assert not is_valid_action(text)


@given(st.text(max_size=200))
def test_every_message_survives_the_grammar(message: str) -> None:
    """A message that is written into an action is read back as it was, whatever quotes it holds."""
    message = message.replace("\r", "")
    action = parse_action(finish_action(message))
    assert action is not None
    assert action.arguments == {"message": message}


@given(st.text(max_size=80))
def test_parsing_never_raises(text: str) -> None:
    """Any text is either an action or none."""
    assert parse_action(f'do(action="{text}') is None or '"' in text


def test_a_tap_is_read_back_as_its_point() -> None:
    """The point of a tap comes back as two numbers."""
    action = parse_action(tap_action(512, 73))
    assert action is not None
    assert action.arguments["element"] == (512, 73)


def test_labels_are_distinct_and_the_new_ones_are_new() -> None:
    """No label stands twice, and v1.3's are none of v1.2's."""
    assert len(set(ALL_LABELS)) == len(ALL_LABELS) == 34
    assert len(APPS) == 28
    assert not set(APPS) & set(NEW_APPS)


def test_a_seventh_of_the_answers_is_held_out() -> None:
    """Some answers of each action are held out, never both of one label, so each label is trained."""
    out = {(action, label) for label in APPS for action in ("Launch", "Close") if is_held_out(action, label)}
    assert len(out) == 8
    assert {action for action, _ in out} == {"Launch", "Close"}
    assert len({label for _, label in out}) == len(out)


def test_what_is_held_out_stays_held_out() -> None:
    """Models were trained without these: a label put among the others must not move them."""
    out = {
        action: {label for label in ACTION_LABELS if is_held_out(action, label)}
        for action in ("Launch", "Close")
    }
    assert out == PINNED


def test_the_agent_prompt_states_the_grammar() -> None:
    """The prompt names both forms, and the actions it shows are the ones we write."""
    assert "do(action=" in AGENT_SYSTEM_PROMPT
    assert "finish(message=" in AGENT_SYSTEM_PROMPT
    assert app_action("Launch", "..") in AGENT_SYSTEM_PROMPT
