"""Spatio-temporal statistics: where a clip moves most and which way, where its colours change most, and which they are.

Fourteen labels of motion and thirteen of colour are read off each clip, for three ways to divide it into blocks and for
the clip as a whole; two heads regress them. Motion is that of boundaries, where the flow changes from pixel to pixel,
so that a camera that moves evenly does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_statistics.objective import Statistics

PAPER = (
    "Jiangliu Wang, Jianbo Jiao, Linchao Bao, Shengfeng He, Yunhui Liu, Wei Liu, Self-supervised Spatio-temporal "
    "Representation Learning for Videos by Predicting Motion and Appearance Statistics, CVPR 2019; with Wei Liu as "
    "Self-supervised Video Representation Learning by Uncovering Spatio-temporal Statistics, TPAMI 2021"
)


@hookimpl
def vssl_objective() -> type[Statistics]:
    """Offer the regression of motion and appearance statistics."""
    from vssl_statistics.objective import Statistics

    return Statistics
