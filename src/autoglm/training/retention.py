"""Update retention: the share of a fine-tune's gain that survives quantisation or a merge.

Mean squared error says nothing about it: rounding every change of a weight away is a small error and deletes
the update. So the loss on held-out items is compared before and after, in floats and as shipped::

    retention = (loss(base shipped) - loss(new shipped)) / (loss(base float) - loss(new float))

    >>> Retention(base_float=2.0, new_float=1.0, base_shipped=2.1, new_shipped=1.12).retained
    0.98
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

# The loss of a model with these weights, nats a token.
Evaluate = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True)
class Retention:
    """Losses of the base and of the update, in floats and as shipped.

    Attributes:
        base_float: of the weights that the fine-tune began with.
        new_float: of the fine-tune itself.
        base_shipped: of the base's release.
        new_shipped: of the new release.
    """

    base_float: float
    new_float: float
    base_shipped: float
    new_shipped: float

    @property
    def retained(self) -> float:
        """The share of the gain that is kept; not a number where nothing was gained."""
        gain = self.base_float - self.new_float
        kept = self.base_shipped - self.new_shipped
        return round(kept / gain, 6) if gain > 0 else math.nan

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for ``--json``; ``retained`` is None where nothing was gained."""
        share = self.retained
        return {
            "base_float": self.base_float,
            "new_float": self.new_float,
            "base_shipped": self.base_shipped,
            "new_shipped": self.new_shipped,
            "retained": None if math.isnan(share) else share,
        }
