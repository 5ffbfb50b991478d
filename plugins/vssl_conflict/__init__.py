"""Conflict: whether objectives pull the shared features the same way, and how hard each of them pulls.

After Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, who call gradients conflicting where their
cosine is negative. It watches and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Observer

PAPER = "Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020"


@hookimpl
def vssl_observer() -> type[Observer]:
    """Offer the observer."""
    from vssl_conflict.observer import Conflict

    return Conflict
