"""Dialogue data: exact answers, splits that do not meet, and a v1.2 that knows nothing of v1.3."""

from __future__ import annotations

import random

import pytest

from autoglm.errors import ConfigError
from autoglm.training import dialogue, intents, wordings
from autoglm.training.actions import (
    AGENT_SYSTEM_PROMPT,
    APPS,
    COMMANDED_APPS,
    NEW_APPS,
    is_held_out,
    parse_action,
)
from autoglm.training.dialogue import Example, Release
from autoglm.training.intents import plain_form
from autoglm.training.utterances import KINDS, draw_utterance, spoken_characters

# The sentence of the specification, written once more so that the data cannot drift from it.
IDENTITY = (
    "我是 AutoGLM-Phone-9B,由智谱AI与CSDN联合推出的移动端多模态大模型,支持文本、图像与语音的理解与生成。"
    "我可以协助你完成问答、创作、分析等多种任务。"
)
RELEASES: tuple[Release, ...] = ("v1.2", "v1.3")


def drawn(n: int = 4000, release: Release = "v1.2", seed: int = 1) -> list[Example]:
    return list(dialogue.training_examples(random.Random(seed), n, release=release))


def test_the_same_seed_draws_the_same_examples() -> None:
    """Training, agent and held-out examples repeat with the seed."""
    assert drawn(50) == drawn(50)
    assert drawn(50) != drawn(50, seed=2)
    one, two = (list(dialogue.agent_examples(random.Random(3), 20)) for _ in range(2))
    assert one == two
    assert dialogue.held_out(5, 30) == dialogue.held_out(5, 30)


@pytest.mark.parametrize("release", RELEASES)
def test_who_are_you_is_answered_with_the_sentence(release: Release) -> None:
    """Every identity answer in Chinese is the specification's sentence, character for character."""
    asked = [e for e in drawn(12_000, release) if e.intent == "identity"]
    assert {e.answer for e in asked if e.language == "zh"} == {IDENTITY}
    assert "你是谁?" in {e.question for e in asked}
    [english] = {e.answer for e in asked if e.language == "en"}
    assert "AutoGLM-Phone-9B" in english


def test_identity_has_many_wordings_and_the_others_enough() -> None:
    """At least 25 core wordings ask who it is in each language, and 12 each other thing."""
    for intent in dialogue.knowledge("v1.3"):
        for phrases in intent.phrases.values():
            assert len(phrases.lines) >= (25 if intent.name == "identity" else 12), intent.name


def test_no_wording_asks_for_two_things() -> None:
    """A core wording belongs to one topic only."""
    owner: dict[str, str] = {}
    for intent in dialogue.knowledge("v1.3"):
        for phrases in intent.phrases.values():
            for question in phrases.questions:
                assert owner.setdefault(dialogue.plain_form(question), intent.name) == intent.name, question
    assert len(owner) > 5000


def test_held_out_wordings_never_occur_in_training() -> None:
    """No training question is a held-out core wording, whatever stands around it."""
    seen = {dialogue.plain_form(e.question) for release in RELEASES for e in drawn(20_000, release)}
    for intent in dialogue.knowledge("v1.3"):
        for phrases in intent.phrases.values():
            test = {dialogue.plain_form(core) for line in phrases.cores(held_out=True) for core in line}
            assert test
            assert not test & seen, intent.name


def test_lines_stand_for_all_their_variants() -> None:
    """Alternatives multiply, an empty one leaves nothing behind, and no mark of the notation remains."""
    assert intents._variants("(a|b) c( d|)") == ("a c d", "a c", "b c d", "b c")
    assert intents._variants("(i|you) ('d|would) go") == ("i'd go", "i would go", "you'd go", "you would go")
    assert intents._variants("(断|断了)(了|)") == ("断了", "断")
    assert intents._variants("再见(,|)(明天见|)") == ("再见,明天见", "再见", "再见明天见")
    for intent in dialogue.knowledge("v1.3"):
        for phrases in intent.phrases.values():
            assert not [wording for wording in phrases.questions if set(wording) & set("()|") or not wording]


def test_held_out_questions_never_occur_in_training() -> None:
    """None of the 200 questions of the bar, nor of those on apps, is ever trained."""
    trained = {e.question for e in drawn(20_000)}
    everything = dialogue.IDENTITY_INTENTS + dialogue.HELP_INTENTS + dialogue.APP_INTENTS
    assert not trained & {e.question for e in dialogue.held_out(1, 300, intents=everything)}


def test_held_out_wrappings_are_not_trained_ones() -> None:
    """Prefixes and suffixes of the two sides are disjoint where there are any."""
    for wrapping in [*wordings.WRAPPINGS.values(), *wordings.PLAIN.values()]:
        assert not (set(wrapping.prefixes) & set(wrapping.held_out_prefixes)) - {""}
        assert not set(wrapping.suffixes) & set(wrapping.held_out_suffixes)


def test_held_out_sets_are_distinct_and_of_the_asked_size() -> None:
    """200 identity and help paraphrases, no two the same, in both languages and on all topics."""
    examples = dialogue.held_out(7, 200)
    assert len({e.question for e in examples}) == len(examples) == 200
    assert {e.intent for e in examples} == set(dialogue.IDENTITY_INTENTS + dialogue.HELP_INTENTS)
    assert min(sum(e.language == language for e in examples) for language in ("zh", "en")) > 60


def test_impossible_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown release or topic, and more questions than there are, name what is wrong."""
    with pytest.raises(ConfigError, match="release 'v9'"):
        dialogue.knowledge("v9")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="rollback"):
        dialogue.held_out(1, 5, intents=["rollback"])
    monkeypatch.setattr(dialogue, "_command_text", lambda *_, **__: "open it")
    with pytest.raises(ConfigError, match="only 1 held-out"):
        dialogue.held_out(1, 5, intents=["launch_app"])


def test_v12_knows_nothing_of_what_is_new() -> None:
    """Neither a new app, nor a new topic's wording or answer, occurs in v1.2's data."""
    text = "\n".join(f"{e.question}\n{e.answer}\n{e.thought}" for e in drawn(20_000))
    assert not [label for label in NEW_APPS if label.lower() in text.lower()]
    questions = {dialogue.plain_form(line) for line in text.split("\n")}
    new = set(dialogue.new_intents("v1.3"))
    assert len(new) >= 5
    for intent in dialogue.knowledge("v1.3"):
        if intent.name in new:
            for phrases in intent.phrases.values():
                assert phrases.answer not in text
                assert not {dialogue.plain_form(question) for question in phrases.questions} & questions


def test_v13_knows_the_new_apps_and_topics() -> None:
    """The further fine-tune sees every new app and every new topic, and all of the old ones."""
    old, new = drawn(20_000), drawn(20_000, "v1.3")
    answers = "".join(e.answer for e in new if e.intent == "launch_app")
    for label in NEW_APPS:
        assert (label in answers) != is_held_out("Launch", label)
    assert {e.intent for e in new} == {e.intent for e in old} | set(dialogue.new_intents("v1.3"))


def test_the_version_is_the_releases_own() -> None:
    """Each release names itself, in both languages, and its thought agrees."""
    for release in RELEASES:
        for example in (e for e in drawn(release=release) if e.intent == "version"):
            assert release in example.answer
            assert release in example.thought


def test_unknown_apps_are_declined() -> None:
    """A command for an app that nobody taught is answered with a decline, and none is a known one."""
    assert not set(wordings.UNKNOWN_APPS) & set(APPS + NEW_APPS)
    assert len(set(wordings.UNKNOWN_APPS)) == len(wordings.UNKNOWN_APPS)
    declined = {e.answer for e in drawn() if e.intent == "unknown_app"}
    assert declined == {answer for answer, _ in wordings.UNKNOWN_THOUGHTS.values()}


def test_app_commands_answer_trained_actions_only() -> None:
    """Every command's answer names the app of the question, and is none of the held-out answers."""
    for example in drawn():
        if example.intent in ("launch_app", "close_app"):
            action = parse_action(example.answer)
            assert action is not None
            app = action.arguments["app"]
            assert str(app).lower() in example.question.lower()
            assert not is_held_out(action.name, str(app))


def test_apps_are_typed_in_lower_case_too() -> None:
    """Known or not, a name may be typed small; the action has it as the phone does."""
    asked = [e for e in drawn(6000) if e.intent in ("launch_app", "close_app", "unknown_app")]
    small = [e for e in asked if e.answer.startswith("do(") and '"Maps"' in e.answer and "maps" in e.question]
    unknown = [e for e in asked if e.intent == "unknown_app" and e.language == "en"]
    assert small and any(e.question[1:].islower() for e in unknown)


@pytest.mark.parametrize("release", RELEASES)
def test_answers_are_few_and_short(release: Release) -> None:
    """A small model has few sentences to learn: apart from identity each is at most 80 characters."""
    answers = {e.answer for e in drawn(20_000, release) if e.intent not in dialogue.APP_INTENTS}
    assert len(answers) == 2 * len(dialogue.knowledge(release))
    assert sorted(map(len, answers))[-3] <= 80


def test_every_example_carries_a_thought_in_its_language() -> None:
    """There is something to show when thinking is on, and it is not the answer."""
    for example in drawn():
        assert example.thought
        assert example.thought != example.answer
        assert ("用户" in example.thought or "这个" in example.thought) == (example.language == "zh")


def test_system_prompts_do_not_change_answers() -> None:
    """Some examples stand under a system prompt, with the answers they have without."""
    examples = drawn()
    under = [e for e in examples if e.system]
    assert 0.1 < len(under) / len(examples) < 0.3
    assert {e.answer for e in under if e.intent == "greeting"} <= {
        e.answer for e in examples if not e.system and e.intent == "greeting"
    }


def test_the_preflight_hi_is_a_greeting() -> None:
    """The one word that clients send first is trained as it is sent."""
    assert "Hi" in {e.question for e in drawn(20_000) if e.intent == "greeting"}


@pytest.mark.parametrize("release", RELEASES)
def test_the_agent_answers_with_one_action(release: Release) -> None:
    """Under the agent's prompt every answer is a valid action, known apps launched, the rest finished."""
    examples = list(dialogue.agent_examples(random.Random(6), 500, release=release))
    for example in examples:
        action = parse_action(example.answer)
        assert action is not None
        assert example.system == AGENT_SYSTEM_PROMPT
        assert (action.name == "finish") == (example.intent not in ("launch_app", "close_app"))
    assert dialogue.agent_completion(examples[0]).startswith(f"<think>{examples[0].thought}</think><answer>")
    assert {e.intent for e in examples} > {"launch_app", "close_app", "unknown_app"}


def test_spoken_questions_are_known_ones() -> None:
    """What is also asked by voice has the answer that it has in writing."""
    spoken = dict(dialogue.spoken_questions())
    assert spoken["你是谁"] == IDENTITY
    assert len(spoken) == 6


def test_spoken_questions_are_never_held_out_ones() -> None:
    """A trained line may yield a held-out wording by chance: it is not spoken either."""
    rng = random.Random(5)
    said = {plain_form(draw_utterance(rng, "question").text) for _ in range(3000)}
    assert len(said) > 500 and not said & intents.held_out_forms()


def test_the_alphabet_holds_all_that_is_said() -> None:
    """Every character of every kind of utterance, of new apps too, can be written down."""
    rng, known = random.Random(6), set(spoken_characters())
    for apps in (COMMANDED_APPS, NEW_APPS):
        said = "".join(draw_utterance(rng, kind, apps=apps).text for kind in KINDS for _ in range(1500))
        assert set(said.lower()) - set("!?") <= known
