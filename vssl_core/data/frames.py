"""Decoded frames, kept as the decoder left them: only what is cut is converted, and a clip is converted in one go."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # top, left, height, width
Pixels = NDArray[np.uint8]
Planes = tuple[Pixels, Pixels, Pixels]
Colour = tuple[str, int, int]  # pixel format, colour space and range of a frame

_PLANAR = {"yuv420p", "yuvj420p"}
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, which FFmpeg converts as BT.601
_KNOWN_SPACES = {0, 1, 2, 4, 5, 6, 7, 9}  # the values of AVColorSpace that FFmpeg's scaler does not refuse
_CONVERTED_AT_A_TIME = 1 << 20  # pixels: most clips at once, since each call has a price, yet no huge piles
_SCALED_AT_A_TIME = 1 << 22  # pixels: the same, and each call works its weights out anew
_memory = threading.local()  # of each thread: pixels to be scaled lie in the same place every time


class Frames:
    """The frames of one video that were asked for; boxes are in pixels of the frame as shown, after rotation.

    FFmpeg converts 4:2:0 fast once it is set up: so the boxes of a clip are cut from the decoder's planes, piled up
    into one tall picture, and that is converted. The chroma grid is kept by cutting from even pixels.
    """

    def __init__(self, frames: Mapping[int, VideoFrame | Pixels], height: int, width: int, rotation: int = 0) -> None:
        self.height, self.width = height, width
        self._turns = rotation // 90
        self._frames = dict(frames)
        self._planes: dict[int, tuple[Planes | None, Colour]] = {}
        self._reformatter = VideoReformatter()

    def rgb(self, indices: Sequence[int], box: Box | None = None) -> Pixels:
        """The frames, or one box of them, at source resolution: uint8 (T, h, w, 3)."""
        stored = self._stored(box or (0, 0, self.height, self.width))
        clip = np.empty((len(indices), *stored[2:], 3), np.uint8)
        self._convert([int(i) for i in indices], stored, clip)
        return self._turned(clip)

    def resized(self, indices: Sequence[int], box: Box, size: int) -> Pixels:
        """One box of the frames, scaled bilinearly with antialiasing: uint8 (T, size, size, 3)."""
        stored = self._stored(box)
        step = max(1, _SCALED_AT_A_TIME // (box[2] * box[3]))
        scaled = []
        for start in range(0, len(indices), step):
            some = [int(i) for i in indices[start : start + step]]
            pixels = _room(len(some), stored[2], stored[3])
            self._convert(some, stored, pixels)
            scaled.append(_scaled(pixels, size))
        clip = scaled[0] if len(scaled) == 1 else np.concatenate(scaled)
        return self._turned(clip)

    def _stored(self, box: Box) -> Box:
        """The same box in pixels of the frame as stored, before the turn for display."""
        top, left, height, width = box
        down, right = self.height - top - height, self.width - left - width
        if min(top, left, down, right) < 0 or height < 1 or width < 1:
            raise ValueError(f"box {box} does not lie in a frame of {self.height} x {self.width} pixels")
        turned = (box, (left, down, width, height), (down, right, height, width), (right, top, width, height))
        return turned[self._turns]

    def _turned(self, clip: Pixels) -> Pixels:
        """The clip as shown: (T, h, w, 3)."""
        return np.ascontiguousarray(np.rot90(clip, self._turns, axes=(1, 2))) if self._turns else clip

    def _size_stored(self) -> tuple[int, int]:
        return (self.width, self.height) if self._turns % 2 else (self.height, self.width)

    def _convert(self, indices: list[int], box: Box, out: Pixels) -> None:
        """Write the box of the frames in RGB, a few frames at a time."""
        top, left, height, width = box
        step = max(1, _CONVERTED_AT_A_TIME // (height * width))
        for start in range(0, len(indices), step):
            some, target = indices[start : start + step], out[start : start + step]
            planes, colours = zip(*map(self._look, some), strict=True)
            if None not in planes and len(set(colours)) == 1:
                self._convert_pile(planes, box, colours[0], target)
                continue
            for index, place in zip(some, target, strict=True):
                place[...] = self._converted(index)[top : top + height, left : left + width]

    def _look(self, index: int) -> tuple[Planes | None, Colour]:
        """Views of the decoder's own memory, or None where the frame has another layout or size, and its colours."""
        if index not in self._planes:
            frame = self._frames[index]
            if isinstance(frame, VideoFrame):
                kind = frame.format.name
                planes = self._views(frame) if kind in _PLANAR else None
                self._planes[index] = planes, (kind, frame.colorspace, frame.color_range)
            else:
                self._planes[index] = None, ("rgb24", 0, 0)
        return self._planes[index]

    def _views(self, frame: VideoFrame) -> Planes | None:
        height, width = frame.height, frame.width
        if (height, width) != self._size_stored() or height % 2 or width % 2 or frame.interlaced_frame:
            return None  # FFmpeg has a way of its own with odd sizes and with interlaced frames
        y, u, v = frame.planes
        if min(y.line_size - y.width, u.line_size - u.width, v.line_size - v.width) < 0:
            return None  # stored upside down
        return _view(y), _view(u), _view(v)

    def _convert_pile(self, planes: Sequence[Planes], box: Box, colour: Colour, out: Pixels) -> None:
        """Write a box of 4:2:0 frames in RGB: (n, h, w, 3)."""
        top, left, height, width = box
        odd_top, odd_left = top % 2, left % 2
        tall, wide = (odd_top + height + 1) // 2 * 2, (odd_left + width + 1) // 2 * 2  # of one tile, even
        pile = VideoFrame(wide, tall * len(planes), colour[0])
        pile.colorspace, pile.color_range = colour[1:]
        views = [_view(plane) for plane in pile.planes]
        for scale, source, target in zip((1, 2, 2), zip(*planes, strict=True), views, strict=True):
            _stack(source, (top // 2 * 2 // scale, left // 2 * 2 // scale, tall // scale, wide // scale), target)
        tiles = _view(self._reformatter.reformat(known_colours(pile), format="rgb24", threads=1).planes[0], 3)
        tiles = tiles.reshape(len(planes), tall, wide, 3)
        out[...] = tiles[:, odd_top : odd_top + height, odd_left : odd_left + width]

    def _converted(self, index: int) -> Pixels:
        """The whole frame as stored, in RGB: (H, W, 3)."""
        frame = self._frames[index]
        if not isinstance(frame, VideoFrame):
            return frame
        height, width = self._size_stored()
        converted = self._reformatter.reformat(known_colours(frame), width, height, "rgb24", threads=1)
        picture = _view(converted.planes[0], 3).reshape(height, width, 3)
        if self._look(index)[0] is None:
            self._frames[index] = picture  # the decoder's frame serves for nothing else: let it go
        return picture


def known_colours(frame: VideoFrame) -> VideoFrame:
    """The frame, its colour space taken for BT.601 if FFmpeg's scaler would refuse it."""
    if frame.colorspace not in _KNOWN_SPACES:
        frame.colorspace = _UNSPECIFIED
    return frame


def _view(plane: VideoPlane, channels: int = 1) -> Pixels:
    """The samples of a plane, without the padding of its rows: (H, W * channels)."""
    return np.ndarray((plane.height, plane.width * channels), np.uint8, plane, 0, (plane.line_size, 1))  # type: ignore[arg-type]


def _stack(planes: Sequence[Pixels], box: Box, target: Pixels) -> None:
    """Copy a box of every plane into the target, one below the other; what lies outside a plane is left as it is."""
    top, left, height, width = box
    for number, plane in enumerate(planes):
        cut = plane[top : top + height, left : left + width]
        target[number * height : number * height + cut.shape[0], : cut.shape[1]] = cut


def _room(count: int, height: int, width: int) -> Pixels:
    """Memory for `count` pictures in RGB, valid until the next call in this thread."""
    needed = count * height * width * 3
    room = getattr(_memory, "room", None)
    if room is None or len(room) < needed:
        room = np.empty(needed, np.uint8)
        if needed <= 3 * _SCALED_AT_A_TIME:
            _memory.room = room
    return room[:needed].reshape(count, height, width, 3)


def _scaled(clip: Pixels, size: int) -> Pixels:
    """Bilinear, antialiased: (n, h, w, 3) to (n, size, size, 3)."""
    import torch

    images = torch.from_numpy(clip).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())
