"""What objectives offer to evaluations beside the backbone's stages: feature vectors by name, '<plugin>/<name>'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import pluggy
import torch
from torch import Tensor, nn

from vssl_core.config import RunConfig
from vssl_core.errors import CheckpointError, ConfigError, did_you_mean
from vssl_core.objective import Context, Objective
from vssl_core.plugins import Plugin
from vssl_core.run import checkpoint
from vssl_core.run.build import build_parts, choose
from vssl_core.run.ensemble import Ensemble
from vssl_core.run.extract import STREAM, at_rest, still_batch, with_features
from vssl_core.run.terms import ObjectiveError, kind_of
from vssl_core.run.weights import WEIGHTS, read_card, read_weights
from vssl_core.views import Batch, View, Windows
from vssl_core.windows import Sample, draw_windows


@dataclass(frozen=True)
class EvaluationContext(Context):
    """What an evaluation is told: of the run, and, once it asks for one, of the features that objectives offer."""

    offers: Callable[[], Mapping[str, int]] = dict  # {'<plugin>/<name>': D}; the first call may build and load

    def stage(self, name: str) -> tuple[int, int, int, int]:
        """(C,T,H,W) of a stage, (D,1,1,1) of features that an objective offers; `ConfigError` for any other name."""
        if name in self.stages or "/" not in name:
            return super().stage(name)
        offers = self.offers()
        if name not in offers:
            there = f"they offer {', '.join(offers)}{did_you_mean(name, offers)}" if offers else "they offer none"
            raise ConfigError(f"plugins.{self.name}: the run's objectives offer no features '{name}', {there}")
        return (offers[name], 1, 1, 1)

    @classmethod
    def of(cls, context: Context, offers: Callable[[], Mapping[str, int]]) -> EvaluationContext:
        """The context of a run, with what its objectives offer."""
        return cls(**{part.name: getattr(context, part.name) for part in fields(context)}, offers=offers)


class Offers:
    """The objectives of a run folder that have features to offer, built and restored when they are first asked for."""

    def __init__(
        self, config: RunConfig, manager: pluggy.PluginManager, plugins: Mapping[str, Plugin], folder: Path
    ) -> None:
        self.folder = folder
        self._config, self._manager = config, manager
        self._plugins = {name: plugins[name] for name in config.plugins}
        self._names = [name for name, plugin in self._plugins.items() if offers_features(plugin.objective)]

    @cached_property
    def widths(self) -> dict[str, int]:
        """{'<plugin>/<name>': D}; builds and restores the objectives."""
        return offered_widths(self._config, self._restored.backbone, self.trained) if self._names else {}

    @property
    def trained(self) -> dict[str, Objective]:
        """{plugin: objective} as they were when the backbone's weights were written.

        Raises `CheckpointError` where there is no checkpoint of that moment.
        """
        return self._offering(self._restored)

    @property
    def untrained(self) -> dict[str, Objective]:
        """{plugin: objective} as the seed draws them."""
        return self._offering(self._built())

    @property
    def digest(self) -> str:
        """A short hash of the restored objectives."""
        sums = sha256()
        for name, objective in self.trained.items():
            for key, value in sorted(objective.state_dict().items()):
                sums.update(f"{name}/{key}".encode())
                sums.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return sums.hexdigest()[:16]

    def _offering(self, ensemble: Ensemble) -> dict[str, Objective]:
        return {name: ensemble.objectives[name] for name in self._names}

    @cached_property
    def _saved(self) -> tuple[dict[str, Tensor], int]:
        """All weights of the moment at which the backbone was written, and how many videos the run trains on."""
        weights = read_weights(self.folder / WEIGHTS)
        for path in self._checkpoints():
            state = checkpoint.load(path)
            held, count = state["ensemble"], state["videos"][0]
            if _holds(held, weights):
                return held, count
        raise CheckpointError(
            f"{self.folder / checkpoint.NAME}: features of {', '.join(self._names)} need the checkpoint that was "
            f"written together with {WEIGHTS}, and the run has gone on since; let it finish its epoch, then evaluate"
        )

    def _checkpoints(self) -> Iterator[Path]:
        kept = self.folder / "checkpoints" / f"epoch_{read_card(self.folder)['epochs']:04d}.pt"
        last = self.folder / checkpoint.NAME
        if last.exists() or not kept.exists():
            yield last
        if kept.exists():
            yield kept

    def _built(self) -> Ensemble:
        chosen = choose(self._config, (self._manager, self._plugins))
        return build_parts(chosen, self._saved[1]).ensemble

    @cached_property
    def _restored(self) -> Ensemble:
        ensemble = self._built()
        checkpoint.restore_module(ensemble, self._saved[0], str(self.folder / checkpoint.NAME))
        return ensemble


def _holds(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether the state of an ensemble holds these weights of the backbone."""
    own = {name: state.get(f"backbone.{name}") for name in weights}
    return all(tensor is not None and torch.equal(tensor, weights[name]) for name, tensor in own.items())


def offers_features(kind: type | None) -> bool:
    """Whether a class of objectives has features to offer."""
    return kind is not None and kind.named_features is not Objective.named_features  # type: ignore[attr-defined]


def named_features(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """{'<plugin>/<name>': (B, D)} float32 of one clip; `ObjectiveError` for anything else."""
    where = f"objective '{batch.name}': named_features"
    try:
        offered = objective.named_features(batch)
    except Exception as error:
        raise ObjectiveError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(offered, Mapping):
        raise ObjectiveError(f"{where} must give {{name: (B, D)}}, got {kind_of(offered)}")
    for name, rows in offered.items():
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(batch):
            given = f"{kind_of(rows)} for {len(batch)} videos"
            raise ObjectiveError(f"{where} must give a row of D numbers for each video, '{name}' has {given}")
    return {f"{batch.name}/{name}": rows.float() for name, rows in offered.items()}


def offered_widths(config: RunConfig, backbone: nn.Module, objectives: Mapping[str, Objective]) -> dict[str, int]:
    """{'<plugin>/<name>': D} of all that is offered, found out on two clips of zeros."""
    clip = config.clip
    samples = [Sample(config.seed, 0, 0, number) for number in range(2)]
    drawn = [
        draw_windows(config.clip_request(), row, STREAM, clip.frames, (clip.size, clip.size))[0] for row in samples
    ]
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    shown = torch.zeros(2, 3, clip.frames, clip.size, clip.size, device=device)
    index = torch.arange(2, device=device)
    found: dict[str, int] = {}
    with at_rest((backbone, *objectives.values())):
        view = with_features(View(shown, shown[:, :, :0], Windows.of(drawn, device), {}, None), backbone)
        for name, objective in objectives.items():
            offered = named_features(objective, still_batch(name, (view,), index, samples, backbone))
            found |= {feature: rows.shape[1] for feature, rows in offered.items()}
    return found
