"""PCGrad: what of an objective's gradient works against another objective is cut away before they are added.

Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Combiner

PAPER = "Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020"


@hookimpl
def vssl_combine() -> type[Combiner]:
    """Offer the combiner."""
    from vssl_pcgrad.combiner import ProjectConflicting

    return ProjectConflicting
