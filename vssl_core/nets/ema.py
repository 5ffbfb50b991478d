"""A slow teacher: the exponential moving average of modules that are being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from vssl_core.errors import PluginError


class Ema(nn.Module):
    """Frozen copies of modules, each under its name, whose parameters follow the originals slowly.

    Everything is in the state_dict. Only parameters follow: buffers, such as the running statistics of batch norm, come
    from the copies' own forwards in training mode.
    """

    def __init__(self, **modules: nn.Module) -> None:
        """Copy each module as it is now: `Ema(backbone=net).backbone` is the teacher of `net`."""
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, frozen_copy(module))

    @torch.no_grad()
    def follow(self, momentum: float, **modules: nn.Module) -> None:
        """Set every parameter to momentum * itself + (1 - momentum) * the original's; 0 and 1 are exact."""
        mine, theirs = self._pairs(modules, nn.Module.parameters)
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    @torch.no_grad()
    def copy(self, **modules: nn.Module) -> None:
        """Take over every parameter and buffer of the originals."""
        for tensors in (nn.Module.parameters, nn.Module.buffers):
            mine, theirs = self._pairs(modules, tensors)
            if mine:
                torch._foreach_copy_(mine, theirs)

    def _pairs(
        self, modules: dict[str, nn.Module], tensors: Callable[[nn.Module], Iterable[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of all copies and of all originals, in the same order."""
        if set(modules) != set(self._modules):
            raise PluginError(
                f"Ema: holds copies of {', '.join(self._modules)}, but was given {', '.join(modules) or 'nothing'}; "
                "name every module it was built with, and no other"
            )
        mine = [tensor for name in modules for tensor in tensors(self._modules[name])]
        theirs = [tensor for module in modules.values() for tensor in tensors(module)]
        if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
            raise PluginError("Ema: a module differs in shape from its copy; give the module that the copy was made of")
        return mine, theirs


def frozen_copy(module: nn.Module) -> nn.Module:
    """A deep copy whose parameters ask for no gradient."""
    return deepcopy(module).requires_grad_(False)
