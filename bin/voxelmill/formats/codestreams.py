"""How many pixels a compressed strip or tile declares for itself.

Picture formats carry a size of their own, and their decoders allocate it: a few hundred bytes can ask for gigabytes.
"""

from __future__ import annotations

import re
import struct

JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..[\x02-\x10](..)(..)", re.DOTALL)

SLACK = 1 << 20


def too_many_pixels(compression: int, data: bytes, expected: int) -> tuple[int, int] | None:
    """Width and height that a strip or tile declares, where they are far more than ``expected`` values; else None."""
    size = _size(compression, data)
    return size if size is not None and size[0] * size[1] > 2 * expected + SLACK else None


def _size(compression: int, data: bytes) -> tuple[int, int] | None:
    try:
        match compression:
            case 6 | 7 | 33007 | 34892:
                frame = JPEG_FRAME.search(data)
                return None if frame is None else (int.from_bytes(frame[2], "big"), int.from_bytes(frame[1], "big"))
            case 33003 | 33004 | 33005 | 34712:
                start = data.find(b"\xff\x4f\xff\x51")
                return None if start < 0 else struct.unpack_from(">II", data, start + 8)
            case 34933:
                return struct.unpack_from(">II", data, 16)
            case 34887:
                start = 14 if struct.unpack_from("<i", data, 6)[0] >= 3 else 10
                rows, columns = struct.unpack_from("<II", data, start)
                return (columns, rows) if data[:6] == b"Lerc2 " else None
            case 50001 | 34927:
                return _webp(data)
            case 50002 | 52546:
                return _jpegxl(data)
    except struct.error:
        return None
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpegxl(data: bytes) -> tuple[int, int] | None:
    start = data.find(b"\xff\x0a")
    if start < 0:
        return None
    bits = int.from_bytes(data[start + 2 : start + 18].ljust(16, b"\0"), "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def length() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = length()
    up, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return (height * up // down if up else length()), height
