"""What is shown to the backbone beside the video itself: a frame that stands still, and what changes between frames."""

from __future__ import annotations

import torch
from torch import Tensor


def still(clip: Tensor, frame: Tensor, frames: int) -> Tensor:
    """(B,3,frames,H,W): of each clip (B,3,T,H,W) the frame (B,) that was chosen, again and again."""
    rows = torch.arange(len(clip), device=clip.device)
    return clip[rows, :, frame].unsqueeze(2).expand(-1, -1, frames, -1, -1)  # (B,3,H,W) -> (B,3,frames,H,W)


def differences(clip: Tensor, tail: Tensor, indices: Tensor) -> Tensor:
    """(B,3,T,H,W): each frame of the clip subtracted from the next, the last from the first one of the tail.

    Where a short video began anew, which `indices` (B, T + tail) tell, nothing changed: that jump is no movement.
    """
    frames = clip.shape[2]
    whole = torch.cat([clip, tail[:, :, :1]], dim=2)  # (B,3,T+1,H,W)
    seams = (indices[:, : frames + 1].diff(dim=1) < 0)[:, None, :, None, None]  # (B,1,T,1,1)
    return (whole[:, :, 1:] - whole[:, :, :-1]).masked_fill(seams, 0.0)
