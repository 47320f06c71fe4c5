"""What an interrupted evaluation had scored: the next one with the same questions goes on behind it.

A section's scores are written as soon as it is done, and removed when the evaluation that wants them ends:
nothing is left that could be taken for the scores of later code.

    >>> KeptScores(cache, subject.digest, "v1.2", seed=7, items=None).add("identity", scores)
    ... # doctest: +SKIP
    >>> KeptScores(cache, subject.digest, "v1.2", seed=7, items=None).sections.keys()   # doctest: +SKIP
    dict_keys(['identity'])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoglm import __version__
from autoglm.files import make_directory, write_durably
from autoglm.training.evaluation.items import Score
from autoglm.training.intents import Release


class KeptScores:
    """Scores by section of one model, release, seed and number of items.

    Attributes:
        path: the file that holds them; there is none while nothing is kept.
        sections: what is kept.
    """

    def __init__(self, cache: Path, digest: str, release: Release, *, seed: int, items: int | None) -> None:
        """Read what an interrupted evaluation left; a damaged file counts as none.

        Args:
            cache: directory of the evaluation.
            digest: tells the model from others.
            release: whose answers are right.
            seed: of the items.
            items: about how many items a kind has; None for the usual numbers.
        """
        asked = f"{__version__} {release} {seed} {items} {digest}"
        name = hashlib.sha256(asked.encode()).hexdigest()[:16]
        self.path = cache / "interrupted" / f"{name}.json"
        self.sections: dict[str, dict[str, Score]] = {}
        try:
            found = json.loads(self.path.read_bytes())
            self.sections = {
                section: {kind: Score(**fields) for kind, fields in scores.items()}
                for section, scores in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def add(self, section: str, scores: Mapping[str, Score]) -> None:
        """Keep a section's scores.

        Raises:
            StorageError: the disk refuses.
        """
        self.sections[section] = dict(scores)
        self._write()

    def drop(self, sections: Iterable[str]) -> None:
        """Remove what has been told.

        Raises:
            StorageError: the disk refuses.
        """
        for section in sections:
            self.sections.pop(section, None)
        self._write()

    def _write(self) -> None:
        if not self.sections:
            self.path.unlink(missing_ok=True)
            return
        plain = {
            section: {kind: score.to_dict() for kind, score in scores.items()}
            for section, scores in self.sections.items()
        }
        make_directory(self.path.parent)
        write_durably(self.path, json.dumps(plain).encode())
