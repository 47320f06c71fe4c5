"""How much of the machine training may take."""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Bound the CPU threads that this process computes with."""
    torch.set_num_threads(count)
