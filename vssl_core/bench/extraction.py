"""The row on extraction: what `run.extract` adds to a loop that shows every video to the net."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from vssl_core.bench import memory_runs
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Row, at_most, count, paired
from vssl_core.data.batches import prepare
from vssl_core.data.clips import ClipLoader, Clips, Cutter
from vssl_core.data.raw import Visit
from vssl_core.joining import Group, complete, resolve
from vssl_core.requests import Request
from vssl_core.run.build import normalisation_of, recipe_of
from vssl_core.run.engine import Run
from vssl_core.run.extract import STREAM


def extraction_vs_loop(
    files: Files,
    share: float = 1.0,
    overrides: Sequence[str] = ("backbone.name=r3d_10", "clip.frames=8", "clip.size=64"),
) -> Row:
    """All videos through `run.extract`, over the same loader and net in a loop that does nothing else."""
    paths = files.originals[:8]
    settings = [f"batch_size={min(4, len(paths))}", "data.workers=0", *overrides]
    run = memory_runs.build_run({"contrast": memory_runs.Contrast}, files.scratch / "extraction", settings, paths)
    request = Request()
    bare = _BareExtraction(run, request)
    ours = partial(run.extract, request, lambda batch: {"vector": batch["clips"][0].features.vector})
    times = paired(lambda _: ours(), lambda _: bare.rows(), count(10, share))
    case = f"run.extract over a bare forward loop on the same loader, {len(paths)} videos, {', '.join(overrides)}"
    return times.row("extraction_vs_loop", case, at_most(1.1), per=len(paths), files=files.names(paths))


class _BareExtraction:
    """What somebody would write who wants one vector of each video."""

    def __init__(self, run: Run, request: Request) -> None:
        settings = run.config.clip_request()
        self.group = Group(complete(resolve(request, settings), settings), {f"{STREAM}/clips": 1})
        self.recipe, self.normalisation = recipe_of(run.config, self.group), normalisation_of(run.config)
        cutter = Cutter((self.group,), (self.recipe,), run.config.data.decoder)
        self.loader = ClipLoader(Clips(run.videos, cutter, run.config.seed, replace=False), 0)
        size = run.config.batch_size
        self.batches = [
            [Visit(0, 0, row) for row in range(start, min(start + size, len(run.videos)))]
            for start in range(0, len(run.videos), size)
        ]
        self.net = run.backbone

    @torch.no_grad()
    def rows(self) -> Tensor:
        """(N, D)"""
        self.net.eval()
        found = []
        for raw in self.loader.load(self.batches):
            ((clip,),) = prepare(raw, (self.group,), (self.recipe,), self.normalisation)
            *_, last = self.net(clip.clip).values()
            found.append(last.mean(dim=(2, 3, 4)))
        self.net.train()
        return torch.cat(found)
