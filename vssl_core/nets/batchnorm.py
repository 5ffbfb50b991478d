"""Batch normalisation over ranks, and forwards that leave running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vssl_core.distributed import world_size


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of all ranks' rows, each rank weighted by its count; on CPU and GPU
    alike.

    Torch's own layer refuses CPU tensors. On one rank this is plain batch normalisation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes (B, C, ...), got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        from fvcore.nn.distributed import differentiable_all_reduce

        axes = [0, *range(2, input.dim())]
        values = input.float()
        count = torch.full((1,), values.numel() / values.shape[1], device=values.device)
        total = differentiable_all_reduce(torch.cat([values.sum(axes), count]))  # (C + 1,)
        rows = total[-1].detach()
        average = total[:-1] / rows  # (C,)
        shape = (1, -1, *[1] * (input.dim() - 2))
        centred = values - average.view(shape)
        variance = differentiable_all_reduce(centred.square().sum(axes)) / rows  # (C,)
        if self.track_running_stats and self.running_mean is not None:
            self._remember(average.detach(), variance.detach(), rows)
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _remember(self, average: Tensor, variance: Tensor, rows: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(average, momentum)
        self.running_var.lerp_(variance * rows / (rows - 1).clamp(min=1), momentum)


def synchronise(module: nn.Module) -> nn.Module:
    """The module with every batch normalisation made to span ranks: torch's layer on GPUs, ours elsewhere."""
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
                parent._modules[name] = _converted(child)
    return module


def _converted(norm: _BatchNorm) -> SyncBatchNorm:
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var, twin.num_batches_tracked = (
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
    )
    twin.training = norm.training
    return twin


def normalisations(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations that keep running statistics."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm) and child.running_mean is not None]


@contextmanager
def still(norms: list[_BatchNorm]) -> Iterator[None]:
    """Use batch statistics, and leave running ones alone."""
    tracked = [norm for norm in norms if norm.track_running_stats]
    for norm in tracked:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracked:
            norm.track_running_stats = True
