"""Rotation prediction: tell by how many quarter turns a clip was turned.

Every clip is turned counter-clockwise by 0, 90, 180 or 270 degrees as a whole, and a classifier on its features tells
by how much. To know which way is up, the net must know what it sees and how it moves. One of the pretext tasks of CSTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_rotation.objective import Rotation

PAPER = (
    "Longlong Jing, Xiaodong Yang, Jingen Liu, Yingli Tian, "
    "Self-Supervised Spatiotemporal Feature Learning via Video Rotation Prediction, arXiv 2018"
)


@hookimpl
def vssl_objective() -> type[Rotation]:
    """Offer rotation prediction."""
    from vssl_rotation.objective import Rotation

    return Rotation
