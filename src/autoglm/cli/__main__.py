"""``python -m autoglm.cli``, the same as ``autoglm``."""

from autoglm.cli import main

main()
