"""SwAV: one clip predicts to which prototypes another clip of the video was assigned, all prototypes being used evenly.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020. Assignments are
made online by Sinkhorn-Knopp over the batch of all ranks and a queue of earlier rows; prototypes are learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer SwAV."""
    from vssl_swav.objective import SwAV

    return SwAV
