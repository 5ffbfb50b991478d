"""Frames through torchcodec, for files whose times prove which frame is which; everything else goes to PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vssl_core.errors import ConfigError

if TYPE_CHECKING:
    from vssl_core.data.decode import Scan


def read_with_torchcodec(path: str, wanted: Sequence[int], facts: Scan) -> dict[int, NDArray[np.uint8]] | None:
    """The frames in RGB, each (H, W, 3); None where torchcodec cannot be trusted with this file or fails on it."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # it loads FFmpeg's libraries on import, and says which it misses
        told = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"data.decoder: torchcodec cannot be loaded ({told.splitlines()[0]}); "
            "install it with the shared libraries of FFmpeg, or set data.decoder=pyav"
        ) from error
    if facts.times is None or not facts.keys_hold or facts.rotation:
        return None
    try:
        decoder = VideoDecoder(path, stream_index=facts.stream, dimension_order="NHWC", num_ffmpeg_threads=1)
        if decoder.metadata.num_frames != facts.frames:
            return None
        pictures = decoder.get_frames_at(list(wanted)).data.numpy()  # (T, H, W, 3)
    except Exception:
        return None  # PyAV finds out what is wrong
    if pictures.shape[1:3] != (facts.height, facts.width):
        return None
    return dict(zip(wanted, pictures, strict=True))
