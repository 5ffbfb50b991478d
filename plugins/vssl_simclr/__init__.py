"""SimCLR: two clips of one video attract each other, all other clips of the step repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020. Each of the
2B clips must find its partner among the 2B - 1 others; under several ranks the others are those of all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer SimCLR."""
    from vssl_simclr.objective import SimClr

    return SimClr
