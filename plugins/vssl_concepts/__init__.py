"""Static and dynamic concepts: a video agrees with a still frame on what it shows, with differences on what moves.

Qian et al., Static and Dynamic Concepts for Self-supervised Video Representation Learning, ECCV 2022. Prototypes of
both kinds give a code of what is there; attention gathers the local features of each concept, and those that are there
in both inputs are contrasted. As an evaluation it draws where single concepts look, and how alike classes are in either
kind of concept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vssl_core import hookimpl

if TYPE_CHECKING:
    from vssl_core import Evaluation, Objective

PAPER = "Qian et al., Static and Dynamic Concepts for Self-supervised Video Representation Learning, ECCV 2022"


@hookimpl
def vssl_objective() -> type[Objective]:
    """Offer the concepts to train."""
    from vssl_concepts.objective import Concepts

    return Concepts


@hookimpl
def vssl_evaluation() -> type[Evaluation]:
    """Offer the drawings of what was learned."""
    from vssl_concepts.drawings import Drawings

    return Drawings
