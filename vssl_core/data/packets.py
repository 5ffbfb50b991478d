"""What the bytes of a coded packet prove, where a container's own flags cannot be trusted."""

from __future__ import annotations

from typing import NamedTuple

from av import Packet


class Look(NamedTuple):
    """What one packet is seen to be."""

    shown: bool = True  # it holds a frame that will be shown
    plain: bool = True  # exactly one, not visibly damaged, and in the place where its time says it is
    entry: bool = False  # nothing that comes after it refers to what came before it


# Codecs whose key frames need no look inside: where the container calls a packet a key, decoding may begin.
_KEYS_TRUSTED = {"av1", "ffv1", "mjpeg", "prores", "vp8", "vp9"}
_H264_IDR = 5  # an IDR slice: a recovery point, which containers call a key too, refers to what was before it
_HEVC_IRAP = range(16, 22)
_VOP_START = b"\x00\x00\x01\xb6"
_SMALLEST_VOP = 9  # bytes; an MPEG-4 packet below this holds no picture ("not coded")
_I_VOP, _B_VOP = 0, 2


def look(codec: str, extradata: bytes | None, packet: Packet, b_frames_in_order: bool) -> Look:
    """Look into a packet; `b_frames_in_order` says whether its container gives B-frames their times."""
    if codec in ("h264", "hevc"):
        return _look_at_units(codec, extradata, bytes(packet))
    if codec == "mpeg4":
        return _look_at_vop(bytes(packet), b_frames_in_order)
    if codec in ("vp8", "vp9"):
        return Look(shown=_is_shown(codec, bytes(packet)), entry=True)
    return Look(entry=codec in _KEYS_TRUSTED)


def _look_at_units(codec: str, extradata: bytes | None, data: bytes) -> Look:
    """H.264 and HEVC: the chain of length-prefixed units must be whole (avcC and hvcC, ISO/IEC 14496-15)."""
    position = 4 if codec == "h264" else 21
    if not extradata or len(extradata) <= position or extradata[0] != 1:
        return Look(plain=False)
    width = (extradata[position] & 3) + 1
    start, entry = 0, False
    while start + width < len(data):
        kind = data[start + width]
        entry = entry or (kind & 0x1F == _H264_IDR if codec == "h264" else (kind >> 1 & 0x3F) in _HEVC_IRAP)
        start += width + int.from_bytes(data[start : start + width], "big")
    return Look(plain=start == len(data), entry=entry)


def _look_at_vop(data: bytes, b_frames_in_order: bool) -> Look:
    """MPEG-4 part 2: one coded picture, not two in one packet, and no B-VOP where times are those of decoding."""
    first = data.find(_VOP_START)
    if first < 0 or len(data) < max(_SMALLEST_VOP, first + 5) or data.find(_VOP_START, first + 4) >= 0:
        return Look(plain=False)
    kind = data[first + 4] >> 6
    return Look(plain=b_frames_in_order or kind != _B_VOP, entry=kind == _I_VOP)


def _is_shown(codec: str, data: bytes) -> bool:
    """VP8 and VP9 have packets that are only referred to (RFC 6386, 9.1; VP9 bitstream specification, 6.2)."""
    if not data:
        return False
    if codec == "vp8":
        return bool(data[0] >> 4 & 1)
    if data[-1] & 0xE0 == 0xC0:  # a superframe: its last frame is shown
        return True
    after = 1 if data[0] & 0x30 == 0x30 else 0  # profile 3 has one more bit
    return bool(data[0] >> (3 - after) & 1 or data[0] >> (1 - after) & 1)  # shows an existing frame, or this one
