"""Saccades and fixations: tell the parts of a video apart that the eye would jump between, and gather what is alike.

Lai et al., Self-supervised Video Representation Learning via Capturing Semantic Changes Indicated by Saccades, IEEE
TCSVT 2023, after the text of its preprint, Bringing Saccades and Fixations into Self-supervised Video Representation
Learning. Every clip shows one of five parts of the picture. A clip finds the row that stands for its video and part in
a memory bank, among other videos and the other parts of its own; the state at one moment predicts the state at another;
and in the last phase of the run all parts of all videos are clustered, and each clip finds its cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = (
    "Lai et al., Self-supervised Video Representation Learning via Capturing Semantic Changes Indicated by Saccades, "
    "IEEE TCSVT 2023"
)


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer saccades and fixations."""
    from vssl_saccades.objective import Saccades

    return Saccades
