"""A release comes into a vLLM server while it is asked: nothing torn, nothing lost, and the way back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from autoglm.engine import GenerationRequest
from autoglm.errors import ConfigError, EngineError, HealthError, OverloadedError
from autoglm.model.prompt import Message
from autoglm.service.gateway import Gateway, open_gateway
from autoglm.service.settings import parse_settings
from service.vllm_world import QUICK, FakeServer, fake_server, supervised, wait_for, word, write_release

HELLO = (Message("user", "hello"),)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """v1.1 and v1.2, which say different words, and releases that fail in one way or another."""
    root = tmp_path_factory.mktemp("releases")
    return {
        "v1.1": write_release(root / "1", 1),
        "v1.2": write_release(root / "2", 2),
        "wrong": write_release(root / "3", 3, expect="what it never says"),
        "other tokenizer": write_release(root / "4", 4, extra={"tokenizer.json": '{"a": 1}'}),
        "deadly": write_release(root / "5", 5, extra={"fake.json": '{"load": "crash"}'}),
    }


@pytest.fixture
def stack() -> Generator[ExitStack]:
    """What is closed after the test, the latest first."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def serve(stack: ExitStack, tmp_path: Path, releases: dict[str, Path]) -> Callable[..., FakeServer]:
    """Run a fake server, on v1.1 where nothing else is said."""

    def start(release: str = "v1.1", **options: Any) -> FakeServer:
        return stack.enter_context(fake_server(releases[release], tmp_path / "fake.log", **options))

    return start


@pytest.fixture
def connect(stack: ExitStack, tmp_path: Path, releases: dict[str, Path]) -> Callable[..., Gateway]:
    """Open a gateway on v1.1."""

    def open_it(*servers: FakeServer, release: str = "v1.1", **backend: Any) -> Gateway:
        values = {**QUICK, "url": [server.url for server in servers], **backend}
        settings = parse_settings({"backend": values}, where="the test", directory=tmp_path)
        return stack.enter_context(open_gateway(releases[release], settings))

    return open_it


def ask(gateway: Gateway, tokens: int = 4, **more: Any) -> tuple[str, set[str]]:
    """Ask, and return the release that is named and the words that were said."""
    generation = gateway.submit(GenerationRequest(HELLO, max_tokens=tokens, **more))
    return generation.release, set(generation.result(30).answer.split())


def update(gateway: Gateway, directory: Path) -> None:
    """Do what the device SDK does."""
    staged = gateway.stage(directory)
    try:
        report = gateway.self_test(staged)
        if not report.ok:
            raise HealthError("; ".join(report.failures))
        gateway.swap(staged)
    except BaseException:
        gateway.discard(staged)
        raise


class Load:
    """Clients that ask without end, and what each was answered."""

    def __init__(self, gateway: Gateway, clients: int = 6, tokens: int = 24) -> None:
        self.answers: list[tuple[str, set[str]]] = []
        self.errors: list[Exception] = []
        self._gateway, self._tokens, self._stop = gateway, tokens, threading.Event()
        self._threads = [threading.Thread(target=self._go) for _ in range(clients)]

    def _go(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask(self._gateway, self._tokens))
            except Exception as error:  # noqa: BLE001 - whatever a client is told is a loss
                self.errors.append(error)
                return

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.answers) > 6, "the first answers")
        return self

    def __exit__(self, *_: object) -> None:
        count = len(self.answers)
        wait_for(lambda: self.errors or len(self.answers) > count + 12, "answers after the change")
        self._stop.set()
        for thread in self._threads:
            thread.join()


def whole(load: Load, *directories: Path) -> set[str]:
    """See that nothing was lost or torn; return the versions that answered."""
    words = {f"v1.{directory.name}": {word(directory)} for directory in directories}
    assert load.errors == []
    for version, said in load.answers:
        assert said == words[version]
    return {version for version, _ in load.answers}


def test_answers_come_from_the_release_of_the_device(serve: Any, connect: Any, releases: Any) -> None:
    """A server that was started on something else is given the release before it answers anybody."""
    gateway = connect(serve("v1.2"))
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})
    assert gateway.trouble is None
    assert gateway.stats().finished == 1


def test_a_reload_under_load_tears_and_loses_nothing(serve: Any, connect: Any, releases: Any) -> None:
    """One server: requests wait at the door while its weights are replaced, and each is of one release."""
    gateway = connect(serve(token_s=0.001))
    with Load(gateway) as load:
        update(gateway, releases["v1.2"])
    assert whole(load, releases["v1.1"], releases["v1.2"]) == {"v1.1", "v1.2"}


def test_two_servers_change_without_a_pause(serve: Any, connect: Any, releases: Any) -> None:
    """Blue-green: the old server ends its answers and is kept; a rollback turns back to it."""
    gateway = connect(serve(token_s=0.001), serve(token_s=0.001))
    with Load(gateway) as load:
        update(gateway, releases["v1.2"])
        assert gateway.loaded_versions == ("v1.2", "v1.1")
        assert ask(gateway, release="v1.1") == ("v1.1", {word(releases["v1.1"])})
        gateway.rollback()
        assert ask(gateway)[0] == "v1.1"
    assert whole(load, releases["v1.1"], releases["v1.2"]) >= {"v1.1"}


def test_a_second_update_takes_the_server_of_the_previous_release(
    serve: Any, connect: Any, releases: Any
) -> None:
    """After the trial the servers take turns, and what nobody may load any more is removed."""
    gateway = connect(serve(), serve())
    update(gateway, releases["v1.2"])
    gateway.release_previous()
    assert gateway.loaded_versions == ("v1.2",)
    update(gateway, releases["v1.1"])
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


@pytest.mark.parametrize("how", ["fail", "half"])
@pytest.mark.parametrize("checker", ["paused", "unpaused"])
def test_a_reload_that_fails_is_undone(
    serve: Any, connect: Any, releases: Any, how: str, checker: str
) -> None:
    """Whether vLLM reports an error or silently leaves tensors out, the old release answers again."""
    server = serve(checker=checker)
    gateway = connect(server)
    server.switch(reload=how, once=True)
    with Load(gateway) as load, pytest.raises(EngineError):
        update(gateway, releases["v1.2"])
    assert whole(load, releases["v1.1"]) == {"v1.1"}


def test_a_reload_that_hangs_leaves_the_old_release_once_the_server_is_back(
    serve: Any, connect: Any, releases: Any
) -> None:
    """A server that hangs is given up; started again by its owner, it is given the old release first."""
    server = serve("v1.2")
    gateway = connect(server, load_seconds=0.5)
    server.switch(reload="hang")
    with pytest.raises(EngineError):
        update(gateway, releases["v1.2"])
    server.kill()
    server.start()
    wait_for(lambda: gateway.trouble is None, "the server to hold a release")
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


def test_a_server_that_crashes_in_a_reload_comes_back_with_the_old_release(
    serve: Any, connect: Any, releases: Any
) -> None:
    """Whatever it was started with, no request is answered by anything but the release of the device."""
    server = serve("v1.2")
    gateway = connect(server, start_seconds=1.0)
    server.switch(reload="crash")
    with pytest.raises(EngineError):
        update(gateway, releases["v1.2"])
    server.start()
    wait_for(lambda: gateway.trouble is None, "the server to hold a release")
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


def test_a_release_that_fails_its_self_test_answers_nobody(serve: Any, connect: Any, releases: Any) -> None:
    """The self-test runs behind the shut door; afterwards the old release answers."""
    gateway = connect(serve())
    with Load(gateway) as load, pytest.raises(HealthError, match="not 'what it never says'"):
        update(gateway, releases["wrong"])
    assert whole(load, releases["v1.1"]) == {"v1.1"}


def test_beside_a_live_server_a_bad_release_is_not_even_noticed(
    serve: Any, connect: Any, releases: Any
) -> None:
    """Blue-green: the release fails on the second server, the first one never stops."""
    first, second = serve(token_s=0.001), serve()
    gateway = connect(first, second)
    with Load(gateway) as load, pytest.raises(HealthError):
        update(gateway, releases["wrong"])
    assert whole(load, releases["v1.1"]) == {"v1.1"}
    update(gateway, releases["v1.2"])
    assert ask(gateway)[0] == "v1.2"


def test_what_a_reload_cannot_change_is_refused(serve: Any, connect: Any, releases: Any) -> None:
    """New weights under the old tokenizer would answer nonsense: vLLM reads it only at its start."""
    gateway = connect(serve())
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        gateway.stage(releases["other tokenizer"])
    assert ask(gateway)[0] == "v1.1"


def test_a_server_that_was_started_again_is_given_the_release_again(
    serve: Any, connect: Any, releases: Any
) -> None:
    """It came back with the weights on its command line; no client sees them."""
    server = serve("v1.2")
    gateway = connect(server)
    server.kill()
    wait_for(lambda: gateway.trouble is not None, "the gateway to notice")
    server.start()
    wait_for(lambda: gateway.trouble is None, "the server to hold a release")
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


def test_a_gateway_that_starts_again_finds_its_release(serve: Any, connect: Any, releases: Any) -> None:
    """The server that holds the right weights is used as it is; after the swap of a pair, the second."""
    first, second = serve(), serve()
    with connect(first, second) as gateway:
        update(gateway, releases["v1.2"])
    second.switch(reload="fail")
    again = connect(first, second, release="v1.2")
    assert ask(again) == ("v1.2", {word(releases["v1.2"])})
    assert second.url in again.devices[0]


def test_answers_that_do_not_end_put_the_update_off(serve: Any, connect: Any, releases: Any) -> None:
    """An answer is never cut for an update: past the limit, the update waits, not the client."""
    gateway = connect(serve(token_s=0.2), drain_seconds=0.2)
    generation = gateway.submit(GenerationRequest(HELLO, max_tokens=8))
    wait_for(lambda: gateway.stats().running, "the answer to begin")
    with pytest.raises(OverloadedError, match="took longer"):
        gateway.stage(releases["v1.2"])
    assert set(generation.result(30).answer.split()) == {word(releases["v1.1"])}


def test_a_server_without_development_routes_is_refused(serve: Any, connect: Any) -> None:
    """The error names what is missing, the version, and what to do."""
    with pytest.raises(ConfigError, match=r"lacks /pause.*VLLM_SERVER_DEV_MODE"):
        connect(serve(dev_mode=False))


def test_a_server_of_another_name_is_refused(serve: Any, connect: Any, tmp_path: Path, releases: Any) -> None:
    """A server that serves something else would answer 404 to every request."""
    settings = parse_settings(
        {"model": {"name": "another"}, "backend": {**QUICK, "url": serve().url}},
        where="t",
        directory=tmp_path,
    )
    with pytest.raises(ConfigError, match="--served-model-name another"):
        open_gateway(releases["v1.1"], settings)


def test_a_second_server_that_dies_after_its_test_gets_no_requests(
    serve: Any, connect: Any, releases: Any
) -> None:
    """Between self-test and commit nobody looks at it, so it is looked at once more before the switch."""
    first, second = serve(), serve()
    gateway = connect(first, second)
    staged = gateway.stage(releases["v1.2"])
    assert gateway.self_test(staged).ok
    second.kill()
    with pytest.raises(EngineError, match="broke down"):
        gateway.swap(staged)
    gateway.discard(staged)
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})
    with pytest.raises(OverloadedError, match="is down"):
        gateway.stage(releases["v1.2"])


# Servers that the gateway starts


@pytest.mark.parametrize("update_by", ["restart", "reload"])
def test_a_supervised_server_is_updated_under_load(connect: Any, releases: Any, update_by: str) -> None:
    """Started again with the new release or reloaded in place: nothing is torn or lost."""
    gateway = connect(**supervised(update=update_by))
    with Load(gateway) as load:
        update(gateway, releases["v1.2"])
    assert whole(load, releases["v1.1"], releases["v1.2"]) == {"v1.1", "v1.2"}


def test_a_restart_changes_the_tokenizer_too(connect: Any, releases: Any) -> None:
    """What a reload cannot bring, a start brings."""
    gateway = connect(**supervised())
    update(gateway, releases["other tokenizer"])
    assert ask(gateway)[0] == "v1.4"


@pytest.mark.parametrize(("servers", "update_by"), [(1, "restart"), (1, "reload"), (2, "restart")])
def test_a_release_that_kills_its_server_is_left(
    connect: Any, releases: Any, servers: int, update_by: str
) -> None:
    """The server dies while it loads; the old release answers."""
    gateway = connect(**supervised(servers=servers, update=update_by))
    with Load(gateway) as load, pytest.raises(EngineError):
        gateway.stage(releases["deadly"])
    assert whole(load, releases["v1.1"]) == {"v1.1"}


def test_a_hung_reload_is_ended_with_its_process(connect: Any, releases: Any) -> None:
    """A server that the gateway started is started again with the old release."""
    options = ["--switches", '{"reload": "hang"}']
    gateway = connect(**supervised(update="reload", load_seconds=0.5, arguments=options))
    with pytest.raises(EngineError):
        gateway.stage(releases["v1.2"])
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


def test_a_supervised_pair_starts_the_second_server_only_for_an_update(connect: Any, releases: Any) -> None:
    """It lives from the staging to the end of the trial, and the old one's memory is free afterwards."""
    values = supervised(servers=2)
    gateway = connect(**values)
    with Load(gateway) as load:
        update(gateway, releases["v1.2"])
        gateway.release_previous()
        wait_for(lambda: not _listens(values["port"]), "the old server to end")
    assert whole(load, releases["v1.1"], releases["v1.2"]) == {"v1.1", "v1.2"}


def test_a_supervised_server_that_crashes_is_started_again(connect: Any, releases: Any) -> None:
    """A request that comes meanwhile waits for it."""
    gateway = connect(**supervised(failures=1000))
    process = gateway._pool.servers[0].process
    process._child.kill()
    process._child.wait()
    assert ask(gateway) == ("v1.1", {word(releases["v1.1"])})


def test_a_server_left_behind_is_ended(connect: Any, releases: Any, tmp_path: Path) -> None:
    """A gateway that was killed leaves its server; the next one takes the port back."""
    values = supervised()
    first = connect(**values)
    left = first._pool.servers[0].process._child
    first._pool.servers[0].process._child = None  # what a kill leaves: the process, and nobody who knows it
    first._stopped.set()
    second = connect(**values)
    left.wait(10)
    assert ask(second)[0] == "v1.1"


def test_a_program_that_is_not_there_is_named(connect: Any) -> None:
    """The setting is named, not a traceback."""
    with pytest.raises(ConfigError, match=r"backend\.command: no-such-program"):
        connect(**supervised(command=["no-such-program"]))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
