"""What the bytes of one coded packet prove, where a container's own flags cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator

# Codecs whose key frames need no look inside: everything after one can be decoded from it.
_KEYS_TRUSTED = {"av1", "ffv1", "mjpeg", "prores", "vp8", "vp9"}
_VOP_START = b"\x00\x00\x01\xb6"
_SMALLEST_CODED_VOP = 9  # an MPEG-4 packet below this holds no picture ("not coded")


def may_be_hidden(codec: str) -> bool:
    """Whether packets of this codec may hold no frame to be shown, so that each must be looked at."""
    return codec in {"vp8", "vp9", "mpeg4"}


def shows_frame(codec: str, data: bytes) -> bool:
    """Whether a packet of VP8 or VP9 holds a frame to be shown (RFC 6386, 9.1; VP9 bitstream, 6.2)."""
    if not data:
        return False
    if codec == "vp8":
        return bool(data[0] >> 4 & 1)
    if codec == "vp9":
        if data[-1] & 0xE0 == 0xC0:  # a superframe: its last frame is shown
            return True
        after = 1 if data[0] & 0x30 == 0x30 else 0  # profile 3 has one more bit
        shows_existing, shown = data[0] >> (3 - after) & 1, data[0] >> (1 - after) & 1
        return bool(shows_existing or shown)
    return True


def plain_picture(data: bytes, b_frames_allowed: bool) -> bool:
    """Whether an MPEG-4 part 2 packet holds exactly one coded picture, and one that is not a B-VOP unless allowed."""
    first = data.find(_VOP_START)
    if first < 0 or len(data) < _SMALLEST_CODED_VOP or len(data) < first + 5:
        return False
    if data.find(_VOP_START, first + 4) >= 0:
        return False
    is_b = data[first + 4] >> 6 == 2
    return b_frames_allowed or not is_b


def safe_entry(codec: str, extradata: bytes | None, data: bytes) -> bool:
    """Whether decoding may begin at this key packet: it proves that nothing after it refers to what was before it."""
    if codec == "h264":
        return any(unit & 0x1F == 5 for unit in _units(extradata, 4, data))  # an IDR slice, not a recovery point
    if codec == "hevc":
        return any(16 <= unit >> 1 & 0x3F <= 21 for unit in _units(extradata, 21, data))  # IRAP pictures
    if codec == "mpeg4":
        first = data.find(_VOP_START)
        return first >= 0 and data[first + 4] >> 6 == 0  # an I-VOP
    return codec in _KEYS_TRUSTED


def _units(extradata: bytes | None, position: int, data: bytes) -> Iterator[int]:
    """The first byte of every length-prefixed NAL unit; none where the stream is not length-prefixed (avcC, hvcC)."""
    if not extradata or len(extradata) <= position or extradata[0] != 1:
        return
    width = (extradata[position] & 3) + 1
    start = 0
    while start + width < len(data):
        yield data[start + width]
        start += width + int.from_bytes(data[start : start + width], "big")
