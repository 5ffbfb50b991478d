"""Saccades and fixations: a bank of all parts of all videos, prediction from one moment to another, and clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_core import (
    ANY,
    Appearance,
    Batch,
    Boxes,
    Centre,
    Context,
    DataError,
    Features,
    Flips,
    Independent,
    Measure,
    MemoryBank,
    Objective,
    ParameterGroup,
    Request,
    ShardedMemoryBank,
    Terms,
    Turns,
    View,
    hookimpl,
    kmeans,
)
from vssl_saccades.fixations import clip_masks, frame_masks, show
from vssl_saccades.negatives import negative_slots, number_of_negatives
from vssl_saccades.options import Options
from vssl_saccades.prediction import Prediction
from vssl_saccades.reorganisation import Reorganisation, first_epoch, numbers_of_clusters
from vssl_saccades.saliency import Votes, check_maps, check_videos

if TYPE_CHECKING:
    from vssl_core import Report, Run, Shot

# How a video looks when it is clustered: its middle, as filmed.
STILL = Request(
    placement=Centre(),
    boxes=Boxes(Centre()),
    flips=Flips(0.0),
    turns=Turns((0,)),
    appearance=Appearance(colour="kept", per="clip"),
)


class Saccades(Objective):
    """Masks, a bank with a slot for each part of each video, a predictor of states, and clusters of all slots."""

    Config = Options
    config: Options

    def __init__(self, config: Options, context: Context) -> None:
        super().__init__(config, context)
        masks = clip_masks(config.fixations, config.area, context.clip.size)
        self.register_buffer("masks", torch.from_numpy(masks).float(), persistent=False)  # (P, S, S)
        self.slots = config.fixations if config.slots == "fixation" else 1  # of a video
        self.negatives = number_of_negatives(config, self.slots, context)
        width = config.projection or context.feature_dim
        self.head = nn.Linear(context.feature_dim, width) if config.projection else nn.Identity()
        kind = {"replicated": MemoryBank, "sharded": ShardedMemoryBank}[config.bank]
        self.bank = kind(
            context.videos * self.slots,
            width,
            dtype=getattr(torch, config.bank_precision),
            where=f"plugins.{context.name}.bank",
        )
        self.predictor: Prediction | None = None
        if config.prediction_weight > 0:
            channels = context.feature_dim if config.stage is None else context.stage(config.stage)[0]
            self.predictor = Prediction(
                channels,
                power=config.attention_power,
                unit_values=config.unit_values,
                project=config.project_states,
            )
        self.start = first_epoch(config.reorganise_from, context.epochs)
        self.clusters: Reorganisation | None = None
        if config.reorganisation_weight > 0:
            counts = numbers_of_clusters(config.clusters, self.slots, context)
            self.clusters = Reorganisation(counts, context.videos, self.slots, width)
        if config.maps:
            check_maps(config.maps, f"plugins.{context.name}.maps")

    def requests(self) -> Mapping[str, Request]:
        """Each fixation at two moments: all of the first moment, then all of the second; each clip has its own box."""
        config, measures = self.config, ()
        if config.maps:
            votes = Votes(config.maps, config.fixations, config.area, config.mask_space)
            measures = (Measure("saccade_votes", votes),)
        return {
            "clips": Request(
                clips=2 * config.fixations,
                boxes=Boxes(Independent()),
                flips=ANY,
                appearance=Appearance(colour="jittered", per="clip"),
                measures=measures,
            )
        }

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """The layer before the bank learns slowly."""
        if self.config.projection:
            yield ParameterGroup(list(self.head.parameters()), self.config.projection_learning_rate)

    def forward(self, batch: Batch) -> Terms:
        """`contrast` with slots, `prediction` of one moment from the other, and `clusters` in the last phase."""
        config, views = self.config, batch["clips"]
        fixations = self._fixations(batch)  # (B, P) what both clips of each pair show
        clips = [self._masked(view, fixations[:, number % config.fixations]) for number, view in enumerate(views)]
        features = batch.encode(torch.cat(clips), statistics=True)  # 2 P B clips, all first clips first
        rows = self._rows(features).unflatten(0, (len(views), len(batch))).transpose(0, 1)  # (B, 2 P, D)
        losses, metrics = {}, {}
        losses["contrast"], metrics["accuracy"] = self._contrast(batch, rows, fixations)
        if self.predictor is not None:
            losses["prediction"] = config.prediction_weight * self._prediction(features, len(batch))
        if self.clusters is not None and batch.epoch >= self.start:
            found, metrics["cluster_accuracy"] = self._reorganise(batch, rows, fixations)
            losses["clusters"] = config.reorganisation_weight * found
        moments = rows.detach().unflatten(1, (2, -1)).mean(dim=1)  # (B, P, D)
        return Terms(losses, metrics, keep={"rows": moments, "fixations": fixations})

    # What clips show --------------------------------------------------------------------------------------------------

    def _fixations(self, batch: Batch) -> Tensor:
        """(B, P) the fixation of each pair of clips: one after the other, or what most frames of both voted for."""
        count, views = self.config.fixations, batch["clips"]
        given = torch.arange(count, device=batch.index.device).expand(len(batch), -1)
        if not self.config.maps:
            return given
        votes = torch.stack([view.measures["saccade_votes"] for view in views], dim=1)  # (B, 2 P, fixations)
        votes = votes.unflatten(1, (2, count)).sum(dim=1)  # (B, P, fixations)
        chosen = torch.where(votes.sum(dim=2) > 0, votes.argmax(dim=2), given)
        perturbed = batch.draw("perturbed", 0.0, 1.0, (count,)) < self.config.perturbation
        return torch.where(perturbed, batch.draw("fixations", 0, count, (count,)), chosen)

    def _masked(self, view: View, fixations: Tensor) -> Tensor:
        """The view's clip with the masks of fixations (B,)."""
        if self.config.mask == "none":
            return view.clip
        return show(view.clip, self._masks(view, fixations), self.config.mask)

    def _masks(self, view: View, fixations: Tensor) -> Tensor:
        """(B, S, S) float, what fixations (B,) show of the view's clip."""
        config, masks = self.config, self.masks[fixations]
        if config.mask_space == "frame":
            return frame_masks(config.fixations, config.area, view.windows, fixations, view.clip.shape[-1])
        if config.mask_space == "crop":
            return torch.where(view.windows.flip[:, None, None], masks.flip(2), masks)
        return masks

    def pictures(self, batch: Batch, shots: Mapping[str, tuple[Shot, ...]]) -> Mapping[str, Any]:
        """Each fixation at both moments: where it lies in the frame and in time, and what of the clip it shows."""
        from vssl_saccades.pictures import draw

        fixations, views = self._fixations(batch).repeat(1, 2), batch["clips"]  # (1, 2 P)
        masks = [self._masks(view, fixations[:, number])[0].bool().cpu().numpy() for number, view in enumerate(views)]
        return {"fixations": draw(shots["clips"], fixations[0].tolist(), masks, self.config.mask)}

    def _rows(self, features: Features) -> Tensor:
        return F.normalize(self.head(features.vector).float(), dim=1)

    def _slots(self, index: Tensor, fixations: Tensor) -> Tensor:
        """(B, P) the places in the bank of what is seen of videos (B,)."""
        return index[:, None] * self.slots + (fixations if self.slots > 1 else torch.zeros_like(fixations))

    # The three losses -------------------------------------------------------------------------------------------------

    def _contrast(self, batch: Batch, rows: Tensor, fixations: Tensor) -> tuple[Tensor, Tensor]:
        """The cross entropy of finding the positive, and how often it comes first."""
        own = self._slots(batch.index, fixations).repeat(1, 2)  # (B, 2 P)
        places = torch.cat([own[:, :, None], self._negatives(batch, own)], dim=2).flatten(0, 1)  # (2 P B, 1 + K)
        logits = self.bank.similarities(rows.flatten(0, 1), places)
        if self.config.positive == "view":
            other = rows.roll(self.config.fixations, dims=1)  # the same fixation at the other moment
            logits = torch.cat([(rows * other).sum(dim=2).flatten()[:, None], logits[:, 1:]], dim=1)
        logits = logits / self.config.temperature
        first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits, first), (logits.detach().argmax(dim=1) == 0).float().mean()

    def _negatives(self, batch: Batch, own: Tensor) -> Tensor:
        """(B, 2 P, K) drawn for each clip."""
        kept = self.slots - 1 if self.config.siblings == "always" else 0
        drawn = own.new_zeros(*own.shape, 0)
        if self.negatives > kept:
            whole = self.context.videos * self.slots
            others = whole - (1 if self.config.siblings == "sampled" else self.slots)
            drawn = batch.draw("negatives", 0, others, (own.shape[1], self.negatives - kept))
        return negative_slots(own, drawn, self.slots, self.config.siblings)

    def _prediction(self, features: Features, videos: int) -> Tensor:
        stage = features.map if self.config.stage is None else features.stages[self.config.stage]
        states = stage.flatten(2).unflatten(0, (2, self.config.fixations, videos))  # (2, P, B, C, U)
        if self.config.mix_fixations:
            early, late = states.permute(0, 2, 3, 1, 4).flatten(3)  # (2, B, C, P U)
        else:
            early, late = states.flatten(1, 2)  # (2, P B, C, U)
        assert self.predictor is not None
        return self.predictor(early, late)

    def _reorganise(self, batch: Batch, rows: Tensor, fixations: Tensor) -> tuple[Tensor, Tensor]:
        slots = self._slots(torch.zeros_like(batch.index), fixations).repeat(1, 2)  # (B, 2 P) within the video
        assert self.clusters is not None
        return self.clusters(
            rows, (batch.index, slots), self.negatives, lambda name, count: batch.draw(name, 0.0, 1.0, (count,))
        )

    # What changes -----------------------------------------------------------------------------------------------------

    @hookimpl
    def vssl_run_start(self, run: Run) -> None:
        """Look for what would be missed later: maps of every video, and the library that clusters."""
        if self.config.maps:
            paths = (run.videos.path(number) for number in range(len(run.videos)))
            check_videos(self.config.maps, paths, f"plugins.{self.context.name}.maps")
        if self.clusters is not None:
            kmeans(torch.eye(2), 2, iterations=1, restarts=1, advance=lambda _: None)

    @hookimpl
    def vssl_epoch_start(self, run: Run) -> None:
        """Cluster all slots anew, where it is time."""
        if self.clusters is not None and run.epoch >= self.start:
            if (run.epoch - self.start) % self.config.every == 0:
                self.cluster(run)

    @torch.no_grad()
    def cluster(self, run: Run) -> None:
        """Look at every part of every video, and cluster what was seen."""
        assert self.clusters is not None
        found, config = run.extract(STILL, self._look), self.config
        rows, index = found["rows"], found["index"]  # (n, slots, D), (n,)
        seen, most = len(index) * self.slots, max(self.clusters.clusters)
        if seen < most:
            raise DataError(
                f"plugins.{self.context.name}.clusters: {len(index)} of {self.context.videos} videos can be read, "
                f"whose {seen} slots cannot form {most} clusters; choose at most {seen}, or mend the videos"
            )
        self.clusters.cluster(
            rows,
            index,
            seed=run.config.seed,
            temperature=config.temperature,
            smoothing=config.smoothing,
            iterations=config.iterations,
            restarts=config.restarts,
            device=run.device,
        )

    def _look(self, batch: Batch) -> Mapping[str, Tensor]:
        """{'rows': (B, slots, D)} unit rows of each part of the middle of each video."""
        (view,) = batch["clips"]
        parts = self.slots if self.config.mask != "none" else 1  # without masks all parts look alike
        every = [torch.full_like(batch.index, number) for number in range(parts)]
        rows = [self._rows(batch.encode(self._masked(view, fixations))) for fixations in every]
        return {"rows": torch.stack(rows, dim=1).expand(-1, self.slots, -1).contiguous()}

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """The slots of the step's videos take what was seen of them on all ranks; no other moves."""
        kept = report.kept[self.context.name]
        places = self._slots(report.index, kept["fixations"])
        self.bank.update(places.flatten(), kept["rows"].flatten(0, 1), self.config.momentum)
