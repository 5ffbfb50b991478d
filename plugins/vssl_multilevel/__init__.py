"""Multi-level feature optimisation (MLRep): what the last stage knows of videos is taught to the stages below it.

Two halves of one span are told apart from other videos and assigned to prototypes, on the high level. Both together
say which videos are alike: a graph, towards which the low and the middle level are drawn. Features of these levels are
reversed and shuffled in time and must differ from what they were; and each timestamp is found again in an overview.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_multilevel.objective import MultiLevel

PAPER = (
    "Qian et al., Enhancing Self-supervised Video Representation Learning via Multi-level Feature Optimization, "
    "ICCV 2021"
)


@hookimpl
def vssl_objective() -> type[MultiLevel]:
    """Offer multi-level feature optimisation."""
    from vssl_multilevel.objective import MultiLevel

    return MultiLevel
