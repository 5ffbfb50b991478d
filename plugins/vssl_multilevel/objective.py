"""Multi-level feature optimisation: the graph that the high level draws of videos, and time, taught to all levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Between,
    Boxes,
    ConfigError,
    Context,
    Halves,
    Independent,
    Objective,
    Request,
    Strides,
    Terms,
    View,
    gather,
    hookimpl,
    mean,
)
from vssl_multilevel.levels import Level, Pooled, reordered
from vssl_multilevel.losses import (
    apart_from_changed,
    compare,
    found_in_overview,
    graph,
    one_way,
    own,
    recognised,
    swapped,
    together,
    towards,
)
from vssl_multilevel.options import LEVELS, Options
from vssl_multilevel.orders import changed_orders
from vssl_multilevel.prototypes import Prototypes

if TYPE_CHECKING:
    from vssl_core import Report, Run

Read = tuple[Pooled, Tensor]  # what a level reads in one clip: pooled, and (B, C, T) excited in its own order


class MultiLevel(Objective):
    """Readers of three stages, and the prototypes of the highest one."""

    Config = Options

    config: Options

    def __init__(self, config: Options, context: Context) -> None:
        super().__init__(config, context)
        self.stages = dict(zip(LEVELS, chosen_stages(config, context), strict=True))
        self.graph_weights = dict(zip(LEVELS, config.graph_weights, strict=True))
        self.temporal_weights = dict(zip(LEVELS, config.temporal_weights, strict=True))
        self.graph_epoch = round(config.first_stage * context.epochs)
        self.levels = nn.ModuleDict()
        for level, stage in self.stages.items():
            channels, timestamps = context.stage(stage)[:2]
            tasks = self._tasks(level, timestamps)
            if tasks:  # what moves is seen below the high level, which is read as it is
                reduction = None if level == "high" else config.reduction
                self.levels[level] = Level(channels, tasks, reduction, config.projection)
        channels = context.stage(self.stages["high"])[0]
        self.prototypes = Prototypes(channels, config, context) if config.semantic_weight > 0 else None

    def _tasks(self, level: str, timestamps: int) -> list[str]:
        """What is learnt from a level. One timestamp has no order, and nothing is to be found among one."""
        high, counts = level == "high", self.temporal_weights[level] > 0
        timed = self.config.temporal == "features" and counts
        in_overview = 2 * timestamps if self.config.overview == "dense" else timestamps
        learnt = {
            "instance": high,
            "graph": self.graph_weights[level] > 0,
            "order": timed and not high and timestamps > 1,
            "timestamp": timed and in_overview > 1,
            "clip_order": high and counts and self.config.temporal == "input",
        }
        return [task for task, wanted in learnt.items() if wanted]

    def _level(self, name: str) -> Level:
        return self.levels[name]  # type: ignore[return-value]

    def _with(self, task: str) -> list[str]:
        """The levels that have a task."""
        return [name for name in self.levels if task in self._level(name).heads]

    def requests(self) -> Mapping[str, Request]:
        """Both halves of one span, and an overview of it where timestamps are to be found."""
        overview = bool(self._with("timestamp"))
        return {
            "clips": Request(
                clips=3 if overview else 2,
                strides=Strides(Between(*self.config.strides), shared=True, short="fit"),
                placement=Halves(self.config.overview if overview else None),
                boxes=Boxes(Independent(), self.config.area),
                flips=ANY,
                appearance=Appearance("jittered", per="frame"),
            )
        }

    def forward(self, batch: Batch) -> Terms:
        """`instance`, `semantic`, and of each level `graph`, `order` and `timestamp`, those that are in force."""
        views = batch["clips"]
        read = {name: [self._read(name, view) for view in views[: self._clips(name)]] for name in self.levels}
        instance, logits = self._tell_apart(read["high"])
        semantic, labels = self._assign(views, batch.epoch)
        drawn = Terms({})
        if batch.epoch >= self.graph_epoch and self._with("graph"):
            drawn = self._draw_together(read, self._edges(logits, labels))
        order, clip_order = self._tell_order(read, batch), self._tell_order_of_clips(read, batch)
        return merged(instance, semantic, drawn, order, clip_order, self._find_timestamps(read, views))

    def _clips(self, name: str) -> int:
        """How many clips a level reads: the overview only where its timestamps are to be found."""
        return 3 if "timestamp" in self._level(name).heads else 2

    def _read(self, name: str, view: View) -> Read:
        pooled = self._level(name)(view.features.stages[self.stages[name]])
        return pooled, self._level(name).excite(pooled)

    def _rows(self, name: str, task: str, read: list[Read]) -> Tensor:
        """(B, 2, D) unit rows of both halves."""
        return torch.stack([self._level(name).rows(task, excited) for _, excited in read[:2]], dim=1)

    # The high level ---------------------------------------------------------------------------------------------------

    def _tell_apart(self, read: list[Read]) -> tuple[Terms, Tensor]:
        """`instance`: find the other half among all videos; and log h of all pairs of halves, (B, 2, N, 2)."""
        logits = compare(self._rows("high", "instance", read), self.config.temperature)
        loss = towards(together(logits), own(logits).float())
        return Terms({"instance": loss}, {"accuracy": recognised(logits.detach()).float().mean()}), logits

    def _assign(self, views: tuple[View, ...], epoch: int) -> tuple[Terms, Tensor | None]:
        """`semantic`: predict the other half's assignment; and the prototypes (N,) of the videos of all ranks."""
        if self.prototypes is None:
            return Terms({}), None
        maps = [view.features.stages[self.stages["high"]] for view in views[:2]]
        scores = torch.stack([self.prototypes(values.mean(dim=(2, 3, 4))) for values in maps], dim=1)  # (B, 2, K)
        assigned = self.prototypes.assign(scores.detach(), epoch)
        loss = self.config.semantic_weight * swapped(scores / self.config.prediction_temperature, assigned)
        met = scores.detach()[:, 0].argmax(dim=1) == assigned[:, 1].argmax(dim=1)
        kept = {} if self.prototypes.queue is None else {"scores": scores.detach().flatten(1)}
        return Terms({"semantic": loss}, {"agreement": met.float().mean()}, kept), gather(
            assigned.sum(dim=1).argmax(dim=1)
        )

    # The graph --------------------------------------------------------------------------------------------------------

    def _edges(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """(B, N) to which videos each one is drawn, and how much."""
        if self.config.graph == "one_hot":
            return own(logits).float()
        return graph(
            logits.detach(),
            labels if self.config.graph in ("combined", "semantic") else None,
            None if self.config.graph == "semantic" else self.config.threshold,
            both=self.config.target_views == "both",
        )

    def _draw_together(self, read: Mapping[str, list[Read]], edges: Tensor) -> Terms:
        """`graph`: near are those that the graph joins."""
        chosen = together if self.config.graph_views == "both" else one_way
        losses = {}
        for name in self._with("graph"):
            logits = compare(self._rows(name, "graph", read[name]), self.config.temperature)
            losses[f"graph_{name}"] = self.graph_weights[name] * towards(chosen(logits), edges)
        return Terms(losses, {"edges": (edges > 0).float().sum(dim=1).mean()})

    # Time -------------------------------------------------------------------------------------------------------------

    def _tell_order(self, read: Mapping[str, list[Read]], batch: Batch) -> Terms:
        """`order`: nearer to the other half than to itself with its timestamps in another order."""
        losses = {}
        for name in self._with("order"):
            level, timestamps = self._level(name), read[name][0][1].shape[2]
            orders = changed_orders(batch, name, timestamps, self.config.changes)
            changed = [
                [level.rows("order", level.excite(pooled, order)) for order in orders[half]]
                for half, (pooled, _) in enumerate(read[name][:2])
            ]
            losses[f"order_{name}"] = self._apart(name, "order", read[name], changed)
        return Terms(losses)

    def _tell_order_of_clips(self, read: Mapping[str, list[Read]], batch: Batch) -> Terms:
        """`clip_order`: the conventional way, in which frames of clips change places, and the high level must tell."""
        losses = {}
        for name in self._with("clip_order"):
            level, views = self._level(name), batch["clips"][:2]
            orders = changed_orders(batch, "clips", views[0].clip.shape[2], self.config.changes)
            changed = []
            for half, view in enumerate(views):
                features = [batch.encode(reordered(view.clip, order)) for order in orders[half]]
                maps = [seen.stages[self.stages[name]] for seen in features]
                changed.append([level.rows("clip_order", level.excite(level(found))) for found in maps])
            losses["clip_order"] = self._apart(name, "clip_order", read[name], changed)
        return Terms(losses)

    def _apart(self, name: str, task: str, read: list[Read], changed: list[list[Tensor]]) -> Tensor:
        """The weighted loss of both halves against `changed` rows (B, D): of each half, in each order."""
        against = torch.stack([torch.stack(half, dim=1) for half in changed], dim=1)  # (B, 2, changes, D)
        others = self.config.negatives == "batch"
        loss = apart_from_changed(self._rows(name, task, read), against, self.config.temperature, others)
        return self.temporal_weights[name] * loss

    def _find_timestamps(self, read: Mapping[str, list[Read]], views: tuple[View, ...]) -> Terms:
        """`timestamp`: find each timestamp of the halves in the overview, or two as one where its pace is doubled.

        Videos that are too short for the span begin anew within it, and the same frames come twice: left out.
        """
        real = [view.windows.real[:, : view.clip.shape[2]].all(dim=1) for view in views]
        whole = torch.stack(real).all(dim=0)  # (B,)
        losses, metrics = {}, {}
        for name in self._with("timestamp"):
            first, second, overview = (self._level(name).timestamps("timestamp", excited) for _, excited in read[name])
            halves = torch.cat([first, second], dim=1)  # (B, 2 T, D)
            if self.config.overview == "sparse":
                halves = halves.unflatten(1, (-1, 2)).mean(dim=2)  # (B, 2 T, D) -> (B, T, D)
            both = self.config.retrieval == "both"
            entropies, hits = found_in_overview(halves, overview, self.config.temperature, both)
            losses[f"timestamp_{name}"] = self.temporal_weights[name] * mean(entropies, whole)
            metrics[f"found_{name}"] = mean(hits, whole)
        return Terms(losses, metrics)

    # State ------------------------------------------------------------------------------------------------------------

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        """Prototypes rest while projections settle."""
        if self.prototypes is not None and run.epoch < self.config.frozen_epochs:
            self.prototypes.centres.weight.grad = None

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Prototypes go back to length one, and the scores of all ranks into the queue."""
        if self.prototypes is not None:
            self.prototypes.make_unit()
            if self.prototypes.queue is not None:
                self.prototypes.queue.push(report.kept[self.context.name]["scores"])


def merged(*parts: Terms) -> Terms:
    """All losses, metrics and kept rows as one."""
    whole: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] = {}, {}, {}
    for part in parts:
        for into, found in zip(whole, (part.losses, part.metrics, part.keep), strict=True):
            into.update(found)
    return Terms(*whole)


def chosen_stages(config: Options, context: Context) -> tuple[str, str, str]:
    """The stages of the low, the middle and the high level: those that are named, else the last three."""
    there = list(context.stages)
    if len(there) < 3 and None in (config.low, config.mid, config.high):
        raise ConfigError(
            f"plugins.{context.name}: needs three levels, the backbone has {len(there)} "
            f"stage{'s' * (len(there) != 1)} ({', '.join(there)}); choose another backbone"
        )
    named = (config.low or there[-3], config.mid or there[-2], config.high or there[-1])
    for stage in named:
        context.stage(stage)
    if len(set(named)) < 3:
        raise ConfigError(
            f"plugins.{context.name}: low, mid and high are {', '.join(named)}; choose three different stages of "
            f"{', '.join(there)}"
        )
    return named
