"""Linear probe: how well a linear classifier on frozen features tells the classes apart.

The backbone is frozen and in eval mode; the classifier sees the clips of the training videos, and a test
video's answer is the mean of its clips' probabilities. The last epoch counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Evaluation

PAPER = "Han et al., Self-supervised Co-training for Video Representation Learning, NeurIPS 2020"


@hookimpl
def vssl_evaluation() -> type[Evaluation]:
    """Offer the linear probe."""
    from vssl_linear.evaluation import Linear

    return Linear
