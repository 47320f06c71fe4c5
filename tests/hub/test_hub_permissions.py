"""The table of roles: what is checked is what is documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from autoglm.hub.permissions import MEANINGS, ROLE_PERMISSIONS, ROLES, Permission, granted


def test_the_documentation_has_exactly_this_table(project_root: Path) -> None:
    """docs/access.md lists each permission, its meaning, and the roles that have it."""
    text = (project_root / "docs" / "access.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| permission |"))
    assert [cell.strip() for cell in head.split("|")[3:-1]] == list(ROLES)
    documented = {
        match[1]: (match[2].strip(), [cell.strip() == "yes" for cell in match[3].split("|")[:-1]])
        for match in re.finditer(r"^\| `(\w+:\w+)` \| ([^|]*) \|(.*)$", text, re.MULTILINE)
    }
    assert documented == {
        each: (MEANINGS[each], [each in ROLE_PERMISSIONS[role] for role in ROLES])
        for each in get_args(Permission)
    }


def test_every_role_but_device_reads_and_only_admin_gives_rights() -> None:
    """Whoever administers sees what there is; tokens and devices are the admin's alone."""
    for role in set(ROLES) - {"device"}:
        assert granted("viewer") <= granted(role)
    givers = {role for role in ROLES if granted(role) & {"tokens:write", "devices:write", "tokens:read"}}
    assert givers == {"admin"}


def test_scopes_narrow_and_never_widen() -> None:
    """A scope that the role has not is worth nothing, writing includes reading, no role is nothing."""
    assert granted("viewer", ("tokens:write", "devices:read")) == {"devices:read"}
    assert granted("admin", ("tokens:write",)) == {"tokens:read", "tokens:write"}
    assert granted("device", ("nonsense", "a:write", "")) == frozenset()
    assert granted("root") == frozenset()  # type: ignore[arg-type]
