"""Local features of concepts: each prototype gathers what belongs to it from all places of a feature map."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module, ABC):
    """Prototypes ask, the places of a map answer; shuffled places give the same."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)

    @abstractmethod
    def weights(self, prototypes: Tensor, places: Tensor) -> Tensor:
        """(B, K, N) what each of K prototypes (K, C) takes from each of N places (B, N, C): shares that sum to 1."""

    @abstractmethod
    def forward(self, prototypes: Tensor, places: Tensor) -> Tensor:
        """(B, K, C) the local feature of each concept, in float32."""

    def _scores(self, prototypes: Tensor, places: Tensor) -> Tensor:
        """(B, K, N) in float32."""
        queries, keys = self.query(prototypes).float(), self.key(places).float()
        with torch.autocast(places.device.type, enabled=False):
            return queries @ keys.transpose(1, 2) / keys.shape[2] ** 0.5

    def _gathered(self, weights: Tensor, places: Tensor) -> Tensor:
        """(B, K, C) in float32."""
        values = self.value(places).float()
        with torch.autocast(places.device.type, enabled=False):
            return weights @ values


class Residual(Attention):
    """The paper's: softmax over places, and the prototypes themselves are added."""

    def weights(self, prototypes: Tensor, places: Tensor) -> Tensor:
        # Prototypes have unit length and scores are divided by sqrt(C), which is made for entries of unit size: without
        # this, all scores would nearly be 0, and every concept would look everywhere alike.
        return self._scores(prototypes * prototypes.shape[1] ** 0.5, places).softmax(dim=2)

    def forward(self, prototypes: Tensor, places: Tensor) -> Tensor:
        return prototypes + self._gathered(self.weights(prototypes, places), places)


class Competing(Attention):
    """The released code's: concepts compete for each place (softmax over concepts), then shares are made to sum to 1.

    After Weinzaepfel et al., Learning Super-Features for Image Retrieval, ICLR 2022, with one iteration.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.prototype_norm, self.place_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        hidden = max(features // 2, 1)
        self.norm = nn.LayerNorm(features)
        self.refine = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, features))

    def weights(self, prototypes: Tensor, places: Tensor) -> Tensor:
        scores = self._scores(self.prototype_norm(prototypes), self.place_norm(places))
        return F.normalize(scores.softmax(dim=1), p=1, dim=2)

    def forward(self, prototypes: Tensor, places: Tensor) -> Tensor:
        gathered = prototypes + self._gathered(self.weights(prototypes, places), self.place_norm(places))
        return gathered + self.refine(self.norm(gathered)).float()
