"""One pass over an image that feeds its writers: read in boxes of whole chunks, encode in threads, write in order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from voxelmill.formats.planes import ImageWriter, Key, Piece
from voxelmill.image import Box, cut_box, whole

LARGE = 8 << 20
"""Bytes from which a longer band is not faster."""

MAX_THREADS = 8
"""Threads that encode; what they make does not depend on their number."""

Read = Callable[[int, Box], np.ndarray]
"""Channel, box -> voxels (z, y, x)."""


@dataclass(frozen=True)
class Part:
    """A writer, and what of the image's values it gets."""

    writer: ImageWriter
    values: Callable[[np.ndarray], np.ndarray]


def write_bands(
    read: Read,
    shape: Sequence[int],
    chunk: Sequence[int],
    itemsize: int,
    parts: Sequence[Part],
    memory_budget: int,
) -> None:
    """Write an image with one or several writers, in one pass over it.

    Parameters
    ----------
    read : callable
    shape : sequence of int
        Channels, z, y, x.
    chunk : sequence of int
        Voxels (z, y, x) that the source decodes at once.
    itemsize : int
        Bytes of a voxel of the source, or of the widest file.
    parts : sequence of Part
        All with the same order of channels.
    memory_budget : int
        Bytes. Where whole chunks do not fit, they are decoded several times.
    """
    writers = [part.writer for part in parts]
    channels = range(shape[0])
    groups: list[Sequence[int]] = [[c] for c in channels] if writers[0].by_channel else [channels]
    least = max(writer.depth for writer in writers), math.lcm(*(writer.rows for writer in writers))
    step = band_step(shape[1:], chunk, itemsize * len(groups[0]), least, memory_budget // 2 // copies(len(parts)))
    pool = ThreadPoolExecutor(thread_count())
    try:
        for group in groups:
            for slab in cut_box(whole(shape[1:]), (step[0], shape[2], shape[3])):
                for writer in writers:
                    writer.begin(group, slab[0])
                waiting: list[tuple[ImageWriter, Key, Future[Piece]]] = []
                for box in cut_box(slab, (step[0], step[1], shape[3])):
                    started = _start(read, group, box, parts, pool)
                    _accept(waiting)
                    waiting = started
                _accept(waiting)
                for writer in writers:
                    writer.flush()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(
    read: Read, channels: Sequence[int], box: Box, parts: Sequence[Part], pool: ThreadPoolExecutor
) -> list[tuple[ImageWriter, Key, Future[Piece]]]:
    """Read a band and have it encoded."""
    voxels = [read(channel, box) for channel in channels]
    return [
        (part.writer, key, pool.submit(part.writer.encode, values))
        for part in parts
        for key, values in part.writer.cut(channels, box, [part.values(array) for array in voxels])
    ]


def _accept(encoded: list[tuple[ImageWriter, Key, Future[Piece]]]) -> None:
    for writer, key, piece in encoded:
        writer.accept(key, piece.result())


def copies(parts: int) -> int:
    """Arrays of a band's size that exist at once at most: as read and as converted, also of the band before."""
    return 2 * (1 + parts)


def band_step(
    shape: Sequence[int], chunk: Sequence[int], voxel_bytes: int, least: tuple[int, int], limit: int
) -> tuple[int, int]:
    """Planes of a slab, and rows of a band of it of at most ``limit`` bytes.

    Whole chunks where memory allows, in multiples of what the writers need; thinner slabs before lower bands, because a
    compressed stream is only fast plane after plane.
    """
    row = shape[2] * voxel_bytes
    depth = min(shape[0], math.lcm(chunk[0], least[0]))
    rows = min(shape[1], math.lcm(chunk[1], least[1]))
    if depth * rows * row > limit:
        depth = min(depth, max(1, limit // (rows * row) // least[0]) * least[0])
        rows = min(rows, max(1, limit // (depth * row) // least[1]) * least[1])
        return depth, rows
    goal = min(limit, LARGE)
    rows = min(shape[1], rows * max(1, goal // (depth * rows * row)))
    if rows == shape[1]:
        depth = min(shape[0], depth * max(1, goal // (depth * rows * row)))
    return depth, rows


def thread_count() -> int:
    """Processors that this process may use, up to a limit."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))
