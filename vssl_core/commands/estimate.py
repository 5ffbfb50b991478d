"""What a sweep will cost: hours from a step that is measured here, and room on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from vssl_core.commands.dry_run import VIDEOS, Listing, find_list, made_up_step
from vssl_core.config import RunConfig
from vssl_core.run.build import Parts, build_parts, choose, choose_device
from vssl_core.run.optim import MOMENTS
from vssl_core.run.precision import autocast, sound_backward
from vssl_core.run.sweep import Cell

REPEATS = 3


@dataclass(frozen=True)
class Estimate:
    """What one run of a cell takes."""

    seconds: float  # of a step with the whole batch, decoding left out
    steps: int
    bytes: int  # that its folder holds in the end
    listing: Listing
    device: str

    @property
    def hours(self) -> float:
        """From the first step to the last, on one device like this."""
        return self.seconds * self.steps / 3600

    def __str__(self) -> str:
        if not self.steps:
            return "no training"
        return (
            f"{self.hours:.3g} hours a run: {self.steps:,} steps of {self.seconds:.3g} s; {self.bytes / 2**20:,.0f} MiB"
        )


def estimate(cell: Cell, given: bool) -> Estimate:
    """Measure a cell: a step on made-up videos, and the sizes of what is saved.

    On a GPU the step holds the whole batch; on a CPU, where time grows with the batch, two videos of it.
    """
    config = cell.config
    listing = find_list(choose(config), given)
    if not cell.trains:
        return Estimate(0.0, 0, 0, listing, "none")
    device = choose_device(config)
    torch.set_num_threads(config.device.threads)
    parts = build_parts(choose(config), listing.videos)
    held = config.batch_size // config.optim.accumulate if device.type == "cuda" else VIDEOS
    seconds = _measure(config, parts, device, held) * config.batch_size / held
    steps = config.epochs * (listing.videos // config.batch_size)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{config.device.threads} CPU threads"
    return Estimate(seconds, steps, _room(config, parts), listing, name)


def _measure(config: RunConfig, parts: Parts, device: torch.device, videos: int) -> float:
    """Seconds of forward and backward for so many videos: the median of a few, after one that warms up."""
    ensemble = parts.ensemble.to(device).train()
    step = made_up_step(config, parts, device, videos)
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        with autocast(device, config.device.precision):
            output = ensemble(step)
        with sound_backward(device, config.device.precision):
            output.total.backward()
        ensemble.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def _room(config: RunConfig, parts: Parts) -> int:
    """Bytes of the last checkpoint, of those that are kept, and of the backbone."""
    whole, backbone = _size(parts.ensemble), _size(parts.ensemble.backbone)
    trained = sum(parameter.nbytes for parameter in parts.ensemble.parameters() if parameter.requires_grad)
    checkpoint = whole + trained * MOMENTS[config.optim.name]
    every = config.checkpoint.keep_every_epochs
    kept = config.epochs // every if every else 0
    return checkpoint * (1 + kept) + backbone  # the last epoch's copy is a second name of the same file


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def summary(estimates: Mapping[str, Estimate], runs: Mapping[str, int]) -> Iterable[str]:
    """The lines below the cells: what all runs take together."""
    hours = sum(found.hours * runs[name] for name, found in estimates.items())
    room = sum(found.bytes * runs[name] for name, found in estimates.items())
    trained = [found for found in estimates.values() if found.steps]
    if trained:
        first = trained[0]
        yield f"estimate: {hours:.3g} hours of one device in all ({first.device}; measured here, on made-up clips)"
        yield f"          {room / 2**30:.3g} GiB on the disk; for {first.listing.told}"
        yield "          decoding, evaluations and the start of each process are not in it"
