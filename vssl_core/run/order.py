"""The order of videos in an epoch: a plugin's where one offers it, else a shuffle of the whole list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vssl_core.distributed import apart, broadcast, rank
from vssl_core.errors import PluginError, VsslError
from vssl_core.windows import Sample

APART = "it asks something of other ranks (run.extract, gather), which do not hear it; do that in vssl_epoch_start"

if TYPE_CHECKING:
    from vssl_core.run.engine import Run


def draw_order(run: Run) -> np.ndarray:
    """(n,) int64 videos of this epoch, in order, the same on every rank; decided on rank 0.

    Raises `PluginError` for two offers, or for one that cannot be: on every rank.
    """
    order = broadcast(_decided(run) if rank() == 0 else None)
    if isinstance(order, VsslError):
        raise order
    return order


def _decided(run: Run) -> np.ndarray | VsslError:
    try:
        offers = {name: order for name, order in _offers(run) if order is not None}
        if len(offers) > 1:
            raise PluginError(f"plugins: {' and '.join(offers)} both decide the order of an epoch; choose one of them")
        for name, order in offers.items():
            return _checked(name, order, len(run.videos), run.config.batch_size)
        return Sample(run.config.seed, run.epoch, 0, -1).generator("order").permutation(len(run.videos))
    except VsslError as error:
        return error


def _offers(run: Run) -> list[tuple[str, Any]]:
    """Each plugin's answer beside its name, which pluggy's own call would not tell."""
    offers = []
    for hook in run.manager.hook.vssl_epoch_order.get_hookimpls():
        name = hook.plugin_name.removesuffix("/objective")
        try:
            with apart(APART):
                offers.append((name, hook.function(*[run for _ in hook.argnames])))
        except Exception as error:
            raise PluginError(f"plugin '{name}': vssl_epoch_order raised {type(error).__name__}: {error}") from error
    return offers


def _checked(name: str, order: Any, videos: int, batch_size: int) -> np.ndarray:
    order = np.asarray(order)
    if order.ndim != 1 or not (len(order) == 0 or np.issubdtype(order.dtype, np.integer)):
        raise PluginError(
            f"plugin '{name}': vssl_epoch_order must give a flat row of whole numbers, got {order.dtype} of "
            f"shape {order.shape}"
        )
    if len(order) < batch_size:
        raise PluginError(
            f"plugin '{name}': vssl_epoch_order gives {len(order)} videos, less than one batch of {batch_size}"
        )
    if order.min() < 0 or order.max() >= videos:
        wrong = next(int(video) for video in order if not 0 <= video < videos)
        raise PluginError(f"plugin '{name}': vssl_epoch_order gives video {wrong}; the list has 0 to {videos - 1}")
    return order.astype(np.int64)
