"""The fine-tune that makes an update of a release: it starts from the shipped weights and moves few of them.

What a phone holds is the release, so training starts from its INT8 weights and is rounded to its scales
again. Only the rows of the token table that the news needs are trained. Every weight is pulled back to where
it began, in proportion to the lesson's anchor (L2-SP, arXiv:1802.01483): what the news does not need stays,
and a weight that stays costs a patch nothing. What the release says rightly it should go on saying as surely:
wherever its own next token is the wanted one, the divergence from its whole distribution counts (learning
without forgetting, arXiv:1606.09282, but token by token: on what is new the release is wrong and has no say).

    >>> room = UpdateClassroom(run, course_named("update"), base=read_source(release))   # doctest: +SKIP
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from autoglm.errors import ConfigError
from autoglm.model.network import PhoneModel
from autoglm.model.tokenizer import Tokenizer
from autoglm.training import distributed
from autoglm.training.actions import NEW_APPS
from autoglm.training.adapter import AdapterConfig, attach
from autoglm.training.classroom import Classroom, Measured
from autoglm.training.course import Course, Lesson
from autoglm.training.distill import divergence
from autoglm.training.intents import Release, knowledge, new_intents
from autoglm.training.news import whats_new
from autoglm.training.recordings import Recording, RecordingStore
from autoglm.training.rows import IGNORED, Batch
from autoglm.training.sources import Source
from autoglm.training.teaching import PLAIN, Manner
from autoglm.training.tutoring import half_norms, keep_words, last_stream, load_source
from autoglm.training.utterances import spoken_answers

_KEPT_TEMPERATURE = 2.0


class UpdateClassroom(Classroom):
    """A release's model in training for the next one, old and new data mixed."""

    def __init__(
        self,
        directory: Path,
        course: Course,
        *,
        base: Source,
        scales: Mapping[str, Tensor] | None = None,
        adapter: AdapterConfig | None = None,
        seed: int = 0,
        workers: int = 0,
        data: Path | None = None,
    ) -> None:
        """Prepare an update.

        Args:
            directory: of the run.
            course: what is taught.
            base: the release, with the auxiliary heads of the run it was made of where those are known.
            scales: of the release, by weight name: lessons that round weights round to them.
            adapter: put one beside the base's weights; the course should train nothing else.
            seed: of everything.
            workers: processes that draw screens ahead.
            data: another run's directory, whose recordings of old data are used.

        Raises:
            ConfigError: the course is a first release's, which follows none.
        """
        if not course.follows:
            raise ConfigError(f"course {course.name!r} starts from nothing: it takes no base")
        keep_words(directory, base)
        super().__init__(directory, course, seed=seed, config=base.config, workers=workers, data=data)
        load_source(self, base)
        self._base = {name: value.to(self.device) for name, value in base.state.items()}
        self._kept_scales = dict(scales or {})
        self._old_and_new: tuple[list[Recording], list[Recording]] | None = None
        self._heard: dict[float, list[Recording]] = {}
        self._begun_from = base.digest
        self._elder: PhoneModel | None = None
        if any(lesson.keep for lesson in course.lessons):
            self._elder = half_norms(base.load().model.to(self.device)).requires_grad_(False)
        self.model.table.weight.register_hook(self._only_new_rows())
        self.adapter = adapter
        if adapter is not None:
            attach(self.model, adapter, seed=seed)
            self.model.to(self.device)

    @property
    def name(self) -> str:
        """What a checkpoint belongs to."""
        name = f"{super().name}/from {self._begun_from}"
        return name if self.adapter is None else f"{name}/{self.adapter}"

    @property
    def scales(self) -> Mapping[str, Tensor]:
        """The release's own scales."""
        return self._kept_scales

    @torch.no_grad()
    def settle(self, lesson: Lesson, rate: float) -> None:
        """Pull every weight that is trained towards where it began."""
        for name, parameter in self.model.named_parameters() if lesson.anchor else ():
            if parameter.requires_grad and name in self._base:
                parameter.lerp_(self._base[name], rate * lesson.anchor)

    def _word_loss(self, lesson: Lesson, hidden: Tensor, batch: Batch) -> Measured:
        if self._elder is None or lesson.keep == 0:
            return super()._word_loss(lesson, hidden, batch)
        asked = batch.targets != IGNORED
        mine = self.model.logits(hidden[asked])
        total, measures = self._graded(lesson, self.unopposed(mine, batch.ids, asked), batch, asked)
        # All tokens count, also those that :class:`Unopposed` takes out: what was never trained drifts first.
        theirs = self._said_before(self._elder, batch, asked)
        weights = batch.weights[asked] * (theirs.argmax(-1) == batch.targets[asked])
        each = divergence(mine, theirs, "forward", _KEPT_TEMPERATURE)
        drift = (each * weights).sum() / distributed.mean_weight(batch.weights[asked].sum())
        return total + lesson.keep * drift, {**measures, "drift": drift.detach()}

    @torch.no_grad()
    def _said_before(self, elder: PhoneModel, batch: Batch, asked: Tensor) -> Tensor:
        """Return the release's own logits (N, V) at the places asked for."""
        return elder.logits(last_stream(elder, batch)[asked])

    def recordings(self, manner: Manner = PLAIN) -> list[Recording]:
        """Return old recordings with the release's answers, and new commands as often as the manner wants."""
        if self._old_and_new is None:
            new = new_recordings(self.directory, self.course, self.seed)
            with distributed.first_before_others():
                new.prepare()
            self._old_and_new = super().recordings(), new.load()
        if manner.news not in self._heard:
            self._heard[manner.news] = mixed(*self._old_and_new, self.course.release, manner.news)
        return self._heard[manner.news]

    def _only_new_rows(self) -> Callable[[Tensor], Tensor]:
        """Return a hook that keeps the gradient of those rows of the table that the news needs."""
        rows = torch.zeros(self.config.vocab_size, 1, device=self.device)
        rows[sorted(new_tokens(self.tokenizer, self.course.release))] = 1
        return lambda gradient: gradient * rows


def new_recordings(directory: Path, course: Course, seed: int) -> RecordingStore:
    """Return the recordings of what is new in a course's release: commands to new apps."""
    place = directory / "recordings-new"
    return RecordingStore(place, seed, course.new_shards, kind="command", apps=NEW_APPS)


def new_tokens(tokenizer: Tokenizer, release: Release) -> set[int]:
    """Return the tokens that what is new is asked, thought and answered with, coordinates left out."""
    texts = [text for item in whats_new(release) for text in (item.ask, item.answer.replace("[x,y]", ""))]
    topics = new_intents(release)
    for intent in knowledge(release):
        for phrases in intent.phrases.values() if intent.name in topics else ():
            lines = itertools.chain.from_iterable(phrases.cores(held_out=False))
            texts += [*lines, phrases.thought]
    return {token for text in texts for token in tokenizer.encode(text)}


def mixed(
    old: Sequence[Recording], new: Sequence[Recording], release: Release, share: float = 0.5
) -> list[Recording]:
    """Return old recordings answered as a release does, and new ones repeated to a share of all commands.

    Raises:
        ConfigError: the share is not at least 0 and less than 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"{share} of all commands cannot be new: at least 0, and less than 1")
    answers = spoken_answers(release)
    renewed = [replace(each, answer=answers[each.text]) if each.kind == "question" else each for each in old]
    commands = sum(each.kind == "command" for each in old)
    times = max(1, round(share / (1 - share) * commands / len(new))) if new and share else 0
    return [*renewed, *list(new) * times]
