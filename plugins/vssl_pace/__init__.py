"""Pace prediction: tell how fast a clip is played, with two optional contrasts.

Clips are sampled at different paces and a classifier on their features tells at which one. To know what is too fast,
the net must know what it sees and how that moves by itself. A contrast can draw together clips of one video (same
context) or of one pace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_pace.objective import Pace

PAPER = (
    "Jiangliu Wang, Jianbo Jiao, Yun-Hui Liu, "
    "Self-supervised Video Representation Learning by Pace Prediction, ECCV 2020"
)


@hookimpl
def vssl_objective() -> type[Pace]:
    """Offer pace prediction."""
    from vssl_pace.objective import Pace

    return Pace
