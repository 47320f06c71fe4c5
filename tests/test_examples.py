"""The examples and the notebook, run as their readers run them, against one real service.

They run in the order of this file: first on v1.2, then an update is published and they meet v1.3.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from autoglm.training.actions import is_chinese
from autoglm.training.screens import render, tap_hits
from story.processes import DEADLINE_SECONDS, Process, Project

ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def project(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Project]:
    """The project as a user has it; what a test starts is ended with the module."""
    processes: list[Process] = []
    autoglm = str(Path(sys.executable).with_name("autoglm"))
    yield Project(project_root, autoglm, tmp_path_factory.mktemp("examples"), processes)
    for process in processes:
        if process.running:
            process.process.kill()
            process.process.wait()


@pytest.fixture(scope="module")
def url(project: Project) -> str:
    """The address of a service that was started for the first time, on v1.2."""
    return project.serve()[1]


def run(program: Path, *arguments: str | Path) -> str:
    """Run a program to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=os.environ | {"PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def addressed(project: Project, name: str, url: str) -> Path:
    """A copy of an example that differs in the service's address alone."""
    text = (project.root / "examples" / name).read_text()
    assert ADDRESS in text
    copy = project.directory / name
    copy.write_text(text.replace(ADDRESS, url))
    return copy


def test_the_articles_chat_gets_a_sensible_answer(project: Project, url: str) -> None:
    """LangChain with the article's arguments, streamed and thinking, is told who answers."""
    assert "AutoGLM-Phone-9B" in run(addressed(project, "chat.py", url))


def test_the_articles_check_finds_nothing_newer(project: Project, url: str) -> None:
    """Before anything is published, a phone on v1.2 is up to date."""
    printed = run(addressed(project, "check_update.py", url))
    assert printed.splitlines() == ["Current model version: v1.2", "已是最新版本"]


@pytest.mark.needs("wqy-zenhei")
def test_a_drawn_screen_is_tapped_where_asked(project: Project, url: str) -> None:
    """The screenshot example prints actions of the grammar that hit what was asked for, far above chance."""
    example, hits = addressed(project, "screenshot.py", url), 0
    for seed in range(3):
        screen = render(random.Random(seed), num_elements=(3, 5))
        target = screen.elements[0]
        wanted = f"点击{target.label}" if is_chinese(target.label) else f"tap {target.label}"
        picture = project.directory / f"screen-{seed}.png"
        Image.fromarray(screen.image).save(picture)
        hits += tap_hits(run(example, picture, wanted).strip(), target)
    assert hits >= 2


def test_the_notebook_verifies_the_service(
    project: Project, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell runs; its own assertions hold."""
    monkeypatch.setenv("AUTOGLM_URL", url)
    notebook = nbformat.read(project.root / "notebooks" / "verify_service.ipynb", as_version=4)
    paths = {"metadata": {"path": str(project.directory)}}
    NotebookClient(notebook, timeout=DEADLINE_SECONDS, kernel_name="python3", resources=paths).execute()


def test_an_app_with_the_sdk_changes_its_model_while_it_runs(project: Project, url: str) -> None:
    """The embedding example starts on v1.2 and answers from v1.3 once that is published, in one process."""
    program = project.root / "examples" / "embed_sdk.py"
    root = project.directory / "service" / "trust" / "root.json"
    app = Process(sys.executable, program, url, project.directory / "app", root, cwd=project.directory)
    project.processes.append(app)
    app.wait_for_line(r"^\[v1\.2\] .")

    package, data = project.shipped / "v1.3.wpatch", project.directory / "service"
    published = project.autoglm("publish", package, "--data", data, "--percent", "100")
    assert published.returncode == 0, published.stderr

    app.wait_for_line(r"^\[v1\.3\] .*v1\.3 新增")
    assert not [line for line in app.lines if line.startswith("[v1.2]") and "v1.3 新增" in line]
    assert app.stop(signal.SIGINT) == 0


def test_the_articles_check_finds_the_published_update(project: Project, url: str) -> None:
    """A phone on v1.2 is now led to v1.3, with an address on this very service."""
    printed = run(addressed(project, "check_update.py", url))
    assert f"发现新版本 v1.3,下载地址:{url}/v1/model/packages/" in printed
