"""What identifies a backbone in a result: name, size, cost and the shapes of its stages."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from vssl_core.nets.stages import stage_shapes

#: What fvcore calls the operators that multiply and add; it counts norms and pools too, which these figures leave out.
PRODUCTS = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum")


def fingerprint(backbone: nn.Module, frames: int, size: int) -> dict[str, object]:
    """Name, parameters, multiply-accumulates of one clip and stage shapes, ready for JSON.

    `flops` is what fvcore counts and the literature prints: one multiply-accumulate of a convolution or matrix product
    is one; norms, activations and pooling are left out.
    """
    return {
        "name": backbone.name,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "flops": multiply_accumulates(backbone, frames, size),
        "flops_unit": "multiply-accumulates per clip",
        "clip": [3, frames, size, size],
        "feature_dim": backbone.feature_dim,
        "stages": {stage: list(shape) for stage, shape in stage_shapes(backbone, frames, size).items()},
    }


def multiply_accumulates(backbone: nn.Module, frames: int, size: int) -> int:
    """Multiply-accumulates of one clip in convolutions and matrix products; runs a copy of the net once."""
    from fvcore.nn import FlopCountAnalysis

    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    clip = torch.zeros(1, 3, frames, size, size, device=device)
    with torch.no_grad():
        count = FlopCountAnalysis(deepcopy(backbone).eval(), clip)  # a trace: on the meta device it does not work
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = count.by_operator()
    return int(sum(by_operator[name] for name in PRODUCTS))
