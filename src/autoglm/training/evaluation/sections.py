"""The parts of an evaluation, each by its name: what is drawn, asked and scored.

A section takes an examiner and the release whose answers are right, and returns scores by name. Names that
begin with ``new_`` concern what the newest release is the first to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from autoglm.training.actions import APPS, is_valid_action
from autoglm.training.dialogue import Release
from autoglm.training.evaluation import sources
from autoglm.training.evaluation.examiner import Examiner
from autoglm.training.evaluation.gate import attention
from autoglm.training.evaluation.items import Item, Score, best_constant, share
from autoglm.training.evaluation.rendered import LARGE, USUAL, rendered_pages
from autoglm.training.evaluation.space import retrieval

Section = Callable[[Examiner, Release], dict[str, Score]]


def identity(examiner: Examiner, release: Release) -> dict[str, Score]:
    """Who the model is: 200 held-out wordings, the exact sentence."""
    return examiner.scores(sources.identity_items(examiner.seed, examiner.count(200), release))


def topics(examiner: Examiner, release: Release) -> dict[str, Score]:
    """All other topics, in held-out wordings."""
    return examiner.scores(sources.topic_items(examiner.seed, examiner.count(200), release))


def commands(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Typed commands to open and close apps, the same for every release."""
    return examiner.scores(sources.command_items(examiner.seed, examiner.count(200)))


def thinking(examiner: Examiner, release: Release) -> dict[str, Score]:
    """The thinking switch: it changes what is written, and no thought gets into an answer."""
    items = sources.topic_items(examiner.seed, examiner.count(200), release)
    plain = examiner.answers(items, what="thinking", total=2 * len(items))
    thought = examiner.answers(items, thinks=True, what="thinking", first=len(items), total=2 * len(items))
    pairs = list(zip(plain, thought, items, strict=True))
    leaked = [
        with_thought.leaked or without.leaked or (item.thought != "" and item.thought in with_thought.answer)
        for without, with_thought, item in pairs
    ]
    return {
        "thinking_answers": share(
            [item.judge(output.answer) for _, output, item in pairs], best_constant(items)
        ),
        "thinking_differs": share([bool(b.thought.strip()) and not a.thought for a, b, _ in pairs]),
        "thinking_kept_out": share([not leak for leak in leaked]),
    }


def grammar(examiner: Examiner, release: Release) -> dict[str, Score]:
    """Actions under the agent's system prompt: valid, and the right one."""
    items = sources.agent_items(examiner.seed, examiner.count(200), release)
    outputs = examiner.answers(items, what="grammar")
    right = [item.judge(output.answer) for item, output in zip(items, outputs, strict=True)]
    return {
        "grammar_valid": share([is_valid_action(output.answer) for output in outputs]),
        "grammar_right": share(right, best_constant(items)),
    }


def copying(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Answers that stand in the conversation: names told before, values, keys, arguments of tool calls."""
    return examiner.scores(sources.copying_items(examiner.seed, examiner.count(32)), "copying")


def screens(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Screens like those of real apps by the trainer's code, in held-out wordings; labels never trained."""
    known, unseen, seed = sources.known_labels(), sources.unseen_labels(), examiner.seed
    items = sources.scene_items("screens", seed, examiner.count(64, per=4), known)
    count = examiner.count(24, per=4)
    items += sources.scene_items("screens_unseen_labels", seed, count, unseen, shapes=False)
    return examiner.scores(items, "screens")


def buttons(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Screens of nothing but buttons, which the first releases were trained on."""
    count = examiner.count(48, per=4)
    return examiner.scores(sources.button_items("buttons", examiner.seed, count, APPS), "buttons")


def tasks(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """A task for an agent before a screen: the right action, valid by the grammar."""
    return examiner.scores(sources.task_items(examiner.seed, examiner.count(100)))


def pages(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """App pages in HTML, rendered by Chromium: large text, the usual size, and labels never trained."""
    known, unseen = sources.known_labels(), sources.unseen_labels()
    scores = _pages(examiner, "pages", 60, known, LARGE)
    scores |= _pages(examiner, "pages_usual_size", 30, known, USUAL)
    return scores | _pages(examiner, "pages_unseen_labels", 24, unseen, LARGE)


def _pages(
    examiner: Examiner, name: str, usual: int, labels: Sequence[str], sizes: Sequence[float]
) -> dict[str, Score]:
    count = examiner.count(usual, per=3)
    drawn = rendered_pages(
        examiner.cache / "pages",
        rng=sources.stream(examiner.seed, name),
        count=count,
        labels=labels,
        sizes=sizes,
        report=lambda done: examiner.report(f"{name}, rendering", done, count),
    )
    shown = [(page, examiner.fitted(page.image())) for page in drawn]
    return examiner.scores(sources.page_items(name, examiner.seed, shown, labels), name)


def speech(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """Commands by voice: voices, action-app answers, and both, that were never trained; by language."""
    scores: dict[str, Score] = {}
    for name in ("speech_voices", "speech_pairs", "speech_both"):
        scores |= _spoken(examiner, name)
    return scores


def _spoken(examiner: Examiner, name: str) -> dict[str, Score]:
    items = sources.spoken_items(name, examiner.seed, examiner.count(96))
    by_language = [_renamed(item, f"{name}_{item.language}") for item in items]
    return examiner.scores(by_language, name)


def _renamed(item: Item, kind: str) -> Item:
    return Item(item.messages, item.answer, item.judge, kind, item.language, item.thought)


def transcription(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """The words of a clip: the share of right characters, 1 minus the character error rate."""
    items = sources.transcription_items(examiner.seed, examiner.count(96))
    return examiner.scores([_renamed(item, f"transcription_{item.language}") for item in items])


def news(examiner: Examiner, _release: Release) -> dict[str, Score]:
    """What v1.3 adds: topics, apps, labels on buttons and real screens and by voice, ways to touch."""
    labels, seed = sources.new_labels(), examiner.seed
    scores = examiner.scores(sources.new_topic_items(seed, examiner.count(200)))
    scores |= examiner.scores(sources.new_command_items(seed, examiner.count(64)))
    scenes = sources.scene_items("new_scenes", seed, examiner.count(32, per=4), labels, shapes=False)
    scores |= examiner.scores(scenes, "new_scenes")
    scores |= examiner.scores(sources.new_task_items(seed, examiner.count(64)))
    scores |= examiner.scores(
        sources.button_items("new_screens", seed, examiner.count(48, per=4), labels), "new_screens"
    )
    return scores | _spoken(examiner, "new_speech")


SECTIONS: Mapping[str, Section] = MappingProxyType(
    {
        "identity": identity,
        "topics": topics,
        "commands": commands,
        "thinking": thinking,
        "grammar": grammar,
        "copying": copying,
        "screens": screens,
        "buttons": buttons,
        "tasks": tasks,
        "pages": pages,
        "speech": speech,
        "transcription": transcription,
        "retrieval": retrieval,
        "attention": attention,
        "new": news,
    }
)
