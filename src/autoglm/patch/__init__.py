"""Weight patches: the ``.wpatch`` codec.

A package made against an empty base is a full, losslessly compressed release; against a base it is a patch.
Applying either takes one call, and gives a verified release or an error, never something between.

    >>> from pathlib import Path
    >>> from autoglm import patch
    >>> patch.diff(Path("v1.2"), Path("v1.3"), Path("v1.3.wpatch"))          # doctest: +SKIP
    >>> patch.apply(Path("v1.2"), Path("v1.3.wpatch"), Path("new"))          # doctest: +SKIP
"""

from autoglm.patch.decoder import ApplyReport, Progress, apply
from autoglm.patch.encoder import DiffReport, diff
from autoglm.patch.header import HeaderPin
from autoglm.patch.inspection import FileInfo, PackageInfo, TensorInfo, inspect
from autoglm.patch.package import BaseFile

__all__ = [
    "ApplyReport",
    "BaseFile",
    "DiffReport",
    "FileInfo",
    "HeaderPin",
    "PackageInfo",
    "Progress",
    "TensorInfo",
    "apply",
    "diff",
    "inspect",
]
