"""From a configuration to the parts of a run: plugins, plan, backbone, objectives, one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pluggy
import torch
from torch import nn

from vssl_core.config import RunConfig, build, check_weights, to_tree
from vssl_core.data.appearance import NORMALISATIONS, Normalisation
from vssl_core.data.sources import SourceOptions, Splits, builtin_sources, open_source
from vssl_core.data.videos import Videos
from vssl_core.distributed import world_size
from vssl_core.errors import ConfigError, PluginError, did_you_mean
from vssl_core.looks import Recipe, resolve
from vssl_core.nets.backbones import build_backbone, builtin_backbones, stage_shapes
from vssl_core.nets.batchnorm import synchronise
from vssl_core.objective import ClipSettings, Combiner, Context, Objective, PluginConfig
from vssl_core.plugins import Plugin, load
from vssl_core.requests import Group, Plan, plan
from vssl_core.run.ensemble import Ensemble, WeightedSum
from vssl_core.run.seeds import reseed


@dataclass(frozen=True)
class Chosen:
    """The loaded plugins, their checked options, and the whole resolved configuration."""

    manager: pluggy.PluginManager
    plugins: dict[str, Plugin]
    options: dict[str, PluginConfig]
    config: RunConfig  # with every option of every plugin, defaults included


def choose(config: RunConfig, *, evaluations: bool = False) -> Chosen:
    """Load the plugins that the configuration names and check their options; the first mistake is one sentence."""
    manager, plugins = load(list(config.plugins))
    options = {}
    for name, plugin in plugins.items():
        if plugin.evaluation is not None and plugin.objective is None and not evaluations:
            raise PluginError(
                f"plugins: '{name}' is an evaluation, not something to train; use `vssl evaluate --evaluations {name}`"
            )
        kind = plugin.objective or plugin.evaluation or plugin.combiner
        options[name] = build(kind.Config if kind else PluginConfig, config.plugins[name], f"plugins.{name}")
    if config.combine.name is not None and (
        config.combine.name not in plugins or plugins[config.combine.name].combiner is None
    ):
        raise ConfigError(
            f"combine.name: '{config.combine.name}' is not a chosen plugin that offers a combiner{did_you_mean(config.combine.name, plugins)}; add it to --plugins"
        )
    check_weights(config, [name for name, plugin in plugins.items() if plugin.objective])
    whole = config.model_copy(update={"plugins": {name: to_tree(option) for name, option in options.items()}})
    return Chosen(manager, plugins, options, whole)


def open_data(config: RunConfig, manager: pluggy.PluginManager) -> Splits:
    """The lists of videos that the configuration names."""
    section = config.data
    options = SourceOptions(split=section.split, test_fraction=section.test_fraction, group=section.group)
    return open_source(
        section.source, section.root, options, offered([builtin_sources(), *manager.hook.vssl_sources()], "source")
    )


def offered(offers: list[Mapping[str, Callable]], what: str) -> dict[str, Callable]:
    """All offers of plugins as one mapping; two of one name are an error."""
    found: dict[str, Callable] = {}
    for offer in offers:
        for name, function in offer.items():
            if name in found:
                raise PluginError(f"two plugins offer a {what} named '{name}'; leave one of them out")
            found[name] = function
    return found


def make_backbone(config: RunConfig, manager: pluggy.PluginManager) -> nn.Module:
    """The backbone with the weights that the run's seed draws: the same in training and as a random baseline."""
    reseed(config.seed, "backbone")
    more = offered(manager.hook.vssl_backbones(), "backbone")
    name = config.backbone.name
    if name in more:
        return more[name](**config.backbone.options)
    if name not in builtin_backbones() and more:
        known = [*builtin_backbones(), *more]
        raise ConfigError(
            f"backbone.name: no backbone is called '{name}'{did_you_mean(name, known)}; choose one of {', '.join(known)}"
        )
    return build_backbone(name, **config.backbone.options)


def normalisation_of(config: RunConfig) -> Normalisation:
    """What the net's input is scaled to."""
    return NORMALISATIONS[config.clip.normalisation]


@dataclass(frozen=True)
class Parts:
    """A built, untrained run, before devices and ranks."""

    ensemble: Ensemble
    plan: Plan
    recipes: tuple[Recipe, ...]
    context: Context  # of no plugin in particular


def recipe_of(config: RunConfig, group: Group) -> Recipe:
    """How the clips of a group look."""
    appearance = group.request.appearance
    return resolve(config.appearance, appearance.colour, appearance.per)


def context_of(config: RunConfig, name: str, backbone: nn.Module, videos: int) -> Context:
    """What a plugin is told of the run."""
    shapes = stage_shapes(backbone, config.clip.frames, config.clip.size)
    return Context(
        name=name,
        clip=ClipSettings(config.clip.frames, config.clip.size, config.clip.stride),
        backbone=backbone,
        feature_dim=backbone.feature_dim,
        stages=shapes,
        videos=videos,
        epochs=config.epochs,
        steps_per_epoch=max(videos // config.batch_size, 1),
        batch_size=config.batch_size,
        world_size=world_size(),
    )


def build_parts(chosen: Chosen, videos: int, prepare_backbone: Callable[[nn.Module], None] | None = None) -> Parts:
    """Build backbone, objectives and plan. `prepare_backbone` may load weights before teachers are copied from it."""
    config = chosen.config
    backbone = make_backbone(config, chosen.manager)
    if prepare_backbone:
        prepare_backbone(backbone)
    context = context_of(config, "", backbone, videos)
    objectives = {
        name: _build_objective(chosen, name, context) for name, plugin in chosen.plugins.items() if plugin.objective
    }
    requests = {name: objective.requests() for name, objective in objectives.items()}
    settled = plan(
        requests, config.clip_request(), joined=config.views.join, groups=config.views.groups, own=config.views.own
    )
    ensemble = Ensemble(backbone, objectives, _build_combiner(chosen, tuple(objectives)), settled)
    if config.device.sync_batch_norm:
        synchronise(ensemble)
    return Parts(ensemble, settled, tuple(recipe_of(config, group) for group in settled.groups), context)


def _build_objective(chosen: Chosen, name: str, context: Context) -> Objective:
    from dataclasses import replace

    reseed(chosen.config.seed, f"objective/{name}")
    plugin = chosen.plugins[name]
    objective = plugin.objective(chosen.options[name], replace(context, name=name))  # type: ignore[misc]
    if not isinstance(getattr(objective, "context", None), Context):
        raise PluginError(
            f"plugin '{name}' of {plugin.distribution}: {plugin.objective.__name__}.__init__ must call super().__init__(config, context) first"
        )  # type: ignore[union-attr]
    return objective


def _build_combiner(chosen: Chosen, names: tuple[str, ...]) -> Combiner:
    name = chosen.config.combine.name
    if name is None:
        return WeightedSum(PluginConfig(), names)
    reseed(chosen.config.seed, f"combiner/{name}")
    return chosen.plugins[name].combiner(chosen.options[name], names)  # type: ignore[misc]


def check_batch(config: RunConfig, videos: Videos | int) -> None:
    """A step must be full, and divisible over ranks and microbatches."""
    count = videos if isinstance(videos, int) else len(videos)
    pieces = world_size() * config.optim.accumulate
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size: {config.batch_size} cannot be divided over {world_size()} ranks and {config.optim.accumulate} microbatches; choose a multiple of {pieces}"
        )
    if count < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {count} videos of the training list; lower it to at most {count}"
        )
