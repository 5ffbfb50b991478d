"""The small nets behind a backbone: projectors, predictors and classification heads."""

from __future__ import annotations

from torch import nn


def mlp(*sizes: int, norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers from `sizes[0]` to `sizes[-1]` features, (B, D) in and out, with norm and ReLU between them.

    `norm` puts a batch norm before every ReLU; `last_norm` adds one without scale and shift to the output, which keeps
    the outputs of a batch centred and of one size. A linear layer before a norm has no bias, since the norm removes it.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp: needs the sizes of its input and output at least, got {sizes}")
    *hidden, last = range(1, len(sizes))
    layers: list[nn.Module] = []
    for layer in hidden:
        layers.append(nn.Linear(sizes[layer - 1], sizes[layer], bias=not norm))
        layers += [nn.BatchNorm1d(sizes[layer])] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(sizes[last - 1], sizes[last], bias=not last_norm))
    layers += [nn.BatchNorm1d(sizes[last], affine=False)] if last_norm else []
    return nn.Sequential(*layers)


def head(inputs: int, classes: int, layers: int = 1, norm: bool = True) -> nn.Sequential:
    """A classifier of `layers` linear layers, (B, inputs) to logits (B, classes); `inputs` is the hidden width too."""
    return mlp(*[inputs] * layers, classes, norm=norm)
