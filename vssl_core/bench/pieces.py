"""Rows on pieces of a step, each against the least or the usual way to do the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vssl_core.bench import memory_runs
from vssl_core.bench.apart import Maker, paired_apart
from vssl_core.bench.files import Files
from vssl_core.bench.rows import Row, Side, at_least, at_most, count, paired, several
from vssl_core.data.appearance import NORMALISATIONS, apply
from vssl_core.looks import Recipe, draw
from vssl_core.nets.backbones import build_backbone
from vssl_core.nets.ema import Ema
from vssl_core.run.optim import set_learning_rate

NORMALISATION = NORMALISATIONS["imagenet"]
TIMES = 5  # in one repetition
STRENGTHS = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue


def ema_vs_flat(files: Files, share: float = 1.0, backbone: str = "r2plus1d_18") -> Row:
    """A slow teacher moved, over one operation on all weights as one tensor."""
    net = build_backbone(backbone)
    teacher = Ema(backbone=net)
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    slow = flat.clone()
    move, least = (lambda: teacher.follow(0.99, backbone=net)), (lambda: slow.lerp_(flat, 0.01))
    times = paired(several(move, TIMES), several(least, TIMES), count(20, share))
    case = f"teacher of {backbone}, {flat.numel() / 1e6:.1f} M weights, over one flat tensor"
    return times.row("ema_vs_flat", case, at_most(1.2), per=TIMES, unit="ms a step")


def ema_vs_loop(files: Files, share: float = 1.0, backbone: str = "r3d_18") -> Row:
    """A slow teacher moved, over the loop on parameters that MoCo's released code has, and others after it."""
    net = build_backbone(backbone)
    teacher, slow = Ema(backbone=net), build_backbone(backbone).requires_grad_(False)

    def usual() -> None:
        for theirs, mine in zip(net.parameters(), slow.parameters(), strict=True):
            mine.data = mine.data * 0.99 + theirs.data * (1.0 - 0.99)

    def in_place() -> None:
        for theirs, mine in zip(net.parameters(), slow.parameters(), strict=True):
            mine.mul_(0.99).add_(theirs.data, alpha=1.0 - 0.99)

    move = several(lambda: teacher.follow(0.99, backbone=net), TIMES)
    times, careful = (paired(move, several(loop, TIMES), count(20, share)) for loop in (usual, in_place))
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    case = f"teacher of {backbone}, {millions:.1f} M weights, over slow = slow * m + fast * (1 - m) one by one"
    note = f"over a loop that works in place: {careful.row('', '', at_least(1)).value}"
    return times.row("ema_vs_loop", case, at_least(3), per=TIMES, unit="ms a step", note=note)


def optimizer_vs_fused(files: Files, share: float = 1.0, backbone: str = "r3d_18") -> Row:
    """The run's optimizer with its schedule and groups, over torch's fused one on the same tensors."""
    overrides = [f"backbone.name={backbone}", "batch_size=2", "optim.decay_norms=false"]
    run = memory_runs.build_run({"contrast": memory_runs.Contrast}, files.scratch / "optimizer", overrides)
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in run.ensemble.parameters()]
    for parameter in [*run.ensemble.parameters(), *theirs]:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optim = run.config.optim
    fused = torch.optim.SGD(theirs, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True)

    def ours() -> None:
        set_learning_rate(run.optimizer, run.schedule(run.progress), optim.lr)
        run.optimizer.step()

    times = paired(several(ours, TIMES), several(fused.step, TIMES), count(20, share))
    case = f"SGD of a run with {backbone}, {sum(p.numel() for p in theirs) / 1e6:.1f} M weights, over torch's fused SGD"
    return times.row("optimizer_vs_fused", case, at_most(1.1), per=TIMES, unit="ms a step")


def jitter_vs_torchvision(files: Files, share: float = 1.0, clips: int = 8) -> Row:
    """Colour of a batch, drawn and applied, against torchvision's clip by clip; both from bytes to normalised."""
    mine, other = (
        Maker(_our_jitter, (clips,), keeps_pages=True),
        Maker(_torchvision_jitter, (clips,), keeps_pages=False),
    )
    times = paired_apart(mine, other, count(10, share))
    case = f"brightness, contrast, saturation and hue of {clips} clips of 16x112x112, against ColorJitter"
    return times.row("jitter_vs_torchvision", case, at_least(25), per=clips * TIMES)


def _batch(clips: int) -> Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (clips, 16, 112, 112, 3), dtype=np.uint8))


def _our_jitter(clips: int) -> Side:
    recipe, generator, batch = Recipe(*STRENGTHS, jitter_probability=1.0), np.random.default_rng(0), _batch(clips)

    def once() -> Tensor:
        looks = [draw(recipe, generator, 16) for _ in range(clips)]
        parameters = {name: torch.from_numpy(np.stack([look[name] for look in looks])) for name in looks[0]}
        return apply(batch, parameters, recipe, NORMALISATION)

    return several(once, TIMES)


def _torchvision_jitter(clips: int) -> Side:
    from vssl_core.compat import mend

    mend()
    from torchvision.transforms import ColorJitter

    jitter, batch = ColorJitter(*STRENGTHS), _batch(clips)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.deviation))

    def once() -> list[Tensor]:
        frames = batch.permute(0, 1, 4, 2, 3)  # (B, 16, 3, 112, 112)
        return [(jitter(clip.float() / 255) - mean) / deviation for clip in frames]

    return several(once, TIMES)
