"""What an objective sees: views, the features of a view, and the batch.

Axes: B videos, C channels, T frames, H W pixels, D features, K queue rows or prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vssl_core.windows import Sample, Window


class Windows:
    """The windows of one clip for each video of the batch, as tensors: what labels are read off.

    Most objectives read a field or two, so each becomes a tensor, on the batch's device, when it is first asked for.
    """

    video: Tensor  # (B,) int64
    visit: Tensor  # (B,) int64
    clip: Tensor  # (B,) int64
    total: Tensor  # (B,) int64: frames the video has
    start: Tensor  # (B,) float64, in frames
    stride: Tensor  # (B,) float64, in frames
    indices: Tensor  # (B, T + tail) int64
    real: Tensor  # (B, T + tail) bool: False after a wrap or a clamp
    box: Tensor  # (B, 4) int64: top, left, height, width
    frame_size: Tensor  # (B, 2) int64: height, width
    flip: Tensor  # (B,) bool
    turns: Tensor  # (B,) int64: quarter turns counter-clockwise
    span: Tensor  # (B,) float64: (frames - 1) * stride

    def __init__(self, arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> None:
        self._arrays, self._device = arrays, device

    @classmethod
    def of(cls, windows: Sequence[Window], device: torch.device | str = "cpu") -> Windows:
        """Of one clip in each of B videos."""
        return cls(window_arrays(windows), device)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._arrays:
            raise AttributeError(f"windows have no '{name}'; they have {', '.join(type(self).__annotations__)}")
        tensor = torch.from_numpy(self._arrays[name]).to(self._device, non_blocking=True)
        setattr(self, name, tensor)
        return tensor

    def shared_time(self, other: Windows) -> Tensor:
        """(B,) the share of this clip's span that the other one covers too, in [0, 1]; of one frame, all or nothing."""
        low = torch.maximum(self.start, other.start)
        high = torch.minimum(self.start + self.span, other.start + other.span)
        share = (high - low) / torch.where(self.span > 0, self.span, 1)
        return torch.where(self.span > 0, share.clamp(min=0, max=1), (high >= low).to(share))

    def shared_area(self, other: Windows) -> Tensor:
        """(B,) the share of this clip's box that the other one covers too, in [0, 1]; not the IoU."""
        first, second = self.box.double(), other.box.double()
        low = torch.maximum(first[:, :2], second[:, :2])
        high = torch.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
        return (high - low).clamp(min=0).prod(dim=1) / first[:, 2:].prod(dim=1)


def window_arrays(windows: Sequence[Window]) -> dict[str, np.ndarray]:
    """The fields of `Windows` for B windows of one length, each as an array (B, ...)."""
    return {
        "video": np.array([window.video for window in windows], np.int64),
        "visit": np.array([window.visit for window in windows], np.int64),
        "clip": np.array([window.clip for window in windows], np.int64),
        "total": np.array([window.total for window in windows], np.int64),
        "start": np.array([float(window.start) for window in windows], np.float64),
        "stride": np.array([float(window.stride) for window in windows], np.float64),
        "indices": np.stack([window.indices for window in windows]),
        "real": np.stack([window.real for window in windows]),
        "box": np.array([window.box for window in windows], np.int64),
        "frame_size": np.array([window.frame_size for window in windows], np.int64),
        "flip": np.array([window.flip for window in windows], np.bool_),
        "turns": np.array([window.turns for window in windows], np.int64),
        "span": np.array([float((window.frames - 1) * window.stride) for window in windows], np.float64),
    }


class Features:
    """The backbone's answer to one clip: computed when first asked for, remembered, shared by all who ask.

    Never change it in place.
    """

    def __init__(self, compute: Callable[[], dict[str, Tensor]]) -> None:
        self._compute: Callable[[], dict[str, Tensor]] | None = compute
        self._stages: dict[str, Tensor] = {}
        self._vector: Tensor | None = None

    @property
    def stages(self) -> dict[str, Tensor]:
        """{name: (B,C,T,H,W)} float32, first stage first."""
        if self._compute is not None:
            self._stages, self._compute = self._compute(), None
        return self._stages

    @property
    def map(self) -> Tensor:
        """(B,D,T,H,W) the last stage."""
        return next(reversed(self.stages.values()))

    @property
    def vector(self) -> Tensor:
        """(B,D) the last stage, averaged over time and space."""
        if self._vector is None:
            with torch.set_grad_enabled(self.map.requires_grad):
                self._vector = self.map.mean(dim=(2, 3, 4))  # (B,D,T,H,W) -> (B,D)
        return self._vector

    @property
    def asked(self) -> bool:
        """Whether anybody has asked for them yet."""
        return self._compute is None


@dataclass(frozen=True)
class View:
    """One clip of each video of the batch, and all that is known of it."""

    clip: Tensor  # (B,C,T,H,W) float32, normalised
    tail: Tensor  # (B,C,tail,H,W) the frames after the clip
    windows: Windows
    measures: Mapping[str, Tensor]  # {name: (B, ...)}
    features: Features


class Batch:
    """What one objective sees of one step: `batch['slot']` is a tuple of views."""

    def __init__(
        self,
        name: str,
        slots: Mapping[str, tuple[View, ...]],
        index: Tensor,
        samples: list[Sample],
        *,
        epoch: int,
        progress: float,
        encode: Callable[[Tensor, bool], Features],
    ) -> None:
        self.name = name
        self.index = index  # (B,) int64: which videos, by their place in the list
        self.epoch = epoch  # from 0
        self.progress = progress  # share of the run that is done, in [0, 1)
        self._slots, self._samples, self._encode = slots, samples, encode

    def __getitem__(self, slot: str) -> tuple[View, ...]:
        return self._slots[slot]

    def __len__(self) -> int:
        return len(self._samples)

    def encode(self, clip: Tensor, statistics: bool = False) -> Features:
        """The same backbone on a private input (B',3,T,H,W): batch statistics are used, running ones left alone.

        `statistics=True` is for an objective that reads nothing but private inputs: the running ones then follow them.
        """
        return self._encode(clip, statistics)

    def draw(self, name: str, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) random numbers of each sample: integers in [low, high) where both are int, else floats.

        Keyed by (seed, epoch, visit, video, name), so rows, ranks, workers and restarts cannot change them.
        """
        whole = isinstance(low, int) and isinstance(high, int)
        rows = []
        for sample in self._samples:
            generator = sample.generator(f"{self.name}/{name}")
            row = generator.integers(int(low), int(high), shape) if whole else generator.uniform(low, high, shape)
            rows.append(np.asarray(row, np.int64 if whole else np.float32))
        return torch.as_tensor(np.stack(rows), device=self.index.device)
