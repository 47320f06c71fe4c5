"""The admin routes by which operators stage, commit, drop and roll back, beside clients that keep asking."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm import patch
from service.tiny import write_tiny

MANUAL = {"automatic": False, "trial_minutes": 0, "trial_answers": 3}


def step(service: Any, name: str) -> Any:
    return service.admin("POST", f"/engine/{name}")


def publish(service: Any, package: Path) -> None:
    with package.open("rb") as content:
        assert service.admin("POST", "/releases?percent=100", data=content).status_code == 201
    service.build_packages()


@pytest.fixture
def manual(start_service: Callable[..., Any], store: Path) -> Any:
    """A service on v1.2 whose operators decide, with v1.3 published."""
    service = start_service(update=MANUAL)
    publish(service, store / "v1.3.wpatch")
    return service


def test_an_update_step_by_step(manual: Any) -> None:
    """Nothing moves before the commit; each step is in the audit log; the status tells how things stand."""
    old = manual.chat(max_tokens=30).json()
    assert manual.state.engine.active_version == "v1.2"
    staged = step(manual, "stage").json()
    assert (staged["result"], staged["version"], staged["from_version"]) == ("staged", "v1.3", "v1.2")
    assert manual.chat(max_tokens=30).json()["choices"] == old["choices"]
    status = manual.admin("GET", "/engine").json()
    assert (status["engine"]["active"], status["updater"]["staged"]) == ("v1.2", "v1.3")
    committed = step(manual, "commit").json()
    assert (committed["result"], committed["version"]) == ("updated", "v1.3")
    assert committed["pause_s"] < 60 and committed["drained_s"] == 0
    new = manual.chat(max_tokens=30).json()
    assert new["system_fingerprint"] != old["system_fingerprint"]
    assert manual.get("/v1/model/info").json()["system_fingerprint"] == new["system_fingerprint"]
    assert manual.admin("GET", "/engine").json()["last_swap"]["to_version"] == "v1.3"
    assert step(manual, "rollback").json() == {"version": "v1.2"}
    assert manual.chat(max_tokens=30).json()["choices"] == old["choices"]
    entries = manual.admin("GET", "/audit").json()["entries"]
    noted = [entry["what"] for entry in entries if entry["what"].startswith("engine.")]
    assert sorted(noted) == ["engine.commit", "engine.rollback", "engine.stage"]


def test_steps_out_of_order_are_conflicts(manual: Any) -> None:
    """A commit with nothing staged, twice, and after a discard; a discard of nothing is no error."""
    assert step(manual, "commit").json()["error"]["code"] == "E_CONFLICT"
    assert step(manual, "discard").json() == {"discarded": False}
    assert step(manual, "stage").status_code == 200
    assert step(manual, "stage").json()["result"] == "staged"
    assert step(manual, "discard").json() == {"discarded": True}
    assert step(manual, "commit").status_code == 409
    assert step(manual, "stage").json()["result"] == "staged"
    assert step(manual, "commit").status_code == 200
    assert step(manual, "commit").status_code == 409
    for _ in range(3):
        manual.chat()
    manual.state.updater.tick()
    assert step(manual, "stage").json() == {
        "result": "none", "version": None, "from_version": "v1.3", "retry_after_s": None, "quarantined": [],
    }  # fmt: skip


def test_a_release_on_trial_lets_no_other_in(
    start_service: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    """One unproven release at a time: the next one is a conflict that says why."""
    manual = start_service(update={"automatic": False})
    publish(manual, store / "v1.3.wpatch")
    step(manual, "stage")
    step(manual, "commit")
    patch.diff(None, write_tiny(tmp_path / "next", "v1.4", 14), tmp_path / "next.wpatch")
    publish(manual, tmp_path / "next.wpatch")
    answer = step(manual, "stage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "E_TRIAL")


def test_a_release_that_fails_its_self_test_is_a_conflict(manual: Any, tmp_path: Path) -> None:
    """It is never staged, and the answer says what it did."""
    patch.diff(None, write_tiny(tmp_path / "sick", "v1.4", 14, expect="never said"), tmp_path / "sick.wpatch")
    publish(manual, tmp_path / "sick.wpatch")
    answer = step(manual, "stage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "E_HEALTH")
    assert step(manual, "commit").status_code == 409
    assert manual.chat().headers["x-autoglm-version"] == "v1.2"


def test_two_operators_at_once(manual: Any) -> None:
    """Of many commits at the same time one swaps; the others are told so."""
    step(manual, "stage")
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(step(manual, "commit").status_code)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [200, 409, 409, 409]
    assert manual.state.engine.stats().swaps == 1


def test_a_bad_live_answer_brings_the_old_release_back(manual: Any) -> None:
    """The request fails with a typed error, the release with it; the same request is then answered."""
    old = manual.chat(max_tokens=20).json()["choices"]
    step(manual, "stage")
    step(manual, "commit")
    model = manual.state.engine.active.model
    nan = torch.full_like(model.norm.weight, float("nan"))
    model.norm.weight = torch.nn.Parameter(nan, requires_grad=False)
    failed = manual.chat(max_tokens=20)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "E_ENGINE")
    changed = threading.Event()
    while manual.state.engine.active_version != "v1.2":
        assert not changed.wait(0.02)
    assert manual.chat(max_tokens=20).json()["choices"] == old
    while "v1.3" not in manual.state.updater.status().quarantined:
        assert not changed.wait(0.02)
    assert step(manual, "stage").status_code in (200, 409)
    assert manual.state.engine.active_version == "v1.2"


def test_draining_lets_running_answers_end_and_new_ones_wait(
    start_service: Callable[..., Any], store: Path
) -> None:
    """With ``in_flight: drain`` nothing is under way at the commit, and nothing is lost."""
    service = start_service(update=MANUAL, model={"in_flight": "drain"})
    publish(service, store / "v1.3.wpatch")
    old = service.chat(max_tokens=60).json()["choices"]
    answers: list[tuple[str, Any]] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answer = service.chat(max_tokens=60)
            assert answer.status_code == 200, answer.text
            answers.append((answer.headers["x-autoglm-version"], answer.json()["choices"]))

    clients = [threading.Thread(target=client) for _ in range(6)]
    for each in clients:
        each.start()
    assert step(service, "stage").json()["result"] == "staged"
    committed = step(service, "commit").json()
    stop.set()
    for each in clients:
        each.join(60)
    assert committed["in_flight"] == 0
    new = service.chat(max_tokens=60).json()["choices"]
    assert old != new
    assert {str(choices) for version, choices in answers if version == "v1.2"} <= {str(old)}
    assert {str(choices) for version, choices in answers if version == "v1.3"} <= {str(new)}
