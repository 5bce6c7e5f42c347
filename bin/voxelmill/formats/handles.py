"""Parts of files, read by several threads at once from few open files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Lock, local
from typing import TypeVar

import numpy as np

from voxelmill.formats.base import truncated

Job = TypeVar("Job")

MAX_OPEN = 16
BATCH = 256
"""Jobs between two looks at how many files are open."""

MAX_THREADS = 4
MAX_BYTES = 128 << 20
"""What the jobs of all threads may hold together."""

GROUP = 1 << 20
"""Bytes from which a job is worth a thread."""


class Handles:
    """Files that are opened where they are first read, of which the last few stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._lock = Lock()
        self._scratch = local()

    def scratch(self, path: Path, offset: int, size: int) -> np.ndarray:
        """``size`` bytes as uint8, in memory that the same thread's next call uses again: it stays in the cache."""
        held: np.ndarray | None = getattr(self._scratch, "held", None)
        if held is None or len(held) < size:
            held = self._scratch.held = np.empty(size, np.uint8)
        self.fill(path, offset, held[:size])
        return held[:size]

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            found = self._open.get(path)
            if found is None:
                found = self._open[path] = os.open(path, os.O_RDONLY)
            self._open.move_to_end(path)
            return found

    def fill(self, path: Path, offset: int, out: np.ndarray) -> None:
        """Read bytes into a C-contiguous array.

        Raises
        ------
        BadDataError
            Where the file ends first.
        """
        view = out.reshape(-1).view(np.uint8).data
        descriptor = self._descriptor(path)
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if not count:
                raise truncated(path, offset + len(view), os.fstat(descriptor).st_size)
            done += count

    def read(self, path: Path, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(path)
        data = os.pread(descriptor, size, offset)
        while len(data) < size:
            # One call reads at most 2 GiB.
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                raise truncated(path, offset + size, os.fstat(descriptor).st_size)
            data += more
        return data

    def trim(self) -> None:
        """Close all but the files used last; nothing may be reading."""
        with self._lock:
            while len(self._open) > MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


class Workers:
    """A few threads, started when there is work for more than one.

    Decoders and reading let go of Python's lock, so that two threads decode twice as fast.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self.count = min(MAX_THREADS, len(os.sched_getaffinity(0)))

    def run(
        self,
        do: Callable[[Job], object],
        jobs: Iterable[Job],
        between: Callable[[], None],
        job_bytes: int,
        size: int = BATCH,
    ) -> None:
        """Do all jobs, in batches of ``size``; ``between`` is called before each batch, when no job runs.

        ``job_bytes`` is what one job holds in memory: large ones are done one after another, small ones go to the
        threads in groups, because handing over costs as much as decoding a small tile.
        """
        threads = min(self.count, max(1, MAX_BYTES // max(1, job_bytes)))
        group = max(1, min(size // (2 * threads), GROUP // max(1, job_bytes)))
        left = iter(jobs)
        while batch := list(islice(left, size)):
            between()
            groups = [batch[i : i + group] for i in range(0, len(batch), group)]
            if len(groups) == 1 or threads == 1:
                for job in batch:
                    do(job)
                continue
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="decode")
            list(self._pool.map(lambda some: [do(job) for job in some], groups))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
