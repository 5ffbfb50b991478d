"""Parameter groups by name, the optimizer, and the learning rate over the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vssl_core.config import OptimSection
from vssl_core.errors import PluginError
from vssl_core.objective import Combiner, Objective
from vssl_core.run.ensemble import Ensemble

MOMENTS = {"sgd": 1, "lars": 1, "adamw": 2}  # numbers that an optimizer keeps of each trained one


class Lars(torch.optim.Optimizer):
    """SGD whose step is scaled for each tensor by |weight| / |gradient| (You et al. 2017, eq.

    6); vectors are not scaled.
    """

    def __init__(self, parameters: Any, lr: float, momentum: float, weight_decay: float, trust: float = 0.001) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                direction = parameter.grad.add(parameter, alpha=group["weight_decay"])
                if parameter.ndim > 1:
                    sizes = parameter.norm(), direction.norm()
                    direction = direction * torch.where(
                        (sizes[0] > 0) & (sizes[1] > 0), group["trust"] * sizes[0] / sizes[1], torch.ones_like(sizes[0])
                    )
                buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.mul_(group["momentum"]).add_(direction)
                parameter.add_(buffer, alpha=-group["lr"])


def build_optimizer(ensemble: Ensemble, section: OptimSection) -> torch.optim.Optimizer:
    """The optimizer over every trained parameter, each in one group; groups carry `names`, `scale` and `follow`."""
    groups = list(_groups(ensemble, section).values())
    if not groups:
        raise PluginError("plugins: nothing is trained; choose at least one plugin with an objective")
    if section.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay, fused=True
        )
        if section.momentum:  # the fused step fails where some parameters get their first gradient later than others
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    if section.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=section.lr, betas=section.betas, weight_decay=section.weight_decay, fused=True
        )
    return Lars(groups, section.lr, section.momentum, section.weight_decay)


def _groups(ensemble: Ensemble, section: OptimSection) -> dict[tuple, dict[str, Any]]:
    own = _own_groups(ensemble)
    bare = set() if section.decay_norms else _undecayed(ensemble)
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in ensemble.named_parameters():
        if not parameter.requires_grad:
            continue
        scale, schedule, decay = own.get(parameter, (1.0, "run", None))
        decay = decay if decay is not None else (0.0 if parameter in bare else section.weight_decay)
        group = groups.setdefault(
            (scale, schedule, decay),
            {"params": [], "names": [], "scale": scale, "schedule": schedule, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return groups


def _own_groups(ensemble: Ensemble) -> dict[nn.Parameter, tuple[float, str, float | None]]:
    trained = {parameter for parameter in ensemble.parameters() if parameter.requires_grad}
    own: dict[nn.Parameter, tuple[float, str, float | None]] = {}
    owners: dict[str, Objective | Combiner] = {
        **{f"plugin '{name}'": objective for name, objective in ensemble.objectives.items()},
        f"combiner {type(ensemble.combiner).__name__}": ensemble.combiner,
    }
    for where, owner in owners.items():
        for group in owner.parameter_groups():
            for parameter in group.parameters:
                if parameter in own:
                    raise PluginError(f"{where}: parameter_groups names a parameter twice; each may be in one group")
                if parameter not in trained:
                    raise PluginError(f"{where}: parameter_groups names a parameter that is not trained in this run")
                own[parameter] = (group.learning_rate_scale, group.schedule, group.weight_decay)
    return own


def _undecayed(ensemble: Ensemble) -> set[nn.Parameter]:
    norms = {
        parameter
        for module in ensemble.modules()
        if isinstance(module, _BatchNorm | nn.LayerNorm)
        for parameter in module.parameters(recurse=False)
    }
    return norms | {parameter for name, parameter in ensemble.named_parameters() if name.endswith("bias")}


def build_schedule(section: OptimSection, epochs: int) -> ParamScheduler:
    """The learning rate as a function of the share of the run that is done, in [0, 1)."""
    warmup = min(section.warmup_epochs / epochs, 1.0)
    if section.schedule == "cosine":
        main: ParamScheduler = CosineParamScheduler(section.lr, section.final_lr)
    elif section.schedule == "steps":
        values = [section.lr * section.gamma**passed for passed in range(len(section.milestones) + 1)]
        shares = [(milestone / epochs - warmup) / max(1 - warmup, 1e-9) for milestone in section.milestones]
        main = _Steps(values, shares)
    else:
        main = ConstantParamScheduler(section.lr)
    if not warmup:
        return main
    start = LinearParamScheduler(section.warmup_lr, section.lr)
    if warmup >= 1:
        return start
    return CompositeParamScheduler([start, main], [warmup, 1 - warmup], ["rescaled", "rescaled"])


class _Steps(MultiStepParamScheduler):
    """fvcore's steps over shares of the run: exact milestones, however long the run is."""

    def __init__(self, values: list[float], shares: list[float]) -> None:
        self.values, self.shares = values, shares

    def __call__(self, where: float) -> float:
        return self.values[sum(where >= share for share in self.shares)]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, peak: float) -> None:
    """Give every group its learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["schedule"] == "constant" else rate) * group["scale"]


# State by name --------------------------------------------------------------------------------------------------------


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """{parameter name: its state}: positions would misassign moments when plugins come or go."""
    return {
        name: dict(optimizer.state[parameter])
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put saved states back, by name; parameters without one start afresh."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in state:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) if isinstance(value, torch.Tensor) else value
                    for key, value in state[name].items()
                }
