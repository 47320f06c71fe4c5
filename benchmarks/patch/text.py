"""Text to train on, of a kind that every machine has: two parts that share no file.

``base_text`` is the sources of Python's standard library, ``update_text`` this repository's own documents
and sources and the dialogues that the nano is trained on, in Chinese and English. Which bytes these are
depends on the Python and on the revision; nothing here depends on the machine otherwise.
"""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

from autoglm.training.dialogue import training_examples

ROOT = Path(__file__).resolve().parents[2]
_NUM_DIALOGUES = 6000
_LIMIT_BYTES = 12 << 20


def base_text() -> bytes:
    """Return the standard library's sources, its tests left out, in a seeded order."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(library.rglob("*.py")) if _is_source(file.relative_to(library))]
    random.Random(1).shuffle(files)
    return b"\n".join(file.read_bytes() for file in files)[:_LIMIT_BYTES]


def _is_source(path: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(path.parts)


def update_text() -> bytes:
    """Return the repository's words and code, and seeded dialogues."""
    files = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    files += sorted((ROOT / "src").rglob("*.py"))
    examples = training_examples(random.Random(7), _NUM_DIALOGUES, release="v1.3")
    dialogues = "\n".join(f"{e.question}\n{e.thought}\n{e.answer}\n" for e in examples)
    return b"\n".join([*(file.read_bytes() for file in files), dialogues.encode()])
