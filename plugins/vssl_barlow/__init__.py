"""Barlow Twins: each feature agrees with itself on another clip of the video, and with no other feature.

Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021. The cross-correlation of the
features of two clips, over the batch, is drawn towards the identity: no negatives, no teacher, no predictor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer Barlow Twins."""
    from vssl_barlow.objective import BarlowTwins

    return BarlowTwins
