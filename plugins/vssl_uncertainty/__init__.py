"""Uncertainty: each loss is divided by a variance that is learnt, so that noisy objectives weigh less.

Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, CVPR
2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Combiner, Run

PAPER = (
    "Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, "
    "CVPR 2018"
)


@hookimpl
def vssl_combine() -> type[Combiner]:
    """Offer the combiner."""
    from vssl_uncertainty.combiner import Uncertainty

    return Uncertainty


@hookimpl
def vssl_backward_end(run: Run) -> None:
    """Log the factor that each loss had in this step."""
    for name, factor in run.ensemble.combiner.factors().items():
        run.note(f"uncertainty/{name}", factor)
