"""Batches as they leave the loader: clips of several videos, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from vssl_core.data.raw import CutClip, RawBatch, Visit, collate
from vssl_core.views import Windows
from vssl_core.windows import Window

SIDE = 4


def cut(video: int, frames: int) -> CutClip:
    """A clip of made-up pixels."""
    window = Window(video, 0, 0, 99, Fraction(video), Fraction(1), frames, 0, (0, 0, SIDE, SIDE), (SIDE, SIDE))
    pixels = np.full((frames, SIDE, SIDE, 3), video, np.uint8)
    return CutClip(pixels, window, {"colour": np.full((1, 3, 6), video)}, {"mean": np.float32(video)})


def batch_of(*videos: int) -> RawBatch:
    """Two groups: a short and a long clip; a short one."""
    return collate(
        [
            {"visit": Visit(0, 0, video), "groups": [[cut(video, 2), cut(video, 5)], [cut(video, 3)]], "ledger": []}
            for video in videos
        ]
    )


def tensors(batch: RawBatch) -> Iterator[Tensor]:
    """All that a batch holds of tensors."""
    yield batch.index
    for clip in (clip for group in batch.groups for clip in group):
        yield from (clip.frames, *clip.looks.values(), *clip.measures.values())


def test_clips_of_one_group_may_differ_in_length() -> None:
    batch = batch_of(7, 3)
    assert batch.index.tolist() == [7, 3] and [len(group) for group in batch.groups] == [2, 1]
    shapes = [tuple(clip.frames.shape) for group in batch.groups for clip in group]
    assert shapes == [(2, frames, SIDE, SIDE, 3) for frames in (2, 5, 3)]
    long = batch.groups[0][1]
    assert Windows(long.windows).indices.tolist() == [[7, 8, 9, 10, 11], [3, 4, 5, 6, 7]]
    assert long.frames[:, 0, 0, 0, 0].tolist() == [7, 3] and long.measures["mean"].tolist() == [7, 3]


def test_rows_of_a_batch_keep_all_that_is_theirs() -> None:
    batch = batch_of(4, 5, 6).slice(1, 3)
    assert [visit.video for visit in batch.visits] == batch.index.tolist() == [5, 6]
    for clip in (clip for group in batch.groups for clip in group):
        assert clip.frames[:, 0, 0, 0, 0].tolist() == [5, 6] == clip.windows["video"].tolist()
        assert clip.looks["colour"][:, 0, 0, 0].tolist() == [5, 6] == clip.measures["mean"].tolist()


def test_every_tensor_is_pinned_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning needs a device, so what it is asked for is counted; moving goes to a device that holds no numbers."""
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda rows: pinned.append(rows.data_ptr()) or rows)
    batch = batch_of(1, 2)
    torch.utils.data._utils.pin_memory.pin_memory(batch)  # as the loader's own thread does
    assert sorted(pinned) == sorted(rows.data_ptr() for rows in tensors(batch))
    moved = batch.to(torch.device("meta"))
    assert {rows.device.type for rows in tensors(moved)} == {"meta"}
    assert Windows(moved.groups[0][0].windows, "meta").start.device.type == "meta"


def test_no_rows_at_all_leave_no_groups() -> None:
    lost = {"visit": Visit(0, 0, 0), "groups": None, "ledger": [{"path": "a.mp4"}], "failure": "a.mp4: broken"}
    batch = collate([lost])
    assert len(batch.index) == 0 and batch.groups == [] and batch.failure == "a.mp4: broken"
    assert batch.ledger == [{"path": "a.mp4"}]
