"""Every video once, in index order, through the backbone or a plugin's own encoder.

For clustering, curricula and evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vssl_core.data.appearance import Normalisation
from vssl_core.data.batches import prepare
from vssl_core.data.clips import ClipLoader, Clips, Cutter
from vssl_core.data.raw import RawBatch, Visit
from vssl_core.data.videos import Videos
from vssl_core.distributed import apart, gather_objects, rank, world_size
from vssl_core.errors import PluginError
from vssl_core.joining import Group
from vssl_core.looks import Recipe
from vssl_core.nets.batchnorm import SyncBatchNorm, normalisations, still
from vssl_core.run.checkpoint import generators, restore_generators
from vssl_core.run.together import raise_together
from vssl_core.views import Batch, Features, View
from vssl_core.windows import Sample

STREAM = "extract"
APART = (
    "run.extract: encode exchanges something with other ranks (gather, mean), which have other numbers of videos; "
    "exchange what run.extract gives, where it is needed at all: it is equal on every rank"
)


@dataclass(frozen=True)
class Extractor:
    """What an extraction needs to know of the run it is part of."""

    videos: Videos
    group: Group  # one slot, 'extract/clips'
    recipe: Recipe
    normalisation: Normalisation
    decoder: str
    seed: int
    workers: int
    batch_size: int  # videos at a time, on each rank
    device: torch.device

    def run(
        self,
        backbone: nn.Module,
        encode: Callable[[Batch], Mapping[str, Tensor]],
        *,
        train: bool = False,
        modules: Sequence[nn.Module] = (),
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """{name: (N, ...)} of `encode` for every readable video, with 'index' (N,) and 'unreadable' (their numbers),
        equal on all ranks.

        In eval mode unless `train`; it leaves no trace (`at_rest`). `advance` hears how many videos are done.
        `encode` must not exchange with other ranks, which have other numbers of videos: `PluginError`, as for rows
        that are not one for each video. What it raises on one rank is raised on all.
        """
        if train and world_size() > 1 and any(_spans_ranks(root) for root in (backbone, *modules)):
            raise PluginError(
                "run.extract: train=True takes the batch statistics of each rank's own videos, which "
                "device.sync_batch_norm forbids; extract in eval mode"
            )
        parts: list[dict[str, Tensor]] = []
        error = None
        with at_rest((backbone, *modules), train):
            try:
                for raw in self._batches():
                    if len(raw.index):
                        batch = self._batch(raw.to(self.device), backbone)
                        with apart(APART):
                            found = _checked(encode(batch), len(raw.index))
                        parts.append({"index": raw.index, **{name: rows.cpu() for name, rows in found.items()}})
                    if advance:
                        advance(len(raw.index))
            except Exception as raised:
                error = raised
        raise_together(error)
        return self._joined(parts)

    def _batches(self) -> Iterator[RawBatch]:
        rows = np.array_split(np.arange(len(self.videos)), world_size())[rank()]
        dataset = Clips(self.videos, Cutter((self.group,), (self.recipe,), self.decoder), self.seed, replace=False)
        visits = [Visit(0, 0, int(row)) for row in rows]
        loader = ClipLoader(dataset, self.workers)
        try:
            yield from loader.load(
                [visits[start : start + self.batch_size] for start in range(0, len(visits), self.batch_size)]
            )
        finally:
            loader.close()

    def _batch(self, raw: RawBatch, backbone: nn.Module) -> Batch:
        (clips,) = prepare(raw, (self.group,), (self.recipe,), self.normalisation)
        views = tuple(
            View(clip.clip, clip.tail, clip.windows, clip.measures, features_of(backbone, clip.clip)) for clip in clips
        )
        samples = [Sample(self.seed, visit.epoch, visit.visit, visit.video) for visit in raw.visits]
        return still_batch(STREAM, views, raw.index, samples, backbone)

    def _joined(self, parts: list[dict[str, Tensor]]) -> dict[str, Any]:
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
        whole = [part for part in gather_objects(own) if part]
        result: dict[str, Any] = (
            {name: torch.cat([part[name] for part in whole]) for name in whole[0]}
            if whole
            else {"index": torch.zeros(0, dtype=torch.long)}
        )
        read = set(result["index"].tolist())
        result["unreadable"] = [number for number in range(len(self.videos)) if number not in read]
        return result


@contextmanager
def at_rest(modules: Sequence[nn.Module], train: bool = False) -> Iterator[None]:
    """No gradient, eval mode unless `train`, and no trace afterwards in modes, running statistics and generators."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    before = generators()
    for module, _ in modes:
        module.training = train
    try:
        with torch.no_grad(), still([norm for root in modules for norm in normalisations(root)]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        restore_generators(before)


def still_batch(
    name: str, views: Sequence[View], index: Tensor, samples: Sequence[Sample], backbone: nn.Module
) -> Batch:
    """What is seen outside of training: `batch["clips"]` are the views, and it stands at the start of a run."""
    return Batch(
        name,
        {"clips": tuple(views)},
        index,
        list(samples),
        epoch=0,
        progress=0.0,
        encode=lambda clip, statistics: features_of(backbone, clip),
    )


def seen_by(batch: Batch, name: str, view: View, backbone: nn.Module) -> Batch:
    """One clip of a batch as the objective of this name sees it, with the features of a backbone of its own."""
    return still_batch(name, (view,), batch.index, batch._samples, backbone)


def with_features(view: View, backbone: nn.Module) -> View:
    """The same clip, with the features of another backbone."""
    return replace(view, features=features_of(backbone, view.clip))


def features_of(backbone: nn.Module, clip: Tensor) -> Features:
    """What a backbone makes of a clip (B,3,T,H,W), once it is asked for."""
    return Features(lambda: {name: stage.float() for name, stage in backbone(clip).items()})


def _spans_ranks(root: nn.Module) -> bool:
    return any(isinstance(module, SyncBatchNorm | nn.SyncBatchNorm) for module in root.modules())


def _checked(found: Mapping[str, Tensor], rows: int) -> Mapping[str, Tensor]:
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"run.extract: '{name}' must have a row for each of the {rows} videos, got {got}")
    return found
