"""The one door of vssl: all that a plugin may import, and nothing that is slow to import until it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "vssl_core.errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "PluginError",
        "UserError",
        "VideoError",
        "VsslError",
    ),
    "vssl_core.hookspecs": ("hookimpl",),
    "vssl_core.requests": (
        "ANY",
        "Appearance",
        "Between",
        "Boxes",
        "Centre",
        "Fixed",
        "Flips",
        "Halves",
        "Independent",
        "Measure",
        "Overlapping",
        "PLAIN",
        "Request",
        "Same",
        "Strides",
        "Turns",
        "Uniform",
    ),
    "vssl_core.windows": ("Sample", "Window"),
    "vssl_core.views": ("Batch", "Features", "View", "Windows"),
    "vssl_core.objective": (
        "ClipSettings",
        "Combiner",
        "Context",
        "Evaluation",
        "ExtractedFeatures",
        "Needs",
        "Objective",
        "Observer",
        "ParameterGroup",
        "PluginConfig",
        "Result",
        "Shared",
        "Shot",
        "SplitFeatures",
        "Terms",
    ),
    "vssl_core.nets.layers": ("head", "mlp"),
    "vssl_core.nets.ema": ("Ema",),
    "vssl_core.nets.queue": ("Queue", "queue_size"),
    "vssl_core.nets.memory": ("MemoryBank", "ShardedMemoryBank"),
    "vssl_core.nets.shuffle": ("shuffled",),
    "vssl_core.nets.sinkhorn": ("sinkhorn",),
    "vssl_core.nets.clustering": ("Clusters", "concentration", "kmeans"),
    "vssl_core.nets.backbones": ("Backbone", "build_backbone"),
    "vssl_core.data.flow": ("Flow",),
    "vssl_core.data.sources": ("SourceOptions", "Splits"),
    "vssl_core.data.videos": ("Videos",),
    "vssl_core.distributed": ("average", "broadcast", "gather", "mean", "rank", "world_size"),
    "vssl_core.run.engine": ("Run",),
    "vssl_core.run.report": ("Report",),
    "vssl_core.run.weights": ("load_backbone",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "ANY",
    "Appearance",
    "Backbone",
    "Batch",
    "Between",
    "Boxes",
    "Centre",
    "CheckpointError",
    "ClipSettings",
    "Clusters",
    "Combiner",
    "ConfigError",
    "Context",
    "DataError",
    "Ema",
    "Evaluation",
    "ExtractedFeatures",
    "Features",
    "Fixed",
    "Flips",
    "Flow",
    "Halves",
    "Independent",
    "Measure",
    "MemoryBank",
    "Needs",
    "Objective",
    "Observer",
    "Overlapping",
    "PLAIN",
    "ParameterGroup",
    "PluginConfig",
    "PluginError",
    "Queue",
    "Report",
    "Request",
    "Result",
    "Run",
    "Same",
    "Sample",
    "ShardedMemoryBank",
    "Shared",
    "Shot",
    "SourceOptions",
    "SplitFeatures",
    "Splits",
    "Strides",
    "Terms",
    "Turns",
    "Uniform",
    "UserError",
    "VideoError",
    "Videos",
    "View",
    "VsslError",
    "Window",
    "Windows",
    "average",
    "broadcast",
    "build_backbone",
    "concentration",
    "gather",
    "head",
    "hookimpl",
    "kmeans",
    "load_backbone",
    "mean",
    "mlp",
    "queue_size",
    "rank",
    "shuffled",
    "sinkhorn",
    "world_size",
]


def __getattr__(name: str) -> Any:
    """Import a room when one of its names is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'vssl_core' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if TYPE_CHECKING:
    from vssl_core.data.flow import Flow
    from vssl_core.data.sources import SourceOptions, Splits
    from vssl_core.data.videos import Videos
    from vssl_core.distributed import average, broadcast, gather, mean, rank, world_size
    from vssl_core.errors import CheckpointError, ConfigError, DataError, PluginError, UserError, VideoError, VsslError
    from vssl_core.hookspecs import hookimpl
    from vssl_core.nets.backbones import Backbone, build_backbone
    from vssl_core.nets.clustering import Clusters, concentration, kmeans
    from vssl_core.nets.ema import Ema
    from vssl_core.nets.layers import head, mlp
    from vssl_core.nets.memory import MemoryBank, ShardedMemoryBank
    from vssl_core.nets.queue import Queue, queue_size
    from vssl_core.nets.shuffle import shuffled
    from vssl_core.nets.sinkhorn import sinkhorn
    from vssl_core.objective import (
        ClipSettings,
        Combiner,
        Context,
        Evaluation,
        ExtractedFeatures,
        Needs,
        Objective,
        Observer,
        ParameterGroup,
        PluginConfig,
        Result,
        Shared,
        Shot,
        SplitFeatures,
        Terms,
    )
    from vssl_core.requests import (
        ANY,
        PLAIN,
        Appearance,
        Between,
        Boxes,
        Centre,
        Fixed,
        Flips,
        Halves,
        Independent,
        Measure,
        Overlapping,
        Request,
        Same,
        Strides,
        Turns,
        Uniform,
    )
    from vssl_core.run.engine import Run
    from vssl_core.run.report import Report
    from vssl_core.run.weights import load_backbone
    from vssl_core.views import Batch, Features, View, Windows
    from vssl_core.windows import Sample, Window
