"""The numbers that a step computes in: autocast for the forward, and a backward that is right where they are short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext:
    """The precision that forwards run in."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def in_full(device: torch.device) -> AbstractContextManager[None]:
    """Where losses are combined, and perhaps differentiated: in float32, with a sound backward of what was in less."""
    return _in_full(device) if torch.is_autocast_enabled(device.type) else nullcontext()


@contextmanager
def _in_full(device: torch.device) -> Iterator[None]:
    precision = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    with torch.autocast(device.type, enabled=False), sound_backward(device, precision):
        yield


def sound_backward(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Where gradients are computed: on a CPU, bfloat16 goes without oneDNN.

    Its weight gradients of 3D convolutions read and write past their memory where a clip is as short as two frames
    (torch 2.13, oneDNN 3.12, CPUs with AVX-512): not a number in some steps, a crash in others.
    """
    return _without_onednn() if device.type == "cpu" and precision == "bfloat16" else nullcontext()


@contextmanager
def _without_onednn() -> Iterator[None]:
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
