"""The smallest objective there is: combiners and observers are trained with it, to have something to watch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vssl_core.objective import Context, Objective, PluginConfig, Terms
from vssl_core.plugins import Plugin
from vssl_core.requests import Request
from vssl_core.run.build import Chosen
from vssl_core.views import Batch


class StandIn(Objective):
    """Tells the mean colour of a clip from its features."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.head = nn.Linear(context.feature_dim, 3)

    def requests(self) -> Mapping[str, Request]:
        """One clip as the run describes it."""
        return {"clip": Request()}

    def forward(self, batch: Batch) -> Terms:
        """The squared error."""
        (view,) = batch["clip"]
        told, colour = self.head(view.features.vector), view.clip.mean(dim=(2, 3, 4))  # (B, 3)
        return Terms({"colour": (told - colour).square().mean()})


def with_stand_ins(chosen: Chosen, count: int) -> Chosen:
    """The same choice, with this many stand-ins trained beside it."""
    names = [f"stand-in-{number + 1}" for number in range(count)]
    plugins = {**chosen.plugins, **{name: Plugin(name, "", None, StandIn, None, None) for name in names}}
    options = {**chosen.options, **{name: PluginConfig() for name in names}}
    config = chosen.config.model_copy(update={"plugins": {**chosen.config.plugins, **{name: {} for name in names}}})
    return replace(chosen, plugins=plugins, options=options, config=config)
