"""MoCo: a query finds its key, made by a slow encoder from another clip of the video, among keys of earlier steps.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020 (v1), with the options of its
second version (the default) and of its third. The key encoder is an exponential moving average of backbone and
projector; its keys wait in a queue, so that the number of negatives does not depend on the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer MoCo."""
    from vssl_moco.objective import MoCo

    return MoCo
