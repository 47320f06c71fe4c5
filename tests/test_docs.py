"""The documentation is true: every command, option, route, setting and error has its entry, and no other.

The pages are read for their shape: a section a command or route, a table row an option, setting or error.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from autoglm import errors
from autoglm.cli import build_app
from autoglm.device import Runtime, SelfTestReport, UpdateSettings, states
from autoglm.errors import ConfigError
from autoglm.releases import Event, UpdateAnswer, UpdateRequest
from autoglm.service.app import create_app
from autoglm.service.problems import problem_of
from autoglm.service.schemas import ChatRequest
from autoglm.service.settings import Settings, load_settings, parse_settings, setting_keys
from autoglm.service.state import ServiceState

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FOLDERS = ("benchmarks", "docs", "examples", "models", "notebooks", "scripts", "src")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


# Reading a page


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    body: str


def blocks(text: str) -> list[Block]:
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2]) for match in fenced]


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(match[1]), match[2]) for match in re.finditer(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def sections(page: Path, level: int) -> dict[str, str]:
    """The page's sections of one level: heading -> text up to the next heading of that level or above."""
    found: dict[str, str] = {}
    fenced, name = False, ""
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        marks, _, title = line.partition(" ")
        if not fenced and re.fullmatch("#+", marks) and len(marks) <= level:
            name = title if len(marks) == level else ""
            assert name not in found, f"{page.name} has two sections {name!r}"
        if name:
            found[name] = found.get(name, "") + line + "\n"
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows but those of the head."""
    lines = [line for line in prose(text).splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(page: Path) -> set[str]:
    """What a link may name after ``#``, as GitHub makes it of the headings."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page.read_text())
    }


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands behind the prompts of a console block, as words; comments are dropped."""
    waiting = ""
    for line in block.body.splitlines():
        waiting = (
            f"{waiting}\n{line}" if waiting else line.removeprefix("$ ") if line.startswith("$ ") else ""
        )
        try:
            words = list(_split(waiting))
        except ValueError:  # a quotation goes on in the next line
            continue
        waiting = ""
        yield from words
    assert not waiting, f"unfinished: {waiting}"


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(";&|"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def console(text: str) -> list[list[str]]:
    return [words for block in blocks(text) if block.language == "console" for words in commands(block)]


# What there is


def command_tree(command: Any, path: tuple[str, ...] = ("autoglm",)) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its name as it is typed."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield " ".join(path), command
    for name, each in (inner or {}).items():
        yield from command_tree(each, (*path, name))


@pytest.fixture(scope="module")
def verbs() -> dict[str, Any]:
    import typer

    return dict(command_tree(typer.main.get_command(build_app())))


def options(command: Any) -> dict[str, Any]:
    """The command's options: each of its spellings -> the option."""
    found = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {
        spelling: option for option in found for spelling in option.opts if spelling not in ("-h", "--help")
    }


def find_verb(verbs: dict[str, Any], words: list[str]) -> tuple[str, list[str]]:
    """The verb that a command line names, and the words after it."""
    for length in range(min(3, len(words)), 1, -1):
        if (name := " ".join(["autoglm", *words[1:length]])) in verbs:
            return name, words[length:]
    pytest.fail(f"there is no command {shlex.join(words)!r}")


def routes() -> set[str]:
    """``METHOD /path`` of everything that the service answers."""
    state = ServiceState(Settings(), cast("Any", object()), cast("Any", None), hub=cast("Any", object()))
    paths = create_app(state).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def error_classes() -> dict[str, type[errors.AutoGLMError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {name: cls for name, cls in members if cls.__module__ == errors.__name__}


# The command line


def test_every_command_has_a_section_and_every_section_is_a_command(verbs: dict[str, Any]) -> None:
    """docs/cli.md has exactly the commands that there are."""
    assert set(sections(DOCS / "cli.md", 2)) == set(verbs)


def test_every_option_has_a_row_and_every_row_is_an_option(verbs: dict[str, Any]) -> None:
    """The table of each command holds exactly its options, in all their spellings."""
    for name, text in sections(DOCS / "cli.md", 2).items():
        documented = {word for row in rows(text) for word in re.findall(r"(?<!\w)--?[a-z][a-z-]*", row[0])}
        assert documented == set(options(verbs[name])), name


def test_the_documented_defaults_are_those_of_the_options(verbs: dict[str, Any]) -> None:
    """Where an option has a value without being given, its row says which."""
    for name, text in sections(DOCS / "cli.md", 2).items():
        stated = {row[0].split()[0].strip("`,"): row[2] for row in rows(text)}
        for spelling, option in options(verbs[name]).items():
            is_value = isinstance(option.default, str | float | int | Path) and not isinstance(
                option.default, bool
            )
            if is_value and spelling in stated:
                assert str(option.default) in stated[spelling], f"{name} {spelling}"


def test_every_command_is_shown_at_work(verbs: dict[str, Any]) -> None:
    """Each section has an example of its own command."""
    for name, text in sections(DOCS / "cli.md", 2).items():
        shown = {find_verb(verbs, words)[0] for words in console(text) if words[0] == "autoglm"}
        assert name in shown


@every_page
def test_every_shown_command_line_is_accepted(page: Path, verbs: dict[str, Any]) -> None:
    """Each `autoglm ...` in a console block parses: the command, its options and their values."""
    for words in console(page.read_text()):
        if Path(words[0]).name == "autoglm":
            name, arguments = find_verb(verbs, words)
            verbs[name].make_context(name, arguments)


def test_no_page_of_the_command_line_names_an_option_that_does_not_exist(verbs: dict[str, Any]) -> None:
    """Every `--option` in the text of docs/cli.md is one of some command."""
    known = {spelling for command in verbs.values() for spelling in options(command)} | {
        "--help",
        "--version",
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose((DOCS / "cli.md").read_text())))
    assert named <= known


def test_every_environment_variable_of_the_command_line_is_documented() -> None:
    """The variables that the sources read are those that docs/cli.md lists."""
    sources = "".join(path.read_text() for path in (ROOT / "src/autoglm/cli").glob("*.py"))
    documented = (DOCS / "cli.md").read_text()
    assert set(re.findall(r"AUTOGLM_[A-Z]+", sources)) == set(re.findall(r"AUTOGLM_[A-Z]+", documented))


# The HTTP API


def test_every_route_has_a_section_and_every_section_is_a_route() -> None:
    """docs/api.md has exactly the routes that there are."""
    documented = {name for title in sections(DOCS / "api.md", 3) for name in quoted(title)}
    assert documented == routes()


def test_every_route_is_shown_with_curl() -> None:
    """Each section has a call of its own route."""
    for title, text in sections(DOCS / "api.md", 3).items():
        path = quoted(title)[0].split()[1]
        address = re.compile(
            r"localhost:8000" + re.sub(r"\\\{\w+\\\}", "[^/?]+", re.escape(path)) + r"(\?.*)?$"
        )
        called = [word for words in console(text) if words[0] == "curl" for word in words]
        assert any(address.search(word) for word in called), title


@every_page
def test_no_page_names_a_route_that_does_not_exist(page: Path) -> None:
    """Each `METHOD /path` in the text is a route, whatever stands for its parameters."""
    known = {re.sub(r"\{\w+\}", "{}", route) for route in routes()} | {"GET /docs", "GET /openapi.json"}
    text = prose(page.read_text())
    for method, path in re.findall(r"`(GET|POST|PATCH|PUT|DELETE) (/[^`\s?]*)`", text):
        assert f"{method} {re.sub(r'{[^}]+}', '{}', path)}" in known, f"{method} {path}"


def test_every_field_of_the_messages_is_documented() -> None:
    """What a request may hold and an answer holds stands in the section of its route."""
    documented = {title: set(quoted(text)) for title, text in sections(DOCS / "api.md", 3).items()}
    chat = documented["`POST /v1/chat/completions`"]
    check = documented["`POST /v1/model/update`"]
    events = documented["`POST /v1/model/events`"]
    assert set(ChatRequest.model_fields) <= chat
    assert {field.name for kind in (UpdateRequest, UpdateAnswer) for field in fields(kind)} <= check
    assert {field.name.removesuffix("_version") for field in fields(Event)} <= events


# Settings


def default_of(key: str) -> Any:
    value: Any = Settings()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def setting_rows() -> dict[str, list[str]]:
    """The rows of docs/configuration.md that describe a key; those on refused values have no type."""
    return {quoted(row[0])[0]: row for row in rows((DOCS / "configuration.md").read_text()) if len(row) == 4}


def test_every_setting_has_a_row_and_every_row_is_a_setting() -> None:
    """docs/configuration.md has exactly the keys that there are."""
    assert list(setting_rows()) == list(setting_keys())


@pytest.mark.parametrize("key", setting_keys())
def test_the_documented_default_of_a_setting_is_its_default(key: str) -> None:
    """The column says, as YAML, what an empty file gives."""
    assert yaml.safe_load(quoted(setting_rows()[key][2])[0]) == default_of(key)


def test_the_shipped_configuration_lists_every_key_with_its_default() -> None:
    """config.yaml changes nothing, so removing it changes nothing."""
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    flat = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in shipped.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert flat == set(setting_keys())
    assert load_settings(ROOT / "config.yaml") == Settings(directory=ROOT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("update.channel", "beta"),
    ],
)
def test_what_is_documented_as_refused_is_refused(key: str, value: str) -> None:
    """A setting whose feature is not here ends the start, and its row stands in the table of those."""
    text = sections(DOCS / "configuration.md", 2)["Refused in this version"]
    assert key in {quoted(row[0])[0] for row in rows(text)}
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_settings({section: {name: value}}, where="config.yaml", directory=ROOT)


# Errors


def test_every_error_has_a_row_with_its_code_and_status() -> None:
    """docs/errors.md has exactly the classes that there are, as the API answers them."""
    table = [row for row in rows((DOCS / "errors.md").read_text()) if len(row) == 5]
    documented = {quoted(row[0])[0]: (quoted(row[1])[0], int(row[2])) for row in table}
    assert documented == {
        name: (cls.code, problem_of(cls("what happened")).status) for name, cls in error_classes().items()
    }


def test_every_code_of_an_update_is_documented() -> None:
    """Each code that the device's sources use for an outcome has a row, and each row is such a code."""
    text = sections(DOCS / "errors.md", 2)["Codes of updates"]
    documented = {quoted(row[0])[0] for row in rows(text)}
    sources = "".join(path.read_text() for path in (ROOT / "src/autoglm/device").glob("*.py"))
    known = {name for name in vars(states) if name.startswith("E_")}
    used = {name for name in known if len(re.findall(rf"\b{name}\b(?! =)", sources)) > 1}
    assert used <= documented <= known


# The SDK


def test_every_setting_of_the_sdk_is_documented_with_its_default() -> None:
    """docs/device-sdk.md lists the fields of UpdateSettings."""
    text = sections(DOCS / "device-sdk.md", 2)["Schedule and conditions"]
    documented = {quoted(row[0])[0]: ast.literal_eval(quoted(row[1])[0]) for row in rows(text)}
    assert documented == {
        field.name: field.default for field in fields(UpdateSettings) if field.default is not MISSING
    }


def test_every_method_of_a_runtime_is_documented() -> None:
    """The page tells an app exactly which methods it has to write, and what a report holds."""
    text = sections(DOCS / "device-sdk.md", 2)["A runtime of your own"]
    methods = {name for name in vars(Runtime) if not name.startswith("_")}
    assert {quoted(row[0])[0].partition("(")[0] for row in rows(text)} == methods
    report = {name for name in vars(SelfTestReport) if not name.startswith("_")}
    assert report <= set(quoted(text))


# All pages


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """The file is there, and so is the heading behind the ``#``."""
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.relative_to(ROOT)} links to {target}"


@every_page
def test_python_in_a_page_compiles_and_imports_what_exists(page: Path) -> None:
    """Each block is a program, and every name that it imports from autoglm is there."""
    for block in blocks(page.read_text()):
        if block.language != "python":
            continue
        tree = ast.parse(block.body)
        compile(tree, str(page), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autoglm"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def same_python(body: str) -> str:
    return ast.dump(ast.parse(body))


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda text: [level for level, _ in headings(text)], id="sections"),
        pytest.param(lambda text: [block.language for block in blocks(text)], id="blocks"),
        pytest.param(console, id="commands"),
        pytest.param(
            lambda text: [same_python(b.body) for b in blocks(text) if b.language == "python"], id="python"
        ),
        pytest.param(lambda text: Counter(re.findall(r"\]\((?!README)([^)]+)\)", prose(text))), id="links"),
        pytest.param(lambda text: Counter(re.findall(r"@@\w+@@", text)), id="markers"),
    ],
)
def test_both_readmes_say_the_same(part: Callable[[str], object]) -> None:
    """Sections, commands, code and links of README.md and README.zh-CN.md are the same."""
    english, chinese = (part(readme.read_text()) for readme in READMES)
    assert english == chinese
