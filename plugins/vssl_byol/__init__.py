"""BYOL: one clip's projection predicts the projection that a slow teacher makes of another clip of the same video.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020. There are no negatives: the teacher is an exponential moving
average of backbone and projector, gets no gradient, and moves once after each optimizer step. As the contrastive part
of CSTP it is called with a constant momentum of 0.998 and a mixing weight of 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Grill et al., Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning, NeurIPS 2020"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer BYOL."""
    from vssl_byol.objective import Byol

    return Byol
