"""`vssl train --dry-run`: the plan, the size and the cost of a run, counted by running one step on made-up videos."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from vssl_core.config import RunConfig
from vssl_core.data import decode
from vssl_core.data.batches import prepare
from vssl_core.data.clips import Clips, Cutter
from vssl_core.data.demo import demo_scenes, write_video
from vssl_core.data.raw import Visit, collate
from vssl_core.data.videos import Videos
from vssl_core.errors import VsslError
from vssl_core.joining import describe
from vssl_core.nets.backbones import Backbone, fingerprint
from vssl_core.requests import Request
from vssl_core.run.build import Chosen, Parts, build_parts, check_batch, normalisation_of, open_data
from vssl_core.run.ensemble import StepInput
from vssl_core.run.optim import MOMENTS
from vssl_core.windows import Sample

VIDEOS = 2  # made up: enough for batch statistics and negatives
NOMINAL_LIST = 10_000  # videos, at least, that sizes are resolved for where no list can be read
LONGEST_LIST = 10_000_000  # ... and at most: a larger number among the options is no size of a list


@dataclass(frozen=True)
class Listing:
    """The length of the training list that sizes are resolved for, and where it is from."""

    videos: int
    told: str


@dataclass(frozen=True)
class Count:
    """What one step did."""

    online: int
    teacher: int
    decodes: float  # per video
    activations: int  # bytes kept for the backward pass, per video


def show(chosen: Chosen, given: bool = False) -> int:
    """Print what would be trained; writes nothing and needs no data.

    Where data is `given` on the command line, or has a root in the configuration, its list is read if it can be.
    """
    console = Console()
    listing = find_list(chosen, given)
    parts = build_parts(chosen, listing.videos)
    count = count_step(chosen.config, parts)
    console.print(_groups(parts))
    for refusal in parts.plan.refusals:
        console.print(
            f"{refusal.slot} stands apart from {refusal.group}: {refusal.field} is {refusal.given} there, "
            f"{refusal.wants} here",
            highlight=False,
        )
    console.print(_cost(chosen.config, parts, count, listing))
    print(
        f"backbone forwards per step: {count.online + count.teacher} ({count.online} online, {count.teacher} "
        f"teacher); decodes per video: {count.decodes:g}"
    )
    return 0


def find_list(chosen: Chosen, given: bool) -> Listing:
    """The length of the list that a run would train on; a nominal one where no data is given or it cannot be read.

    Raises `ConfigError` where the true list is shorter than a batch.
    """
    config = chosen.config
    if not given and config.data.root is None:
        demo = f", where a run would take the demo's {_length(chosen)}" if config.data.source == "demo" else ""
        return _nominal(config, f"no data is given{demo}")
    place = f"{config.data.source}:{config.data.root}" if config.data.root else config.data.source
    try:
        videos = _length(chosen)
    except (VsslError, OSError) as error:
        return _nominal(config, f"{place} cannot be read ({error})")
    check_batch(config, videos)
    return Listing(videos, f"{videos:,} videos of {place}")


def _length(chosen: Chosen) -> int:
    if chosen.config.data.source == "demo":  # which would be written
        return sum(scene.side == "train" for scene in demo_scenes())
    return len(open_data(chosen.config, chosen.manager).train)


def _nominal(config: RunConfig, reason: str) -> Listing:
    """As many videos as a step holds, or as the largest whole number among the options asks for: a queue fits."""
    most = min(max([NOMINAL_LIST, config.batch_size, *_whole_numbers(config.plugins)]), LONGEST_LIST)
    return Listing(most, f"{reason}; sizes are those for {most:,} videos")


def _whole_numbers(tree: Any) -> Iterator[int]:
    if isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _whole_numbers(value)
    elif isinstance(tree, int):
        yield int(tree)


def _groups(parts: Parts) -> Table:
    table = Table(
        "group", "read by", "clips", "frames", "size", "geometry", "appearance", title="clips that are shared"
    )
    for number, group in enumerate(parts.plan.groups):
        request = group.request
        readers = ", ".join(f"{slot} ({count})" for slot, count in group.members.items())
        geometry = "; ".join(
            f"{field} {_short(describe(getattr(request, field)))}"
            for field in ("strides", "placement", "boxes", "flips", "turns")
        )
        table.add_row(
            str(number),
            readers,
            str(request.least),
            _frames(request),
            str(request.size),
            geometry,
            _short(describe(request.appearance)),
        )
    return table


def _frames(request: Request) -> str:
    """The frames of a clip, or of each where they differ, and of the tail."""
    lengths = request.lengths if len(set(request.lengths)) > 1 else request.lengths[:1]
    return ", ".join(f"{length}+{request.tail}" if request.tail else str(length) for length in lengths)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(
            _short(inner)
            if isinstance(inner, dict) or key in ("choices", "probability")
            else f"{key}={_short(inner)}"
            if inner != {}
            else key
            for key, inner in value.items()
        )
    return str(value).replace(" ", "")


def _cost(config: RunConfig, parts: Parts, count: Count, listing: Listing) -> Table:
    backbone = parts.ensemble.backbone
    card = fingerprint(backbone, config.clip.frames, config.clip.size)
    table = Table("what", "how much", title="cost")
    table.add_row("training list", escape(listing.told))
    table.add_row(
        f"backbone {config.backbone.name}",
        f"{card['parameters']:,} parameters, {card['flops'] / 1e9:.3g} GFLOPs (multiply-adds) per clip",
    )
    for name, objective in parts.ensemble.objectives.items():
        trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
        held = sum(tensor.numel() for tensor in objective.state_dict().values()) - trained
        table.add_row(f"objective {name}", f"{trained:,} parameters trained, {held:,} numbers held")
    table.add_row("memory of one rank", _memory(config, parts, count))
    return table


def _memory(config: RunConfig, parts: Parts, count: Count) -> str:
    trained = sum(parameter.numel() for parameter in parts.ensemble.parameters() if parameter.requires_grad)
    whole = sum(tensor.numel() for tensor in parts.ensemble.state_dict().values())
    moments = MOMENTS[config.optim.name]
    videos = config.batch_size // config.optim.accumulate
    state, activations = 4 * (whole + trained * (1 + moments)), count.activations * videos
    return (
        f"about {(state + activations) / 2**30:.2f} GiB: {state / 2**20:.0f} MiB of weights, gradients and moments, "
        f"{activations / 2**20:.0f} MiB of activations for {videos} videos in float32"
    )


# Counting -------------------------------------------------------------------------------------------------------------


def count_step(config: RunConfig, parts: Parts) -> Count:
    """Run one step on made-up videos, and count."""
    with _counted_decodes() as decodes:
        step = made_up_step(config, parts)
    kept = Counter[str]()
    with (
        _counted_forwards(parts.ensemble) as forwards,
        torch.autograd.graph.saved_tensors_hooks(_weigh(kept, parts.ensemble), lambda tensor: tensor),
    ):
        parts.ensemble.train()
        parts.ensemble(step)
    online = forwards[id(parts.ensemble.backbone)]
    return Count(online, sum(forwards.values()) - online, decodes["reads"] / VIDEOS, kept["bytes"] // VIDEOS)


def made_up_step(
    config: RunConfig, parts: Parts, device: torch.device | None = None, videos: int = VIDEOS
) -> StepInput:
    """What the ensemble gets in a step, from made-up videos; more than two repeat the clips of two."""
    frames = 16 * config.clip.frames
    numbers = [number % VIDEOS for number in range(videos)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [_made_up(Path(folder) / f"{number}.mp4", frames, number) for number in range(VIDEOS)]
        listed = Videos.build(paths, None, (), folder)
        dataset = Clips(listed, Cutter(parts.plan.groups, parts.recipes, config.data.decoder), config.seed)
        items = [dataset[Visit(0, 0, number)] for number in range(VIDEOS)]
        raw = collate([items[number] for number in numbers]).to(device or torch.device("cpu"))
    samples = [Sample(config.seed, 0, 0, number) for number in numbers]
    clips = prepare(raw, parts.plan.groups, parts.recipes, normalisation_of(config))
    weights = {name: config.weight(name, config.epochs) or 1.0 for name in parts.ensemble.objectives}
    return StepInput(clips, raw.index, samples, weights, config.seed, 0, 0, 0.0)


def _made_up(path: Path, frames: int, seed: int) -> str:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    write_video(path, (np.roll(noise, frame, axis=1) for frame in range(frames)))
    return str(path)


@contextmanager
def _counted_decodes() -> Iterator[Counter[str]]:
    counted, read = Counter[str](), decode.read

    def counting(*arguments: Any, **options: Any) -> decode.Frames:
        counted["reads"] += 1
        return read(*arguments, **options)

    decode.read = counting
    try:
        yield counted
    finally:
        decode.read = read


@contextmanager
def _counted_forwards(ensemble: nn.Module) -> Iterator[Counter[int]]:
    counted = Counter[int]()
    handles = [
        module.register_forward_pre_hook(lambda module, _: counted.update([id(module)]))
        for module in ensemble.modules()
        if isinstance(module, Backbone)
    ]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def _weigh(kept: Counter[str], ensemble: nn.Module) -> Any:
    held = {tensor.data_ptr() for tensor in (*ensemble.parameters(), *ensemble.buffers())}  # a queue is no activation
    seen: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in held and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept["bytes"] += tensor.untyped_storage().nbytes()
        return tensor

    return pack
