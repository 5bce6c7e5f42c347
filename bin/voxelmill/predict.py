"""PREDICT_TILES: every window of a tile once, finished labels inside, partial sums in the shell.

Windows run along the network's first axis; a rolling buffer holds the sums of the planes that later windows still
touch, so that memory does not depend on the tile's length. Sums are 64-bit fixed point and independent of order.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from voxelmill.archive import ArchiveWriter, create_archive
from voxelmill.blend import FIXED_POINT, finish, window_weights
from voxelmill.device import device_kind, release_memory, runs_out_of_memory
from voxelmill.ensemble import Ensemble, Network, prepared, use_device
from voxelmill.errors import BadDataError, GpuMemoryError
from voxelmill.image import staged_image
from voxelmill.model.network import load_networks
from voxelmill.model.package import load_config
from voxelmill.plan import Cell, Index, Plan
from voxelmill.probabilities import probability_member
from voxelmill.reader import NetworkImage
from voxelmill.rows import TileRow, read_rows
from voxelmill.task import Task

SECONDS_BETWEEN_LINES = 15.0

READ_AHEAD = 64
"""Planes that are read at once: one chunk of the store."""


@dataclass
class Counts:
    """Windows of a sample: asked for, computed by the network, and taken from an equal constant window."""

    windows: int = 0
    computed: int = 0
    reused: int = 0

    def add(self, other: Counts) -> None:
        self.windows += other.windows
        self.computed += other.computed
        self.reused += other.reused


class Progress:
    """Lines in the task's log: tiles and windows done, speed, time left; one per tile, and one now and then within."""

    def __init__(self, tiles: int, windows: int):
        self.tiles, self.windows = tiles, windows
        self.tile = self.done = 0
        self.started = self.shown = time.monotonic()

    def advance(self, windows: int) -> None:
        self.done += windows
        if time.monotonic() - self.shown > SECONDS_BETWEEN_LINES:
            self._show()

    def finish_tile(self) -> None:
        self.tile += 1
        self._show()

    def _show(self) -> None:
        self.shown = time.monotonic()
        speed = self.done / max(self.shown - self.started, 1e-3)
        left = (self.windows - self.done) / speed
        print(
            f"{self.tile} of {self.tiles} tiles, {self.done} of {self.windows} windows, {speed:.1f} windows/s, "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


class TilePrediction:
    """One tile on its way: the rolling buffers and the pieces that it fills.

    Parameters
    ----------
    plan : Plan
    tile : Index
    image : NetworkImage
    ensemble : Ensemble
    home : torch.device
        Where the sums lie: the ensemble's device, or the CPU. Every bit of them is the same, because a window is
        weighted and rounded before it is added, and integers add up alike everywhere.
    constants : dict
        Sums of windows whose input is one constant per channel, shared between the tiles of a task.
    counts : Counts
    progress : Progress
    """

    def __init__(
        self,
        plan: Plan,
        tile: Index,
        image: NetworkImage,
        ensemble: Ensemble,
        home: torch.device,
        constants: dict[bytes, torch.Tensor],
        counts: Counts,
        progress: Progress,
    ):
        self.plan, self.tile, self.image, self.ensemble = plan, tile, image, ensemble
        self.constants, self.counts, self.progress = constants, counts, progress
        self.home = home
        self.patch = tuple(axis.patch for axis in plan.axes)
        self.starts = [axis.starts[slice(*axis.tiles[i])] for axis, i in zip(plan.axes, tile, strict=True)]
        self.reach = plan.reach(tile)
        self.weights = torch.from_numpy(window_weights(plan) * FIXED_POINT).to(ensemble.device)
        overlap = np.prod([most_overlapping(axis.starts, axis.patch) for axis in plan.axes])
        self.limit = 2.0**62 / (float(self.weights.max()) * float(overlap) * len(plan.folds))
        cross = [stop - start for start, stop in self.reach[1:]]
        # the sums cover the grid only, from plane `low` on; the image also holds the padding around the grid
        self.low = self.reach[0][0]
        self.sums = torch.zeros((plan.heads, 0, *cross), dtype=torch.int64, device=home)
        self.window_box = [(s[0], s[-1] + p) for s, p in zip(self.starts, self.patch, strict=True)]
        self.image_low = self.window_box[0][0]
        self.values = torch.zeros((len(plan.normalization), 0, *(b - a for a, b in self.window_box[1:])))

    def run(self, out: Path) -> None:
        """Evaluate all windows and write the pieces below ``out``."""
        cells = group_by_plane(self.plan.cells(tile=self.tile))
        with contextlib.ExitStack() as stack:
            pieces: dict[Index, ArchiveWriter] = {}
            for block, senders in self.plan.pieces.items():
                if self.tile in senders:
                    path = out / self.plan.piece_name(self.tile, block)
                    pieces[block] = stack.enter_context(create_archive(path))
            for row, start in enumerate(self.starts[0]):
                self._read_up_to(start)
                self._add_row(start)
                self.progress.advance(len(self.starts[1]) * len(self.starts[2]))
                last = row + 1 == len(self.starts[0])
                complete = self.reach[0][1] if last else min(self.starts[0][row + 1], self.reach[0][1])
                while cells and min(cells[0][0].segments[0].footprint[1], self.reach[0][1]) <= complete:
                    for cell in cells.pop(0):
                        block = tuple(segment.block for segment in cell.segments)
                        for name, array in self._content(cell).items():
                            pieces[block].add(name, array)
                self._forget(min(complete, cells[0][0].segments[0].footprint[0]) if cells else complete)

    def _read_up_to(self, start: int) -> None:
        """Make the buffers hold the planes of the windows at ``start`` on the first axis."""
        last = self.window_box[0][1]
        stop = start + self.patch[0]
        have = self.image_low + self.values.shape[1]
        if stop > have:
            # whole chunks of planes at once: a chunk of the store is decoded when it is touched
            ahead = min(max(stop, have + READ_AHEAD), last)
            new = self.image.read(((have, ahead), *self.window_box[1:]))
            self.values = torch.cat([self.values[:, start - self.image_low :], torch.from_numpy(new)], dim=1)
            self.image_low = start
        missing = min(stop, self.reach[0][1]) - self.low - self.sums.shape[1]
        if missing > 0:
            fresh = self.sums.new_zeros((self.sums.shape[0], missing, *self.sums.shape[2:]))
            self.sums = torch.cat([self.sums, fresh], dim=1)

    def _add_row(self, start: int) -> None:
        """Evaluate all windows at ``start`` on the first axis and add them to the sums."""
        waiting: list[tuple[Index, torch.Tensor]] = []
        for y, x in itertools.product(self.starts[1], self.starts[2]):
            position, window = (start, y, x), self._window((start, y, x))
            self.counts.windows += 1
            lowest, highest = window.flatten(1).aminmax(dim=1)
            if torch.equal(lowest, highest):
                self._add_constant(position, window, lowest.numpy().tobytes())
                continue
            waiting.append((position, window))
            if len(waiting) == self.plan.batch:
                self._evaluate(waiting)
                waiting = []
        if waiting:
            self._evaluate(waiting)

    def _window(self, position: Index) -> torch.Tensor:
        origin = (self.image_low, self.window_box[1][0], self.window_box[2][0])
        at = tuple(slice(p - zero, p - zero + n) for p, zero, n in zip(position, origin, self.patch, strict=True))
        return self.values[(slice(None), *at)].contiguous()

    def _evaluate(self, waiting: list[tuple[Index, torch.Tensor]]) -> None:
        """Evaluate a batch; a short one is filled up, so that every window is computed in the same batch size."""
        windows = [window for _, window in waiting]
        windows += [windows[-1]] * (self.plan.batch - len(windows))
        sums = self._weighted(torch.stack(windows))
        self.counts.computed += len(waiting)
        for (position, _), window_sums in zip(waiting, sums, strict=False):
            self._add(position, window_sums)

    def _add_constant(self, position: Index, window: torch.Tensor, key: bytes) -> None:
        if key in self.constants:
            self.counts.reused += 1
        else:
            self.constants[key] = self._weighted(torch.stack([window] * self.plan.batch))[0]
            self.counts.computed += 1
        self._add(position, self.constants[key])

    def _weighted(self, windows: torch.Tensor) -> torch.Tensor:
        """Fixed-point sums over folds of weighted logits -> int64 (n, heads, *patch), where the sums lie."""
        sums = weighted_sums(self.ensemble(windows), self.weights, self.limit, self.plan.sample)
        return sums.to(self.home)

    def _add(self, position: Index, window_sums: torch.Tensor) -> None:
        """Add a window's sums where it lies inside the grid."""
        here, there = [slice(None)], [slice(None)]
        origin = (self.low, self.reach[1][0], self.reach[2][0])
        for at, size, zero, (start, stop) in zip(position, self.patch, origin, self.reach, strict=True):
            a, b = max(at, start), min(at + size, stop)
            here.append(slice(a - zero, b - zero))
            there.append(slice(a - at, b - at))
        self.sums[tuple(here)] += window_sums[tuple(there)]

    def _content(self, cell: Cell) -> dict[str, np.ndarray]:
        """What the cell's block gets: what is finished, or this tile's sums on the shared footprint."""
        box = cell.footprint if cell.finished else self.plan.shared(cell, self.tile)
        origin = (self.low, self.reach[1][0], self.reach[2][0])
        at = tuple(slice(a - zero, b - zero) for (a, b), zero in zip(box, origin, strict=True))
        sums = self.sums[(slice(None), *at)]
        if not cell.finished:
            return {cell.name: sums.cpu().numpy()}
        labels, likely = finish(sums, self.plan, cell, lambda array: torch.from_numpy(array).to(sums.device))
        return {cell.name: labels} | ({} if likely is None else {probability_member(cell): likely})

    def _forget(self, plane: int) -> None:
        """Drop the sums of planes below ``plane``: neither cells nor windows to come need them."""
        plane = max(self.low, plane)
        self.sums = self.sums[:, plane - self.low :]
        self.low = plane


def weighted_sums(
    logits_of_folds: Iterator[torch.Tensor], weights: torch.Tensor, limit: float, sample: str
) -> torch.Tensor:
    """Fixed-point sums over folds of weighted logits -> int64 (n, heads, *patch), where the logits are.

    Parameters
    ----------
    logits_of_folds : iterator of torch.Tensor, shape (n, heads, *patch)
    weights : torch.Tensor of float64, shape patch
        Scaled to fixed point.
    limit : float
        Logits from here on could overflow the sums.
    sample : str
        Named in the error.

    Raises
    ------
    BadDataError
        A logit is not finite, or not below the limit.
    """
    total: torch.Tensor | None = None
    for logits in logits_of_folds:
        # written so that NaN fails as well
        if not float(logits.abs().amax()) < limit:
            raise BadDataError(
                "the network gave logits that are not finite or too large to add up",
                sample=sample,
                expected=f"absolute values below {limit:.3g}",
                remedy="check the image for extreme values and the model's weights",
            )
        fixed = (logits.double() * weights).round_().to(torch.int64)
        total = fixed if total is None else total.add_(fixed)
    assert total is not None
    return total


def most_overlapping(starts: Sequence[int], patch: int) -> int:
    """Largest number of windows that cover one voxel of an axis."""
    first = np.array(starts)
    return int((np.searchsorted(first, first + patch) - np.arange(len(first))).max())


def group_by_plane(cells: Iterator[Cell]) -> list[list[Cell]]:
    """Cells that share a segment of the first axis, in order."""
    return [list(group) for _, group in itertools.groupby(cells, key=lambda cell: cell.index[0])]


class TaskPrediction:
    """The tiles of one task, one after the other; where the GPU's memory is not enough, on a way that needs less.

    Parameters
    ----------
    networks : sequence of callables
        One per fold, on ``device``.
    device : torch.device
    out : Path
    progress : Progress
    warn : callable
        Is told, with the sample's name, what was given up.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        device: torch.device,
        out: Path,
        progress: Progress,
        warn: Callable[[str, str], None],
    ):
        self.networks, self.device, self.out, self.progress, self.warn = networks, device, out, progress, warn
        self.counts: dict[str, Counts] = {}
        self._constants: dict[str, dict[bytes, torch.Tensor]] = {}
        self._crowded = False

    def predict(self, plan: Plan, tile: Index, image: NetworkImage) -> None:
        """Predict a tile.

        The plan's place of the sums was found to have room for them; if it has none now, another program took it. The
        tile begins again with its sums in the host's memory, as do all that follow: pieces appear whole or not at all,
        and their bytes are the same.

        Raises
        ------
        GpuMemoryError
            Not even that is enough.
        """
        if not self._crowded and plan.sums == "device":
            if not runs_out_of_memory(lambda: self._run(plan, tile, image, self.device)):
                return
            self._make_room(plan, tile)
        if runs_out_of_memory(lambda: self._run(plan, tile, image, torch.device("cpu"))):
            raise GpuMemoryError(
                f"the GPU has too little memory for tile {plan.number(tile)}, with its sums in host memory",
                sample=plan.sample,
                expected="as much as there was when the run probed the GPU",
                remedy="end other programs on the GPU and run again with -resume, or choose --device cpu",
            )

    def _run(self, plan: Plan, tile: Index, image: NetworkImage, home: torch.device) -> None:
        counts, done = Counts(), self.progress.done
        constants = self._constants.setdefault(plan.sample, {})
        ensemble = Ensemble(self.networks, plan, self.device)
        prediction = TilePrediction(plan, tile, image, ensemble, home, constants, counts, self.progress)
        try:
            prediction.run(self.out / plan.sample)
        except RuntimeError:
            self.progress.done = done
            raise
        self.counts.setdefault(plan.sample, Counts()).add(counts)

    def _make_room(self, plan: Plan, tile: Index) -> None:
        """Give up the GPU's memory that results take."""
        self._crowded = True
        for constants in self._constants.values():
            constants.update({key: sums.cpu() for key, sums in constants.items()})
        release_memory(self.device)
        self.warn(
            f"the GPU had less memory for tile {plan.number(tile)} than when it was probed: from there on, the sums of "
            "this task lay in host memory; labels are the same",
            plan.sample,
        )


@torch.inference_mode()
def predict_tiles(
    tiles: Sequence[tuple[Plan, Index, NetworkImage]],
    networks: Sequence[Network],
    device: torch.device,
    out: Path,
    warn: Callable[[str, str], None] = lambda _text, _sample: None,
) -> dict[str, Counts]:
    """Predict the tiles of one task, of one sample or several.

    Parameters
    ----------
    tiles : sequence of (Plan, tile, NetworkImage)
    networks : sequence of callables
        One per fold, on ``device``.
    device : torch.device
    out : Path
        Pieces are written to ``<out>/<sample>/<sample>.t<tile>.b<block>.piece``.
    warn : callable
        Is told a text and its sample.

    Returns
    -------
    dict
        Counts of windows by sample.

    Raises
    ------
    GpuMemoryError
        The GPU's memory is not enough, not even without the sums.
    """
    progress = Progress(len(tiles), sum(plan.windows(tile) for plan, tile, _ in tiles))
    task = TaskPrediction(networks, device, out, progress, warn)
    for plan, tile, image in tiles:
        task.predict(plan, tile, image)
        progress.finish_tile()
    return task.counts


def predict_task(batch: str, number: int, package: Path, folder: Path, record: Task, member: int = 0) -> None:
    """Predict the tiles of one task.

    Parameters
    ----------
    batch : str
    number : int
        Task in ``<batch>.tiles.csv``.
    package : Path
    folder : Path
        Holds the table, ``<sample>.plan.json``, ``<sample>.image.json`` and ``stores/``; gets a folder of pieces per
        sample.
    record : Task
    member : int
        Number of the model, from 1, where several are averaged.
    """
    rows = [row for row in read_rows(folder / f"{batch}.tiles.csv", TileRow) if row.task == number]
    plans = {row.sample: Plan.load(folder / Plan.file_name(row.sample, member)) for row in rows}
    images = {sample: NetworkImage(plan, staged_image(sample, folder)) for sample, plan in plans.items()}
    first = plans[rows[0].sample]
    device = use_device(first.device, first.threads)
    networks = on_device(package, first, device)
    tiles = [(plans[row.sample], plans[row.sample].block(row.tile), images[row.sample]) for row in rows]

    def warn(text: str, sample: str) -> None:
        record.warn(text, sample=sample)

    for sample, counts in predict_tiles(tiles, networks, device, folder, warn).items():
        record.counts[sample] = asdict(counts)
        record.counts[sample]["piece_bytes"] = sum(p.stat().st_size for p in (folder / sample).glob("*.piece"))
    record.device = device_kind(device)


def on_device(package: Path, plan: Plan, device: torch.device) -> list[Network]:
    """The networks of a package as the plan's engine runs them.

    Raises
    ------
    GpuMemoryError
        Their weights do not fit.
    """
    networks: list[Network] = []

    def load() -> None:
        networks.extend(prepared(network, plan) for network in load_networks(package, load_config(package), device))

    if runs_out_of_memory(load):
        raise GpuMemoryError(
            "the GPU has too little memory for the weights of the model",
            expected="as much as there was when the run probed the GPU",
            remedy="end other programs on the GPU and run again with -resume, or choose --device cpu",
        )
    return networks
