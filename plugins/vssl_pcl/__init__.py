"""PCL, Prototypical Contrastive Learning: a query finds its key, and the prototype of the cluster its video belongs to.

Li et al., Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021. MoCo, and after a warm-up
a second term: the whole training list is clustered by k-means at the start of epochs, several times with different
numbers of clusters. This is not Pretext-Contrastive Learning (Tao et al.), which video papers also call PCL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Objective

PAPER = (
    "Li et al., Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021 "
    "(not Pretext-Contrastive Learning)"
)


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer Prototypical Contrastive Learning."""
    from vssl_pcl.objective import Pcl

    return Pcl
