"""The backbones that can be named in a config, and how one is built from its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module

from vssl_core.errors import ConfigError, did_you_mean
from vssl_core.nets.fingerprint import fingerprint
from vssl_core.nets.stages import Backbone, stage_shapes

__all__ = ["Backbone", "build_backbone", "builtin_backbones", "fingerprint", "stage_shapes"]

#: Which file builds which nets; a file is imported when one of its nets is built, since PyTorchVideo takes a second.
FAMILIES = {
    "residual": ("tiny", "r3d_10", "r2plus1d_10", "r3d_18", "r2plus1d_18", "r2plus1d_18_vcop", "r3d_18_hara"),
    "c3d": ("c3d_light", "c3d"),
    "inception": ("s3d", "s3dg", "s3dg_pace"),
    "zoo": ("slow_r50", "r2plus1d_r50", "slowfast_r50", "x3d_s", "x3d_m", "csn_r101", "mvit_base_16x4"),
}


def builtin_backbones() -> Mapping[str, Callable[..., Backbone]]:
    """Every net of our own by name, as a function that builds it with fresh weights."""
    return {name: partial(_build, family, name) for family, names in FAMILIES.items() for name in names}


def build_backbone(name: str, **options: object) -> Backbone:
    """The named net with fresh weights, drawn from torch's generator; `ConfigError` for a name or option it lacks."""
    builders = builtin_backbones()
    if name not in builders:
        raise ConfigError(
            f"backbone.name: no backbone is called '{name}'{did_you_mean(name, builders)}; "
            f"choose one of {', '.join(builders)}"
        )
    return builders[name](**options)


def _build(family: str, name: str, **options: object) -> Backbone:
    builder = getattr(import_module(f"vssl_core.nets.{family}"), name)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            choice = f"; it takes {', '.join(known)}" if known else "; it takes no options"
            advice = did_you_mean(option, known) or choice
            raise ConfigError(f"backbone.options.{option}: '{name}' has no such option{advice}")
    return builder(**options)
