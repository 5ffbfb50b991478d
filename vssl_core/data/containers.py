"""Video files opened for one decoder, without threads or noise, and every failure told in one plain sentence."""

from __future__ import annotations

import os
import stat
from typing import Any

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from vssl_core.errors import VideoError

NOTHING = "has a header but not a single video frame behind it"
_NO_VIDEOS = {"tty"}  # what FFmpeg makes of a text file by its name: a picture of the text


def opened(path: str) -> InputContainer:
    """The container, for a `with`; raises VideoError with the true reason."""
    av.logging.set_libav_level(av.logging.PANIC)
    _require_file(path)
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except Exception as error:
        raise VideoError(path, _why_not_opened(error)) from error
    if container.format.name in _NO_VIDEOS:
        container.close()
        raise VideoError(path, "is a text file")
    return container


def video_streams(path: str, container: InputContainer) -> list[int]:
    """The positions of the video streams that can be decoded, default ones first; never a cover picture."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not moving:
        raise VideoError(path, _why_no_video(container))
    usable = [stream for stream in moving if stream.codec_context is not None]
    if not usable:
        raise VideoError(path, "its video codec is not supported by this FFmpeg")
    usable.sort(key=lambda stream: not stream.disposition & Disposition.default)
    return [stream.index for stream in usable]


def alone(container: InputContainer, number: int) -> VideoStream:
    """The stream at this position, to be decoded without threads and without the packets of any other stream."""
    for other in container.streams:
        other.discard = Discard.default if other.index == number else Discard.all
    stream: Any = container.streams[number]
    stream.thread_type = "NONE"  # AUTO and FRAME can hang for ever when a context is freed after an error
    stream.codec_context.thread_count = 1
    return stream


def sentence(error: Exception) -> str:
    """What an error of FFmpeg or of the system says, to be put in brackets."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def no_frame(trouble: str) -> str:
    """The reason of a video without a first frame."""
    return f"not a single frame can be decoded{f' ({trouble})' if trouble else ''}"


def _require_file(path: str) -> None:
    try:
        facts = os.stat(path)
    except OSError as error:
        raise VideoError(path, f"cannot be opened: {sentence(error)}") from error
    except ValueError as error:  # a name that holds a zero byte
        raise VideoError(path, f"is not the name of a file: {sentence(error)}") from error
    if stat.S_ISDIR(facts.st_mode):
        raise VideoError(path, "is a folder")
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError(path, "is not a regular file")  # a pipe would be waited for without end
    if facts.st_size == 0:
        raise VideoError(path, "the file is empty")


def _why_not_opened(error: Exception) -> str:
    if isinstance(error, av.error.EOFError):
        return "the file ends inside its header"
    if isinstance(error, av.error.InvalidDataError):
        return "is not a video that FFmpeg knows, or its header is damaged"
    return f"cannot be opened: {sentence(error)}"


def _why_no_video(container: InputContainer) -> str:
    if container.streams.video:
        return "has a cover picture but no moving picture"
    kinds = sorted({stream.type for stream in container.streams})
    return f"has no video stream, only {' and '.join(kinds)}" if kinds else "has no stream at all behind its header"
