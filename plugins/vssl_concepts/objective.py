"""Static and dynamic concepts: three inputs, their codes, and the local features of single concepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssl_concepts.analysis import looks, mean_of_active, pictures
from vssl_concepts.attention import Attention, Competing, Residual
from vssl_concepts.codes import Bank, most_active
from vssl_concepts.inputs import differences, still
from vssl_concepts.losses import alignment, contrast, local_contrast, magnitude, negentropy, reconstruction
from vssl_concepts.options import PUBLISHED_QUEUE, Options, concepts_of, warmup_of
from vssl_core import (
    ANY,
    PLAIN,
    Appearance,
    Batch,
    Between,
    Context,
    Features,
    Halves,
    Objective,
    Queue,
    Request,
    Strides,
    Terms,
    hookimpl,
    mlp,
    queue_size,
    sinkhorn,
)

if TYPE_CHECKING:
    from vssl_core import Report, Run

STATIC, DYNAMIC, VIDEO = "static", "dynamic", "video"
KINDS = (STATIC, DYNAMIC)  # of concepts; the video has both, the first ones static
INPUTS = (STATIC, DYNAMIC, VIDEO)
PROJECTION = 128  # of the contrast

Rows = dict[str, list[Tensor]]  # {input: one tensor for each clip}


class Concepts(Objective):
    """Prototypes of each input, nets that rebuild features from codes, attention, and a queue of earlier codes."""

    Config = Options
    config: Options

    def __init__(self, config: Options, context: Context) -> None:
        super().__init__(config, context)
        self.stage = config.stage or next(reversed(context.stages))
        features = context.stage(self.stage)[0]
        static, dynamic = concepts_of(config, features, context)
        self.halves = {STATIC: slice(0, static), DYNAMIC: slice(static, static + dynamic)}
        sizes = {STATIC: static, DYNAMIC: dynamic, VIDEO: static + dynamic}
        self.counts = {name: max(round(config.valid * size), 1) for name, size in sizes.items()}
        held = dict.fromkeys(INPUTS, static + dynamic) if config.diversity == "mismatch" else sizes
        transformed = config.transform == "mlp"
        self.banks = nn.ModuleDict({name: Bank(held[name], features, transformed) for name in INPUTS})
        self.decoders = _each(lambda name: mlp(sizes[name], features, features)) if config.fidelity_factor else None
        self.attention = _attention(config, features) if config.local_factor else None
        self.projectors = _each(lambda name: mlp(features, features, PROJECTION)) if config.contrast else None
        self.widths = [sizes[name] for name in INPUTS]
        videos = queue_size(config.queue, PUBLISHED_QUEUE, context)
        self.queue = Queue(videos, config.clips * sum(self.widths)) if videos else None
        self.warmup = warmup_of(config, context)

    def requests(self) -> Mapping[str, Request]:
        """Clips of one colour throughout, since a colour that changes would be a movement, and one frame more."""
        config = self.config
        anywhere = {"boxes": ANY, "flips": ANY, "appearance": Appearance(per="clip")}
        placement = ANY if config.clips == 1 else Halves() if config.clips == 2 else PLAIN
        strides = Strides(Between(*config.strides), shared=True) if config.strides else PLAIN
        asked = {"clips": Request(clips=config.clips, tail=1, strides=strides, placement=placement, **anywhere)}
        if config.still == "own":
            asked["still"] = Request(clips=config.clips, frames=1, strides=ANY, placement=ANY, **anywhere)
        return asked

    # Forward ---------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Terms:
        """`alignment`, `diversity`, `fidelity`, from its epoch on `local`, and where it is asked for `contrast`."""
        config = self.config
        maps = {name: [self._map(seen) for seen in clips] for name, clips in self._seen(batch).items()}
        vectors = {name: [values.mean(dim=(2, 3, 4)) for values in clips] for name, clips in maps.items()}  # (B, C)
        codes = {name: [self.banks[name](vector) for vector in clips] for name, clips in vectors.items()}
        own = {name: [self._own(name, code) for code in clips] for name, clips in codes.items()}
        losses = {"alignment": self._alignment(own, batch.epoch)}
        metrics = {f"{kind}_agreement": _agreement(*self._sides(own, kind)) for kind in KINDS}
        if config.diversity_factor:
            losses["diversity"] = config.diversity_factor * self._diversity(codes)
        if self.decoders is not None:
            losses["fidelity"] = config.fidelity_factor * self._fidelity(own, vectors)
        if self.attention is not None and batch.epoch >= self.warmup:
            local, metrics["valid"] = self._local(own, maps)
            losses["local"] = config.local_factor * local
        if self.projectors is not None:
            losses["contrast"] = self._contrast(vectors)
        return Terms(losses, metrics, keep={} if self.queue is None else {"codes": _flat(own)})

    def _seen(self, batch: Batch) -> dict[str, list[Features]]:
        """The backbone's answers to the three inputs of each clip."""
        clips = batch["clips"]
        frames = clips[0].clip.shape[2]
        if self.config.still == "own":
            stills = [still(view.clip, torch.zeros_like(batch.index), frames) for view in batch["still"]]
        else:
            chosen = batch.draw("frame", 0, frames)  # (B,)
            stills = [still(view.clip, chosen, frames) for view in clips]
        return {
            VIDEO: [view.features for view in clips],
            STATIC: [batch.encode(clip) for clip in stills],
            DYNAMIC: [batch.encode(differences(view.clip, view.tail, view.windows.indices)) for view in clips],
        }

    def _map(self, seen: Features) -> Tensor:
        return seen.stages[self.stage]  # (B, C, T, H, W)

    def _own(self, name: str, codes: Tensor) -> Tensor:
        """Of codes that tell of both kinds, the half that the input has."""
        half = self.halves.get(name)
        return codes if half is None or codes.shape[1] == half.stop - half.start else codes[:, half]

    def _sides(self, own: Rows, kind: str) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of one kind of concept, for each clip: of the input that has only that kind, and of the video."""
        return own[kind], [code[:, self.halves[kind]] for code in own[VIDEO]]

    def _alignment(self, own: Rows, epoch: int) -> Tensor:
        earlier = self._earlier(epoch)
        losses = []
        for kind in KINDS:
            one, other = self._sides(own, kind)
            scores = [*one, *other]
            others = (
                [None] * len(scores)
                if earlier is None
                else [part for side in self._sides(earlier, kind) for part in side]
            )
            given = self.config.epsilon, self.config.iterations
            wanted = [sinkhorn(score.detach(), *given, past) for score, past in zip(scores, others, strict=True)]
            pairs, factor = ordered_pairs(len(one), self.config.alignment)
            terms = [alignment(scores[guess], wanted[target], self.config.temperature) for guess, target in pairs]
            losses.append(factor * torch.stack(terms).mean())
        return torch.stack(losses).sum()

    def _earlier(self, epoch: int) -> Rows | None:
        """The codes in the queue, oldest first, as those of the batch; None while it takes no part."""
        if self.queue is None or epoch < self.config.queue_epoch:
            return None
        clips = self.queue.rows_in_order().unflatten(1, (self.config.clips, -1)).unbind(1)  # each (M, widths)
        parts = [clip.split(self.widths, dim=1) for clip in clips]
        return {name: [part[number] for part in parts] for number, name in enumerate(INPUTS)}

    def _diversity(self, codes: Rows) -> Tensor:
        if self.config.diversity == "l1":
            return _summed(_mean(magnitude(code) for code in codes[name]) for name in INPUTS)
        other = {STATIC: self.halves[DYNAMIC], DYNAMIC: self.halves[STATIC]}
        given = self.config.temperature
        return _summed(_mean(negentropy(code[:, other[kind]], given) for code in codes[kind]) for kind in KINDS)

    def _fidelity(self, own: Rows, vectors: Rows) -> Tensor:
        kind = self.config.fidelity
        return _summed(
            _mean(
                reconstruction(self.decoders[name](code), vector, kind)
                for code, vector in zip(own[name], vectors[name], strict=True)
            )
            for name in INPUTS
        )

    def _local(self, own: Rows, maps: Rows) -> tuple[Tensor, Tensor]:
        """The contrast of local features, and how many concepts a video has that both of a pair agree on."""
        gathered = {name: [self._gathered(name, values) for values in maps[name]] for name in INPUTS}
        active = {name: [self._active(name, code) for code in own[name]] for name in INPUTS}
        losses, counts = [], []
        for pairs in self._local_pairs(gathered, active):
            terms = []
            for (one, seen), (other, known) in pairs:
                valid = seen & known
                terms.append(
                    local_contrast(one, other, valid, self.config.margin)
                    + local_contrast(other, one, valid, self.config.margin)
                )
                counts.append(valid.sum(dim=1).float().mean())
            losses.append(_mean(terms))
        return _summed(losses), _mean(counts)

    def _gathered(self, name: str, values: Tensor) -> Tensor:
        """(B, K, C) unit local features of an input's own concepts in maps (B, C, T, H, W)."""
        rows = self.banks[name].rows
        half = self.halves.get(name)
        rows = rows if half is None or len(rows) == half.stop - half.start else rows[half]
        return F.normalize(self.attention(rows, _places(values)), dim=2)

    def _active(self, name: str, code: Tensor) -> Tensor:
        """(B, K) which concepts are there."""
        if name == VIDEO and self.config.selection == "half":
            return torch.cat([most_active(code[:, self.halves[kind]], self.counts[kind]) for kind in KINDS], dim=1)
        return most_active(code, self.counts[name])

    def _local_pairs(self, gathered: Rows, active: Rows) -> Iterator[list[tuple[tuple[Tensor, Tensor], ...]]]:
        """For each kind of pair, its pairs of (local features, what is there)."""
        known = {name: list(zip(gathered[name], active[name], strict=True)) for name in INPUTS}
        if self.config.pairs == "within":
            yield from (list(combinations(known[name], 2)) for name in INPUTS)
            return
        for kind in KINDS:
            half = self.halves[kind]
            video = [(features[:, half], there[:, half]) for features, there in known[VIDEO]]
            yield list(product(known[kind], video))

    def _contrast(self, vectors: Rows) -> Tensor:
        """Each clip of a video finds another clip, its still frame and its differences among those of all videos."""
        rows = {name: [self.projectors[name](vector) for vector in vectors[name]] for name in INPUTS}
        several = self.config.clips > 1
        groups = [list(combinations(rows[VIDEO], 2))]
        for kind in KINDS:
            crossed = enumerate(rows[VIDEO]), enumerate(rows[kind])
            groups.append([(one, two) for (i, one), (j, two) in product(*crossed) if i != j or not several])
        given = self.config.contrast_temperature
        return _summed(
            _mean((contrast(one, two, given) + contrast(two, one, given)) / 2 for one, two in pairs)
            for pairs in groups
            if pairs
        )

    # What evaluations may read ---------------------------------------------------------------------------------------

    def named_features(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of a clip: `v` the features, `q` the code, `F` the mean local feature of the concepts that are there, both
        also of one kind alone; `maps` where the most active static and dynamic concept look, `frames` what was shown.
        """
        (view,) = batch["clips"]
        values = self._map(view.features)  # (B, C, T, H, W)
        vector = values.mean(dim=(2, 3, 4))
        code = self.banks[VIDEO](vector)
        halves = {f"_{kind}": (half, self.counts[kind]) for kind, half in self.halves.items()}
        parts = {"": (slice(None), self.counts[VIDEO]), **halves}
        found = {"v": vector, **{f"q{name}": code[:, half] for name, (half, _) in parts.items()}}
        if self.attention is not None:
            rows, places = self.banks[VIDEO].rows, _places(values)
            local = self.attention(rows, places)  # (B, K, C)
            for name, (half, count) in parts.items():
                found[f"F{name}"] = mean_of_active(local[:, half], code[:, half], count)
            found["maps"] = looks(code, self.attention.weights(rows, places), self.halves.values()).flatten(1)
            found["frames"] = pictures(view.clip, values.shape[2])
        return found

    # State -----------------------------------------------------------------------------------------------------------

    @hookimpl
    def vssl_backward_end(self, run: Run) -> None:
        """Prototypes rest while features settle (as in the paper's code)."""
        if run.epoch < self.config.frozen_epochs:
            for bank in self.banks.values():
                bank.rows.grad = None

    @hookimpl
    def vssl_step_end(self, run: Run, report: Report) -> None:
        """Prototypes back to unit length; and the codes of all ranks go into the queue."""
        for bank in self.banks.values():
            bank.make_unit()
        if self.queue is not None:
            self.queue.push(report.kept[self.context.name]["codes"])


def ordered_pairs(clips: int, kind: str) -> tuple[list[tuple[int, int]], float]:
    """(who guesses, whose assignment) among twice `clips` inputs, the first half of one kind and the second of the
    other; and what their mean is multiplied by, so that one clip gives the paper's sum of both directions."""
    pairs = list(permutations(range(2 * clips), 2))
    if kind == "all":
        return pairs, 1.0
    return [(guess, target) for guess, target in pairs if (guess < clips) != (target < clips)], 2.0


def _attention(config: Options, features: int) -> Attention:
    return {"residual": Residual, "competing": Competing}[config.attention](features)


def _each(build) -> nn.ModuleDict:
    return nn.ModuleDict({name: build(name) for name in INPUTS})


def _places(values: Tensor) -> Tensor:
    return values.flatten(2).transpose(1, 2)  # (B, C, T, H, W) -> (B, N, C)


def _flat(own: Rows) -> Tensor:
    """(B, clips * widths) all codes of each video side by side, clip by clip."""
    return torch.cat(
        [code for clip in zip(*(own[name] for name in INPUTS), strict=True) for code in clip], dim=1
    ).detach()


def _agreement(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """How often the most active concept of the first clip is the same in both inputs."""
    return (one[0].detach().argmax(dim=1) == other[0].detach().argmax(dim=1)).float().mean()


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _summed(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
