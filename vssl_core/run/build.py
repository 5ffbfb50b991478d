"""From a configuration to the parts of a run: plugins, plan, backbone, objectives, one module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pluggy
import torch
from torch import nn

from vssl_core.config import RunConfig, build_options, check_weights, to_tree
from vssl_core.data.appearance import NORMALISATIONS, Normalisation
from vssl_core.data.sources import SourceOptions, Splits, builtin_sources, open_source
from vssl_core.data.videos import Videos
from vssl_core.distributed import world_size
from vssl_core.errors import ConfigError, PluginError, VsslError, did_you_mean
from vssl_core.joining import Group, Plan, plan
from vssl_core.looks import Recipe, resolve
from vssl_core.nets.backbones import build_backbone, builtin_backbones, stage_shapes
from vssl_core.nets.batchnorm import synchronise
from vssl_core.objective import ClipSettings, Combiner, Context, Objective, PluginConfig
from vssl_core.plugins import Plugin, load
from vssl_core.requests import Request
from vssl_core.run.ensemble import Ensemble, WeightedSum
from vssl_core.run.seeds import reseed
from vssl_core.run.terms import ObjectiveError


@dataclass(frozen=True)
class Chosen:
    """The loaded plugins, their checked options, and the whole resolved configuration."""

    manager: pluggy.PluginManager
    plugins: dict[str, Plugin]
    options: dict[str, PluginConfig]
    config: RunConfig  # with every option of every plugin, defaults included


def choose(config: RunConfig, loaded: tuple[pluggy.PluginManager, dict[str, Plugin]] | None = None) -> Chosen:
    """Load the plugins that the configuration names and check their options; the first mistake is one sentence.

    `loaded` hands over plugins that are in hand already, by the names that the configuration gives them.
    """
    manager, plugins = loaded or load(list(config.plugins))
    options = {}
    for name, plugin in plugins.items():
        if plugin.evaluation is not None and plugin.objective is None:
            raise PluginError(
                f"plugins: '{name}' is an evaluation, not something to train; use `vssl evaluate --evaluations {name}`"
            )
        options[name] = build_options(plugin.options, config.plugins[name], name)
    _check_combiner(config.combine.name, plugins)
    check_weights(config, [name for name, plugin in plugins.items() if plugin.objective])
    whole = config.model_copy(update={"plugins": {name: to_tree(option) for name, option in options.items()}})
    return Chosen(manager, plugins, options, whole)


def _check_combiner(chosen: str | None, plugins: Mapping[str, Plugin]) -> None:
    if chosen is not None and (chosen not in plugins or plugins[chosen].combiner is None):
        raise ConfigError(
            f"combine.name: '{chosen}' is not a chosen plugin that offers a combiner{did_you_mean(chosen, plugins)}; "
            "add it to --plugins"
        )
    for name, plugin in plugins.items():
        if plugin.kind == "combiner" and name != chosen:
            raise ConfigError(
                f"plugins: '{name}' combines losses and is not used; set combine.name={name}, or leave it out"
            )


def open_data(config: RunConfig, manager: pluggy.PluginManager) -> Splits:
    """The lists of videos that the configuration names."""
    section = config.data
    options = SourceOptions(split=section.split, test_fraction=section.test_fraction, group=section.group)
    return open_source(section.source, section.root, options, sources_of(manager))


def sources_of(manager: pluggy.PluginManager) -> dict[str, Callable]:
    """All sources that there are, by name: ours and those of the plugins."""
    return offered([builtin_sources(), *manager.hook.vssl_sources()], "source")


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
            f"backbone.name: no backbone is called '{name}'{did_you_mean(name, known)}; choose one of "
            f"{', '.join(known)}"
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
    trained = [name for name, plugin in chosen.plugins.items() if plugin.objective]
    if not trained:
        raise PluginError(
            f"plugins: {', '.join(chosen.plugins)} train{'s' * (len(chosen.plugins) == 1)} nothing; "
            "choose at least one plugin with an objective"
        )
    backbone = make_backbone(config, chosen.manager)
    if prepare_backbone:
        prepare_backbone(backbone)
    context = context_of(config, "", backbone, videos)
    objectives = {name: _build_objective(chosen, name, context) for name in trained}
    requests = {name: _requests(name, objective) for name, objective in objectives.items()}
    views = config.views
    settled = plan(requests, config.clip_request(), joined=views.join, groups=views.groups, own=views.own)
    ensemble = Ensemble(backbone, objectives, _build_combiner(chosen, tuple(objectives)), settled)
    if config.device.sync_batch_norm:
        synchronise(ensemble)
    return Parts(ensemble, settled, tuple(recipe_of(config, group) for group in settled.groups), context)


def _build_objective(chosen: Chosen, name: str, context: Context) -> Objective:
    reseed(chosen.config.seed, f"objective/{name}")
    kind: Any = chosen.plugins[name].objective
    where = f"plugin '{name}' of {chosen.plugins[name].distribution}: {kind.__name__}"
    try:
        objective = kind(chosen.options[name], replace(context, name=name))
    except VsslError:
        raise
    except Exception as error:
        raise ObjectiveError(f"{where} cannot be built ({type(error).__name__}: {error})") from error
    if not isinstance(getattr(objective, "context", None), Context):
        raise PluginError(f"{where}.__init__ must call super().__init__(config, context) first")
    if any(module is context.backbone for module in objective.modules()):
        raise PluginError(f"{where} holds the run's backbone itself; read features from the views, or copy it with Ema")
    return objective


def _requests(name: str, objective: Objective) -> Mapping[str, Request]:
    requests = objective.requests()
    if not (isinstance(requests, Mapping) and requests):
        raise PluginError(
            f"plugin '{name}': requests must give {{slot: Request}} with at least one slot, got {requests!r}"
        )
    for slot, request in requests.items():
        if not (isinstance(slot, str) and slot.isidentifier() and isinstance(request, Request)):
            raise PluginError(
                f"plugin '{name}': requests must give {{slot: Request}}, slots being plain words, got {slot!r}: "
                f"{request!r}"
            )
    return requests


def _build_combiner(chosen: Chosen, names: tuple[str, ...]) -> Combiner:
    name = chosen.config.combine.name
    if name is None:
        return WeightedSum(PluginConfig(), names)
    reseed(chosen.config.seed, f"combiner/{name}")
    return chosen.plugins[name].combiner(chosen.options[name], names)  # type: ignore[misc]


def check_batch(config: RunConfig, videos: Videos | int, resumes: bool = False) -> None:
    """A step must be full, and divisible over ranks and microbatches; a run that `resumes` keeps its batch."""
    count = videos if isinstance(videos, int) else len(videos)
    pieces = world_size() * config.optim.accumulate
    if config.batch_size % pieces:
        rows = config.batch_size // config.optim.accumulate
        fitting = ", ".join(str(ranks) for ranks in range(1, rows + 1) if rows % ranks == 0)
        advice = f"go on with another number of ranks ({fitting})" if resumes else f"choose a multiple of {pieces}"
        raise ConfigError(
            f"batch_size: {config.batch_size} cannot be divided over {world_size()} ranks and "
            f"{config.optim.accumulate} microbatches; {advice}"
        )
    if count < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {count} videos of the training list; "
            f"lower it to at most {count}"
        )


def choose_device(config: RunConfig) -> torch.device:
    """The device of this rank."""
    kind = config.device.kind
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device.kind: cuda is asked for and torch sees no GPU; run `vssl doctor`, or set device.kind=auto"
        )
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
