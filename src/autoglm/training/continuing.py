"""A course that goes on from a release's weights with the data that the release was made from.

>>> room = ContinuedClassroom(run, course_named("further"), base=read_source(release))   # doctest: +SKIP
>>> Loop(run, room, room.course.lessons).run()                                           # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoglm.errors import ConfigError
from autoglm.training.classroom import Classroom
from autoglm.training.course import Course
from autoglm.training.sources import Source
from autoglm.training.tutoring import keep_words, load_source


class ContinuedClassroom(Classroom):
    """A release's model in training, with auxiliary heads of its own or fresh ones."""

    def __init__(
        self,
        directory: Path,
        course: Course,
        *,
        base: Source,
        seed: int = 0,
        workers: int = 0,
        data: Path | None = None,
        shard: bool = False,
    ) -> None:
        """Prepare to go on.

        Args:
            directory: of the run.
            course: what is taught.
            base: the release; with auxiliary heads, the lesson that teaches fresh ones is left out.
            seed: of everything.
            workers: processes that draw screens ahead.
            data: another run's directory, whose recordings are used.
            shard: spread the weights of the blocks over the processes.

        Raises:
            ConfigError: the course starts from nothing.
        """
        if not course.follows:
            raise ConfigError(f"course {course.name!r} starts from nothing: it takes no base")
        if base.circuits:
            course = replace(course, lessons=tuple(each for each in course.lessons if not each.heads_only))
        keep_words(directory, base)
        super().__init__(
            directory, course, seed=seed, config=base.config, workers=workers, data=data, shard=shard
        )
        load_source(self, base)
        self._begun_from = base.digest

    @property
    def name(self) -> str:
        """What a checkpoint belongs to."""
        return f"{super().name}/from {self._begun_from}"
