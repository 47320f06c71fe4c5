"""How far a package is from what its own context model could not go below.

The bound is the conditional entropy of every tensor's tokens in their contexts, with the tokens' raw bits and
what is coded without a model, as the package's header states it. What is above it are the header with its
tables, the sharing of tables between tensors, the rounding of frequencies to 11 bits, and the ends of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoglm import patch


@dataclass(frozen=True)
class Distance:
    """A package beside its bound, in bytes.

    Attributes:
        package: its size.
        entropy: the bound.
        header: what is not tensors' data: names, tables, hashes.
    """

    package: int
    entropy: int
    header: int

    @property
    def share(self) -> float | None:
        """How much larger the package is than its bound; 0.03 is 3 %; None where there is no bound."""
        return self.package / self.entropy - 1 if self.entropy else None


def distance(package: Path) -> Distance:
    """Read a package's distance from its header."""
    info = patch.inspect(package)
    entropy = sum(getattr(tensor, "entropy_bytes", 0) for tensor in info.tensors)
    return Distance(info.package_bytes, entropy, info.header_length)
