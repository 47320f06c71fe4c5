"""``autoglm model data``, and the courses of ``autoglm model train``, ``prune`` and ``distill``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from autoglm.training.classroom import Classroom
    from autoglm.training.course import Course
    from autoglm.training.distill import Distillation
    from autoglm.training.importance import Importance
    from autoglm.training.loop import Loop
    from autoglm.training.sources import Source


@dataclass(frozen=True)
class Place:
    """Where a run is, and how it works.

    Attributes:
        run: its directory.
        data: another run's directory, whose recordings it uses.
        seed: of all randomness.
        workers: processes that draw screens ahead.
        shard: spread the weights of the blocks over the processes.
    """

    run: Path
    data: Path | None
    seed: int
    workers: int
    shard: bool


@dataclass(frozen=True)
class Healing:
    """How long and how hard a student that has weights is distilled: see ``healing_course``."""

    steps: int
    learning_rate: float
    rounded: int


def data(
    course: Annotated[str, typer.Argument(help="teacher, student, further or update.")],
    run: Annotated[Path | None, typer.Option(help="The run's directory; runs/COURSE if not given.")] = None,
    other: Annotated[
        Path | None, typer.Option("--data", help="Another run: prepare only what is not in it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prepare a course's tokenizer and speech beforehand; what is there and whole is kept.

    Example:

      autoglm model data teacher
    """
    from autoglm.cli.output import print_json
    from autoglm.model.config import CONFIGS
    from autoglm.training.classroom import recording_store, run_tokenizer
    from autoglm.training.course import course_named
    from autoglm.training.updating import new_recordings

    chosen, directory = course_named(course), run or Path("runs") / course
    if not chosen.follows:  # what follows a release keeps its words
        run_tokenizer(directory, CONFIGS[chosen.config])
    stores = {"recordings": recording_store(other or directory, chosen, seed)}
    if chosen.new_shards:
        stores["new recordings"] = new_recordings(directory, chosen, seed)
    with _bar() as progress:
        for name, store in stores.items():
            task = progress.add_task(name, total=store.num_shards, shown="")
            store.prepare(partial(_advance, progress, task))
    if as_json:
        print_json({"run": str(directory), "shards": sum(store.num_shards for store in stores.values())})
    else:
        print(f"the data of {course} are prepared: {directory}")


def card(
    releases: Annotated[list[Path], typer.Argument(help="Release directories, oldest first.")],
    runs: Annotated[str | None, typer.Option(help="The runs behind them, with commas between.")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="What `eval --json` printed, in a file; repeat it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the card here, not to the terminal.")
    ] = None,
) -> None:
    """Print the facts of a model card: sizes, training, what is new, what moved, scores.

    Example:

      autoglm model card runs/releases/v1.2 runs/releases/v1.3 --runs runs/teacher,runs/update -o card.md
    """
    from autoglm.files import write_durably
    from autoglm.training.card import card as written

    behind = [Path(run) for run in runs.split(",")] if runs else []
    text = written(releases, runs=behind, scores=scores or [])
    if output is None:
        print(text, end="")
    else:
        write_durably(output, text.encode())


def _advance(progress: Progress, task: Any, done: int, _total: int) -> None:
    progress.update(task, completed=done)


def train_course(
    name: str, place: Place, base: Path | None, base_run: Path | None, rank: int | None = None
) -> None:
    """Train a course, or an adapter of a rank on it, behind a progress bar; a stopped run goes on."""
    from autoglm.errors import ConfigError
    from autoglm.training.classroom import Classroom
    from autoglm.training.course import course_named
    from autoglm.training.distributed import joined

    course = course_named(name)
    if course.follows and base is None:
        raise ConfigError(f"course {name!r} starts from a release: name it with --base")
    if base is not None and not course.follows:
        raise ConfigError(f"course {name!r} starts from nothing: leave --base out")
    if base_run is not None and base is None:
        raise ConfigError("--base-run names the run that a release was made of: name the release with --base")
    if rank is not None and not course.new_shards:
        raise ConfigError(f"an adapter is trained on an update: course {name!r} is none")
    with joined():
        if base is not None and course.new_shards:
            room = _update(place, course, base, base_run, rank)
        elif base is not None:
            room = _further(place, course, base, base_run)
        else:
            room = Classroom(
                place.run,
                course,
                seed=place.seed,
                workers=place.workers,
                data=place.data,
                shard=place.shard,
            )
        loop = _taught(room)
    if loop is not None:
        _write_adapter(room)
        print(f"{name} is trained, {loop.seconds / 60:.1f} minutes in all: {place.run}")


def _write_adapter(room: Classroom) -> None:
    """Write the adapter of a run that trained one, as PEFT names it."""
    from autoglm.training.adapter import extract, write_adapter
    from autoglm.training.updating import UpdateClassroom

    if isinstance(room, UpdateClassroom) and room.adapter is not None:
        write_adapter(room.directory / "adapter", extract(room.model, room.adapter))


def _update(place: Place, course: Course, base: Path, base_run: Path | None, rank: int | None) -> Classroom:
    from dataclasses import replace

    from autoglm.model.weights import WEIGHTS_NAME, read_scales
    from autoglm.training.adapter import AdapterConfig
    from autoglm.training.course import ADAPTER
    from autoglm.training.updating import UpdateClassroom

    return UpdateClassroom(
        place.run,
        course if rank is None else replace(course, lessons=(ADAPTER,)),
        base=_start(base, base_run),
        scales=read_scales(base / WEIGHTS_NAME),
        adapter=None if rank is None else AdapterConfig(rank, alpha=2 * rank),
        seed=place.seed,
        workers=place.workers,
        data=place.data,
    )


def _further(place: Place, course: Course, base: Path, base_run: Path | None) -> Classroom:
    from autoglm.training.continuing import ContinuedClassroom

    return ContinuedClassroom(
        place.run,
        course,
        base=_start(base, base_run),
        seed=place.seed,
        workers=place.workers,
        data=place.data,
        shard=place.shard,
    )


def _start(base: Path, base_run: Path | None) -> Source:
    """Read a release; it holds no auxiliary heads, so those of its run go on where one is named."""
    from dataclasses import replace

    from autoglm.errors import ConfigError
    from autoglm.training.sources import read_source

    start = read_source(base)
    if base_run is None:
        return start
    heads = read_source(base_run)
    if not heads.circuits:
        raise ConfigError(f"{base_run} has no auxiliary heads: name the training run of the release, or none")
    return replace(start, circuits=heads.circuits, alphabet=heads.alphabet)


def distill_course(
    name: str,
    teacher: Path,
    student: Path | None,
    settings: Distillation,
    healing: Healing,
    place: Place,
    *,
    as_json: bool,
) -> None:
    """Distil a student on a course's data; one that has weights is healed, a fresh one takes all lessons."""
    from autoglm.cli.output import print_json
    from autoglm.training.course import course_named
    from autoglm.training.distributed import joined
    from autoglm.training.sources import read_source
    from autoglm.training.tutoring import TutoredClassroom, healing_course

    course, start = course_named(name), None if student is None else read_source(student)
    if start is not None:
        course = healing_course(
            course, steps=healing.steps, learning_rate=healing.learning_rate, rounded=healing.rounded
        )
    with joined():
        room = TutoredClassroom(
            place.run,
            course,
            teacher=read_source(teacher),
            student=start,
            settings=settings,
            seed=place.seed,
            workers=place.workers,
            data=place.data,
            shard=place.shard,
        )
        loop = _taught(room)
    if loop is None:
        return
    if as_json:
        print_json({"run": str(place.run), "seconds": loop.seconds, "measures": loop.measures})
    else:
        print(f"the student is distilled, {loop.seconds / 60:.1f} minutes in all: {place.run}")


def course_pruning(
    name: str, model: Source, data: Path, scratch: Path, batches: int, seed: int
) -> Importance:
    """Measure what every part of a model does on a course's data, behind a progress bar."""
    from autoglm.training.course import course_named
    from autoglm.training.tutoring import course_importance

    with _bar() as progress:
        task = progress.add_task("calibrate", total=batches, shown="")
        return course_importance(
            course_named(name),
            model,
            scratch,
            batches=batches,
            seed=seed,
            data=data,
            progress=lambda done: progress.update(task, completed=done),
        )


def _taught(room: Classroom) -> Loop | None:
    """Run a classroom's course and draw its curve; None in all processes but the first."""
    from autoglm.training.distributed import is_first
    from autoglm.training.loop import Loop
    from autoglm.training.plot import plot_curve

    with room.ahead:
        loop = Loop(room.directory, room, room.course.lessons, seed=room.seed)
        _run_with_bar(loop)
    if not is_first():
        return None
    plot_curve(room.directory, room.directory / "curve.png")
    return loop


def _run_with_bar(loop: Loop) -> None:
    from autoglm.training.distributed import is_first

    with _bar(shown=is_first()) as progress:
        tasks = {
            lesson.name: progress.add_task(lesson.name, total=lesson.steps, shown="")
            for lesson in loop.lessons
        }

        def report(lesson: Any, step: int, measures: dict[str, float]) -> None:
            shown = " ".join(f"{name} {value:.3f}" for name, value in measures.items())
            progress.update(tasks[lesson.name], completed=step, shown=shown)

        loop.run(report)


def _bar(*, shown: bool = True) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[shown]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
