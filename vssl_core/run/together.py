"""Errors that one rank meets, raised on all of them: a rank that goes alone leaves the others waiting for it."""

from __future__ import annotations

import pickle

from vssl_core.distributed import gather_objects, world_size
from vssl_core.errors import VsslError


def raise_together(error: Exception | None) -> None:
    """Raise this rank's error, or else the first one that another rank met; nothing where none did.

    Every rank must call. What is not raised on purpose reaches the others as a `VsslError` that names the rank.
    """
    met = gather_objects(None if error is None else _portable(error))
    if error is not None:
        raise error
    for number, other in enumerate(met):
        if other is not None:
            raise other if isinstance(other, VsslError) else VsslError(f"rank {number} of {world_size()}: {other}")


def _portable(error: Exception) -> VsslError | str:
    """The error itself where it is ours and survives the way to another process, else a sentence."""
    if isinstance(error, VsslError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # a plugin's own class may refuse in any way
            pass
    return " ".join(f"{type(error).__name__}: {error}".split())
