"""Prediction error: what the state of a clip says of the state of another one, at another time, of the same part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(nn.Module):
    """A layer of attention by likeness, without softmax, that makes a state of one moment from one of another.

    States are (M, C, U): C channels at each of U places in space and time.
    """

    def __init__(self, channels: int, *, power: float = 1.0, unit_values: bool = True, project: bool = False) -> None:
        """`power` of the attention, unit length of the values, and a linear layer in front are the code's."""
        super().__init__()
        self.value = nn.Linear(channels, channels)
        self.projector = nn.Conv1d(channels, channels, 1) if project else nn.Identity()
        self.power, self.unit_values = power, unit_values

    def forward(self, early: Tensor, late: Tensor) -> Tensor:
        """The mean distance, over channels too, between states and predictions, both ways; targets get no gradient."""
        with torch.autocast(early.device.type, enabled=False):  # sums over all places need more than eight bits
            states = self.projector(torch.cat([early, late]).float())
            early, late = states.chunk(2)
            return (self.predict(states) - torch.cat([late, early]).detach()).abs().mean()

    def predict(self, states: Tensor) -> Tensor:
        """(M, C, U): at each place the sum of all values, each times how alike the two places are."""
        values = self.value(states.transpose(1, 2))  # (M, U, C)
        if self.unit_values:
            values = F.normalize(values, dim=2)
        return (attention(states, self.power) @ values).transpose(1, 2)


def attention(states: Tensor, power: float = 1.0) -> Tensor:
    """(M, U, U) how alike the places of states (M, C, U) are: their cosine, or 0 where it is negative."""
    unit = F.normalize(states, dim=1)
    alike = (unit.transpose(1, 2) @ unit).relu()
    return alike if power == 1 else alike.pow(power)
