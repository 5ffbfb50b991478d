"""Which slots of the bank a clip is told from, and how many."""

from __future__ import annotations

import torch
from torch import Tensor

from vssl_core import ConfigError, Context
from vssl_saccades.options import Options

PUBLISHED_NEGATIVES = 1024


def negative_slots(own: Tensor, drawn: Tensor, slots: int, siblings: str) -> Tensor:
    """(B, A, K) the slots that clips of slots `own` (B, A) are told from, none of them their own.

    `drawn` (B, A, R) numbers the slots that may be drawn: those of other videos, or with siblings "sampled" all but the
    own one. With "always" the other slots of the own video come first.
    """
    own = own[:, :, None]
    if siblings == "sampled":
        return drawn + (drawn >= own)
    first = own - own % slots  # of the video
    others = drawn + slots * (drawn >= first)
    if siblings == "never":
        return others
    steps = torch.arange(1, slots, device=own.device)
    return torch.cat([first + (own + steps) % slots, others], dim=2)


def number_of_negatives(config: Options, slots: int, context: Context) -> int:
    """What was asked, or the published number, or what there is; a `ConfigError` where that cannot be."""
    most = context.videos * slots - (slots if config.siblings == "never" else 1)
    least = slots - 1 if config.siblings == "always" else 1
    if config.negatives is None:
        return min(PUBLISHED_NEGATIVES, most)
    if not least <= config.negatives <= most:
        raise ConfigError(
            f"plugins.{context.name}.negatives: {config.negatives} cannot be taken from the {most} other slots of "
            f"{context.videos} videos, of which {least} at least; choose a number from {least} to {most}, or null"
        )
    return config.negatives
