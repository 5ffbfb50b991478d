"""Spatio-temporal overlap rate prediction (STOR), the pretext task of CSTP.

Two clips of one video are cut so that they share a known part of their area and a known part of their span. From the
features of both, one head tells the spatial overlap rate and another the temporal one. To tell how alike two clips are,
the net must see where and when things are, and not only what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_stor.objective import Stor

PAPER = (
    "Yujia Zhang, Lai-Man Po, Xuyuan Xu, Mengyang Liu, Yexin Wang, Weifeng Ou, Yuzhi Zhao, Wing-Yin Yu, "
    "Contrastive Spatio-Temporal Pretext Learning for Self-supervised Video Representation, AAAI 2022"
)


@hookimpl
def vssl_objective() -> type[Stor]:
    """Offer overlap rate prediction."""
    from vssl_stor.objective import Stor

    return Stor
