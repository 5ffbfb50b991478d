"""Video retrieval by nearest neighbours: is any of the k most similar training videos of the query's class?

No training, no fine-tuning. The papers differ in where they normalise and centre; three lineages are reported
side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Evaluation

PAPER = "Xu et al., Self-Supervised Spatiotemporal Learning via Video Clip Order Prediction, CVPR 2019"


@hookimpl
def vssl_evaluation() -> type[Evaluation]:
    """Offer the retrieval protocol."""
    from vssl_retrieval.evaluation import Retrieval

    return Retrieval
