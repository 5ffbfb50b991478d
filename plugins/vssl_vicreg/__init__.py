"""VICReg: clips of a video agree, every feature varies over the batch, and no two features vary together.

Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022. The three
terms keep features from collapsing without negatives, teacher, predictor or normalisation of the outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer VICReg."""
    from vssl_vicreg.objective import VicReg

    return VicReg
