"""The samples for Kotlin and Swift fit the core's header, and the glue for the Java virtual machine works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoglm import patch
from autoglm.patch.package import Dtype
from patch import tensors
from patch.laid_blocks import lay_out, write_every_kind

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "src" / "autoglm" / "patch" / "native"
ANDROID, IOS = ROOT / "examples" / "android", ROOT / "examples" / "ios"
JNI = Path(__file__).with_name("jni")
GLUE = ANDROID / "wpatch_jni.c"


def run(*command: str | Path) -> str:
    """Run a command and return what it printed; a failure shows its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def split_arguments(text: str, start: int) -> list[str]:
    """The arguments of the call whose opening bracket is at ``start``."""
    depth, arguments, begun = 0, list[str](), start + 1
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            arguments.append(text[begun:at])
            return [argument.strip() for argument in arguments if argument.strip()]
        if depth == 1 and text[at] == ",":
            arguments.append(text[begun:at])
            begun = at + 1
    raise AssertionError("a bracket is never closed")


def calls(path: Path) -> list[tuple[str, int]]:
    """The core's functions that a source calls, with the number of arguments."""
    text = without_comments(path.read_text())
    found = [(match[1], match.end() - 1) for match in re.finditer(r"\b(wpatch_\w+)\(", text)]
    return [(name, len(split_arguments(text, at))) for name, at in found]


def header_functions() -> dict[str, int]:
    """What wpatch.h declares, with the number of parameters."""
    text = without_comments((NATIVE / "wpatch.h").read_text())
    found = [(match[1], match.end() - 1) for match in re.finditer(r"WPATCH_API \w+ (wpatch_\w+)\(", text)]
    return {name: len([p for p in split_arguments(text, at) if p != "void"]) for name, at in found}


@pytest.mark.parametrize("sample", [GLUE, IOS / "Wpatch.swift"], ids=lambda path: path.name)
def test_each_call_of_the_core_is_in_its_header(sample: Path) -> None:
    """Every function that a sample calls is declared, and takes that many arguments."""
    declared = header_functions()
    assert declared["wpatch_decode"] == 6
    # A type's name in Swift is its initialiser without arguments.
    called = [(name, count) for name, count in calls(sample) if (name, count) != ("wpatch_part", 0)]
    assert {"wpatch_abi", "wpatch_expand_tables", "wpatch_decode"} <= {name for name, _ in called}
    for name, count in called:
        assert declared.get(name) == count, f"{name} with {count} arguments"


def test_the_fields_and_constants_that_swift_names_are_those_of_the_header() -> None:
    """Each field that Wpatch.swift sets is one of wpatch_part, and each constant is defined."""
    header = without_comments((NATIVE / "wpatch.h").read_text())
    swift = without_comments((IOS / "Wpatch.swift").read_text())
    (part,) = re.findall(r"typedef struct wpatch_part \{(.*?)\} wpatch_part;", header, re.DOTALL)
    fields = set(re.findall(r"(\w+);", part))
    assert set(re.findall(r"\bc\.(\w+) =", swift)) <= fields
    for name in set(re.findall(r"\bWPATCH_\w+", swift)):
        assert re.search(rf"\b{name}\b", header), name
    assert 'header "wpatch.h"' in (IOS / "module.modulemap").read_text()


def test_kotlin_declares_what_the_glue_defines() -> None:
    """Names and numbers of parameters agree, not counting the environment and the class."""
    glue, kotlin = without_comments(GLUE.read_text()), without_comments((ANDROID / "Wpatch.kt").read_text())
    name = r"Java_com_example_autoglm_Wpatch_(\w+)\("
    defined = {m[1]: len(split_arguments(glue, m.end() - 1)) - 2 for m in re.finditer(name, glue)}
    declared = {
        m[1]: len(split_arguments(kotlin, m.end() - 1)) for m in re.finditer(r"external fun (\w+)\(", kotlin)
    }
    assert defined == declared
    assert "package com.example.autoglm" in kotlin
    java = without_comments((JNI / "com/example/autoglm/Wpatch.java").read_text())
    for name, count in declared.items():
        at = java.index(f" {name}(") + len(name) + 1
        assert len(split_arguments(java, at)) == count


def test_the_glue_knows_the_size_of_every_type() -> None:
    """The table in the glue is that of the format."""
    text = without_comments(GLUE.read_text())
    table = text[text.index("element_bytes") : text.index("default:")]
    sizes: dict[str, int] = {}
    names: list[str] = []
    for name, size in re.findall(r"case WPATCH_(\w+):|return (\d+);", table):
        names += [name] if name else []
        if size:
            sizes |= dict.fromkeys(names, int(size))
            names = []
    assert sizes == {dtype.name: dtype.size for dtype in Dtype if dtype.name in sizes}
    header = (NATIVE / "wpatch.h").read_text()
    (dtypes,) = re.findall(r"enum wpatch_dtype \{(.*?)\};", without_comments(header), re.DOTALL)
    assert set(re.findall(r"WPATCH_(\w+)", dtypes)) == set(sizes)


@pytest.mark.needs("gcc")
def test_the_glue_compiles_strictly(tmp_path: Path) -> None:
    """C99 without a warning, against the functions of jni.h that it uses."""
    options = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fPIC", "-c")
    run("gcc", *options, f"-I{JNI}", f"-I{NATIVE}", GLUE, "-o", tmp_path / "glue.o")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The glue, built by its CMakeLists.txt against this machine's JDK."""
    home = Path(shutil.which("javac") or "").resolve().parents[1]
    build = tmp_path_factory.mktemp("jni")
    include = f"-DJNI_INCLUDE={home / 'include'};{home / 'include/linux'}"
    run("cmake", "-S", ANDROID, "-B", build, include, "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", build, "--target", "wpatch_jni")
    sources = [JNI / "ApplyBlock.java", JNI / "com/example/autoglm/Wpatch.java"]
    run("javac", "-d", build, *sources)
    return build / "libwpatch_jni.so"


@pytest.mark.needs("cmake", "javac", "java")
def test_java_applies_a_patch(library: Path, tmp_path: Path) -> None:
    """A real patch, block by block through the virtual machine: byte for byte the new file."""
    old, new = tensors.pair(tmp_path)
    patch.diff(old, new, tmp_path / "p")
    (tmp_path / "laid").mkdir()
    blocks = lay_out(old, tmp_path / "p", tmp_path / "laid")
    made = tmp_path / "laid" / "new"
    run("java", "-Xcheck:jni", "-cp", library.parent, "ApplyBlock", library, old, made, *blocks)
    assert made.read_bytes() == new.read_bytes()


@pytest.mark.needs("cmake", "javac", "java")
def test_java_decodes_blocks_of_every_kind(library: Path, tmp_path: Path) -> None:
    """All modes and element types, factors inline and apart; new scales are read from the file itself."""
    laid = write_every_kind(tmp_path)
    made = tmp_path / "made"
    made.write_bytes(laid.new.read_bytes())
    run("java", "-Xcheck:jni", "-cp", library.parent, "ApplyBlock", library, laid.base, made, *laid.blocks)
    assert made.read_bytes() == laid.new.read_bytes()


@pytest.mark.needs("cmake")
def test_python_on_android_loads_the_library_of_the_app(tmp_path: Path) -> None:
    """There the loader finds it by name among the app's own; a search path stands for that here."""
    run("cmake", "-S", NATIVE, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", tmp_path, "--target", "wpatch")
    program = (
        "import sys; sys.getandroidapilevel = lambda: 35; import autoglm.patch.core as core; "
        "core.find_library = None; core.decoding_tables([[32] * 64]); print(core._place())"
    )
    surroundings = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    assert done.stdout == "libwpatch.so\n", done.stderr
    lost = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ConfigError: the patch codec's core libwpatch.so cannot be loaded" in lost.stderr
