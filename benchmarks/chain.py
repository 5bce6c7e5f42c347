"""The chain of scripts without Nextflow, one process each, for a single image."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import KEPT_BY_ALLOCATOR, ROOT, SCRIPTS, Use, run

SAMPLE = "volume"


class Chain:
    """One image in a folder of its own, which every script finds its files in as a task of Nextflow does.

    Parameters
    ----------
    folder : Path
        Gets everything.
    package : Path
        The packed model.
    image : Path
    """

    def __init__(self, folder: Path, package: Path, image: Path):
        self.folder, self.package = folder.resolve(), package.resolve()
        self.uses: list[tuple[str, Use]] = []
        self._link(image.resolve(), self.folder / "images" / "1" / f"{SAMPLE}{image.suffix}")

    def split(self, spacing: str, unit: str, options: Sequence[str] = ()) -> None:
        """Check, import and plan; ``options`` are those of the plan."""
        self._script(
            "check_input",
            *("--staged", "images", "--package", self.package, "--schema", ROOT / "assets" / "schema_input.json"),
            *("--spacing", spacing, "--unit", unit),
        )
        entries = json.loads((self.folder / "check" / "samples.json").read_text())["samples"]
        self._script("import_image", "--batch", SAMPLE, "--images", "images", stdin=json.dumps(entries))
        for name in (f"{SAMPLE}.image.json", f"{SAMPLE}.projections.npz"):
            self._link(self.folder / SAMPLE / name, self.folder / name)
        store = f"{SAMPLE}.image.zarr"
        self._link(self.folder / SAMPLE / store, self.folder / "stores" / store)
        self.plan(*options)

    def plan(self, *options: str) -> None:
        self._script("plan_tiles", "--batch", SAMPLE, "--package", self.package, *options, f"{SAMPLE}.image.json")
        for name in (f"{SAMPLE}.{kind}" for kind in ("plan.json", "grid.json", "tiles.csv", "blocks.csv")):
            self._link(self.folder / SAMPLE / name, self.folder / name)

    def predict(self, environment: Mapping[str, str] | None = None, workers: int = 1) -> None:
        """All tasks of the plan, ``workers`` at a time; the environment is the module's unless given."""
        rows = self.rows("tiles")
        given = {**KEPT_BY_ALLOCATOR, "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": rows[0]["threads"]}

        def task(number: int) -> None:
            args = ("--batch", SAMPLE, "--task", str(number), "--package", self.package)
            log = f"predict_tiles.{number}"
            self._script("predict_tiles", *args, environment=given if environment is None else environment, log=log)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(task, sorted({int(row["task"]) for row in rows})))
        self._link_all("*.piece")

    def assemble(self) -> None:
        """Stitch, compose and report: what `--stop_after predict` does."""
        for group in sorted({int(row["group"]) for row in self.rows("blocks")}):
            self._script("stitch_blocks", "--batch", SAMPLE, "--group", str(group))
        self._link_all("*.b*.zarr")
        self._script("compose_store", "--batch", SAMPLE)
        for path in self.folder.glob(f"{SAMPLE}/*.*"):
            if path.suffix in (".json", ".npz"):
                self._link(path, self.folder / "staged" / path.name)
        (self.folder / "params.json").write_text(json.dumps({"params": {"stop_after": "predict"}, "defaults": {}}))
        self._script(
            "build_report",
            *("--samples", "check/samples.json", "--estimate", "check/estimate.json", "--params", "params.json"),
            *("--package", self.package, "staged"),
        )

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / f"{SAMPLE}.{name}.csv", newline="") as handle:
            return list(csv.DictReader(handle))

    def record(self, process: str) -> dict[str, Any]:
        """Task record of a process that ran once."""
        (path,) = (self.folder / SAMPLE).glob(f"{SAMPLE}.{process}*.json")
        return json.loads(path.read_text())

    def _script(
        self,
        name: str,
        *args: str | Path,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        log: str | None = None,
    ) -> None:
        use = run(
            [SCRIPTS / f"{name}.py", *args],
            log=self.folder / f"{log or name}.log",
            folder=self.folder,
            environment={"OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=stdin,
        )
        self.uses.append((name, use))

    def _link_all(self, pattern: str) -> None:
        for path in (self.folder / SAMPLE).glob(pattern):
            self._link(path, self.folder / path.name)

    @staticmethod
    def _link(target: Path, link: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def packed(model: Path, out: Path, spacing_unit: str) -> Path:
    """Pack a model folder."""
    run(
        [SCRIPTS / "pack_model.py", "--model", model.resolve(), "--out", out.resolve(), "--spacing-unit", spacing_unit],
        log=out.parent / "pack_model.log",
        folder=out.parent,
    )
    return out
