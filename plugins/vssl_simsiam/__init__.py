"""SimSiam: one clip's projection predicts another's of the same video, whose gradient is stopped.

Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021. Neither negatives nor a slow teacher: the
predictor and the stopped gradient alone keep the projections from collapsing into one point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer SimSiam."""
    from vssl_simsiam.objective import SimSiam

    return SimSiam
