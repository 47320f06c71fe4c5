"""The exception tree: drawn once, in its docstring, and true."""

from __future__ import annotations

import inspect
import re

from autoglm import errors


def test_the_drawing_holds_every_error_under_its_root() -> None:
    """Each class stands in the module's drawing, indented below its parent."""
    assert errors.__doc__ is not None
    depth = {
        match[2]: len(match[1])
        for match in re.finditer(r"^    ([│├└─ ]*)(\w+Error)", errors.__doc__, re.MULTILINE)
    }
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert {c.__name__ for c in classes} == set(depth)
    for error in classes:
        if error is not errors.AutoGLMError:
            assert depth[error.__name__] > depth[error.__bases__[0].__name__]


def test_every_error_has_a_code_of_its_own() -> None:
    """Codes are what events and logs carry, so no two errors share one."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len({c.code for c in classes}) == len(classes)
