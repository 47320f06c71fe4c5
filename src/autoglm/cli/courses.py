"""``autoglm model data`` and the courses of ``autoglm model train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from autoglm.training.loop import Loop

# By name, so that a command line can tell them from recipes without importing torch.
COURSE_NAMES = ("teacher", "student", "screens-by-heart")


def data(
    course: Annotated[str, typer.Argument(help="teacher or student.")],
    run: Annotated[Path | None, typer.Option(help="The run's directory; runs/COURSE if not given.")] = None,
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

    chosen, directory = course_named(course), run or Path("runs") / course
    run_tokenizer(directory, CONFIGS[chosen.config])
    store = recording_store(directory, chosen, seed)
    with _bar() as progress:
        task = progress.add_task("recordings", total=chosen.shards, shown="")
        store.prepare(lambda done, _: progress.update(task, completed=done))
    if as_json:
        print_json({"run": str(directory), "shards": chosen.shards})
    else:
        print(f"the data of {course} are prepared: {directory}")


def train_course(name: str, run: Path | None, seed: int, threads: int, workers: int) -> None:
    """Train a course behind a progress bar; a run that was stopped goes on from its last checkpoint."""
    from autoglm.training.classroom import Classroom
    from autoglm.training.course import course_named
    from autoglm.training.loop import Loop
    from autoglm.training.plot import plot_curve
    from autoglm.training.threads import use_threads

    use_threads(threads)
    course, directory = course_named(name), run or Path("runs") / name
    room = Classroom(directory, course, seed=seed, workers=workers)
    with room.ahead:
        loop = Loop(directory, room, course.lessons, seed=seed)
        _run_with_bar(loop)
    plot_curve(directory, directory / "curve.png")
    print(f"{name} is trained, {loop.seconds / 60:.1f} minutes in all: {directory}")


def _run_with_bar(loop: Loop) -> None:
    with _bar() as progress:
        tasks = {
            lesson.name: progress.add_task(lesson.name, total=lesson.steps, shown="")
            for lesson in loop.lessons
        }

        def report(lesson: Any, step: int, measures: dict[str, float]) -> None:
            shown = " ".join(f"{name} {value:.3f}" for name, value in measures.items())
            progress.update(tasks[lesson.name], completed=step, shown=shown)

        loop.run(report)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[shown]}"),
    )
    return Progress(*columns, console=Console(stderr=True))
