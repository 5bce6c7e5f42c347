"""Labels that are given: what lies in the blocks is what tifffile, nibabel and zarr read from the file."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from inprocess import array_source, imported
from test_check import SCHEMA, load_script, stage, write_image
from test_nextflow import nextflow
from voxelmill import given as module
from voxelmill.compose import compose_store
from voxelmill.errors import BadDataError
from voxelmill.files import read_json
from voxelmill.formats import open_image
from voxelmill.given import LabelImage, import_labels
from voxelmill.grid import LabelGrid
from voxelmill.image import Box, ImageInfo, whole
from voxelmill.rows import BlockRow, read_rows
from voxelmill.samplesheet import read_sheet, rows_of_images

SHARD = (16, 16, 16)


def scattered(shape: Sequence[int], dtype: str, largest: int, seed: int = 0) -> np.ndarray:
    """Labels in boxes at random places, one voxel of the largest label, much background."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype)
    for _ in range(6):
        at = [int(rng.integers(0, n)) for n in shape]
        labels[tuple(slice(a, a + 5) for a in at)] = rng.integers(0, min(largest, 2**31), endpoint=True)
    labels[tuple(int(rng.integers(0, n)) for n in shape)] = largest
    return labels


def info_of(shape: Sequence[int], folder: Path) -> ImageInfo:
    """The image that labels of a shape lie over; nothing but its size matters."""
    return imported(np.ones((1, *shape), "u1"), folder)


def blocks_of(grid: LabelGrid, folder: Path) -> np.ndarray:
    """The labels out of the blocks: each reached block has the files of its shards, all levels of them, and no other.

    Read with zarr's own decoder; the smaller levels must be every second voxel of the larger one.
    """
    labels = np.zeros(grid.shape, grid.dtype)
    for number in grid.reached:
        store = folder / "blocks" / grid.block_name(number)
        box = grid.block_box(number)
        inside = tuple(slice(a, b) for a, b in box)
        files = {p.relative_to(store / "0" / "c").as_posix() for p in (store / "0" / "c").rglob("*") if p.is_file()}
        ranges = (range(a // s, -(-b // s)) for (a, b), s in zip(box, grid.shard, strict=True))
        assert files == {"/".join(map(str, index)) for index in itertools.product(*ranges)}
        labels[inside] = part = np.asarray(zarr.open_array(str(store / "0"), mode="r")[inside])
        for level in range(1, sum(1 for p in store.iterdir() if p.is_dir())):
            steps = [1 if n == 1 else 2**level for n in grid.shape]
            smaller = tuple(slice(a // f, -(-b // f)) for (a, b), f in zip(box, steps, strict=True))
            at = zarr.open_array(str(store / str(level)), mode="r")[smaller]
            assert np.array_equal(at, part[tuple(slice(None, None, f) for f in steps)])
        classes = part != 0 if grid.kind == "instances" else part
        values, counts = np.unique(classes, return_counts=True)
        expected = {str(int(value)): int(n) for value, n in zip(values, counts, strict=True)}
        assert read_json(store / "counts.json") == expected
    assert sorted(p.name for p in (folder / "blocks").glob("*")) == sorted(grid.block_name(n) for n in grid.reached)
    return labels


def assert_same(grid: LabelGrid, folder: Path, expected: np.ndarray) -> None:
    """The blocks hold these labels, and those without a label are absent."""
    found = blocks_of(grid, folder)
    assert np.array_equal(found.astype(np.uint64), expected.astype(np.uint64))
    boxes = [tuple(slice(a, b) for a, b in grid.block_box(n)) for n in range(math.prod(grid.blocks))]
    assert list(grid.reached) == [n for n, box in enumerate(boxes) if expected[box].any()]
    assert LabelGrid.load(folder / f"{grid.sample}.grid.json") == grid


def opened(array: np.ndarray, kind: str, box: Box | None = None, shard: tuple[int, ...] = SHARD) -> LabelImage:
    return LabelImage(array_source(array[None]), "s", "l.tif", kind, box or whole(array.shape), shard)


# Formats, with a library as the oracle


def write_tiff(path: Path, labels: np.ndarray) -> None:
    tifffile.imwrite(path, labels, compression="zlib", photometric="minisblack", rowsperstrip=7)


def write_nifti(path: Path, labels: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(labels.transpose(), np.diag([1, 1, 3, 1]), dtype=labels.dtype), path)


def write_zarr(path: Path, labels: np.ndarray) -> None:
    array = zarr.create_array(path, shape=labels.shape, chunks=(7, 16, 11), dtype=labels.dtype, fill_value=3)
    array[:] = labels


READERS = {
    ".tif": (write_tiff, tifffile.imread),
    ".nii.gz": (write_nifti, lambda path: np.asarray(nib.load(path).dataobj).transpose()),
    ".zarr": (write_zarr, lambda path: zarr.open_array(path, mode="r")[:]),
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize(
    ("kind", "dtype", "largest", "stored"),
    [
        ("semantic", "uint8", 254, "uint8"),
        ("semantic", "uint8", 255, "uint16"),
        ("semantic", "int32", 65534, "uint16"),
        ("semantic", "uint64", 254, "uint8"),
        ("instances", "uint8", 7, "uint16"),
        ("instances", "uint16", 65535, "uint32"),
        ("instances", "int64", 2**32 - 2, "uint32"),
        ("instances", "uint64", 2**32 - 1, "uint64"),
    ],
)
def test_blocks_hold_what_the_library_reads(
    suffix: str, kind: str, dtype: str, largest: int, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = READERS[suffix]
    path = tmp_path / f"labels{suffix}"
    write(path, scattered((37, 50, 83), dtype, largest))
    expected = np.asarray(read(path))
    assert expected.max() == largest and expected.dtype == dtype
    monkeypatch.setattr(module, "STEP_BYTES", 3 * 16**3 * expected.itemsize)
    for box in (whole(expected.shape), ((5, 37), (0, 41), (17, 70))):
        part = expected[tuple(slice(a, b) for a, b in box)]
        out = tmp_path / str(box[0][0])
        with open_image(path) as source:
            image = LabelImage(source, "s", path.name, kind, box, SHARD)
            grid = import_labels(image, info_of(part.shape, out), out)
        assert_same(grid, out, part)
        if part.max() == largest:
            assert grid.dtype == stored
        classes = [int(value) for value in np.unique(part) if value]
        assert grid.values == (tuple(classes) if kind == "semantic" else (1,))
        named = {str(value): f"class {value}" for value in classes} if kind == "semantic" else {"1": "object"}
        assert grid.label_names == {"0": "background"} | named
        assert (grid.kind, grid.windows, grid.shape, grid.spacing) == (kind, 0, part.shape, (1000.0,) * 3)


def test_truth_values_are_one_class(tmp_path: Path) -> None:
    labels = scattered((20, 20, 20), "uint8", 1).astype(bool)
    grid = import_labels(opened(labels, "semantic"), info_of(labels.shape, tmp_path), tmp_path)
    assert_same(grid, tmp_path, labels)
    assert (grid.values, grid.dtype) == ((1,), "uint8")


@settings(max_examples=25)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["semantic", "instances"]),
    st.integers(0, 2**31),
    st.integers(1, 6),
)
def test_any_shape_in_any_steps(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], kind: str, seed: int, shards: int
) -> None:
    out = tmp_path_factory.mktemp("given")
    shard = (1, 16, 16) if shape[0] == 1 else (8, 8, 8)
    labels = scattered(shape, "int32", 1 + seed % 300, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP_BYTES", shards * 4 * math.prod(shard))
        grid = import_labels(opened(labels, kind, shard=shard), info_of(shape, out), out)
    assert_same(grid, out, labels)
    for cuts, side, size in zip(grid.cuts, shard, shape, strict=True):
        assert cuts[0] == 0 and cuts[-1] == size and all(cut % side == 0 for cut in cuts[:-1])
        sides = np.diff(cuts)
        assert sides.max() < 3 * side and (len(sides) == 1 or sides.min() >= side)


def test_classes_have_the_names_that_their_file_gives(tmp_path: Path) -> None:
    labels = scattered((9, 10, 11), "u1", 3)
    for kind, expected in (("semantic", "axon"), ("instances", "object")):
        image = opened(labels, kind)
        image.source.label_names = {3: "axon", 9: "absent"}
        grid = import_labels(image, info_of(labels.shape, tmp_path / kind), tmp_path / kind)
        assert grid.label_names[str(max(grid.values))] == expected and "9" not in grid.label_names


def test_background_alone_has_a_grid_and_no_block(tmp_path: Path) -> None:
    labels = np.zeros((20, 40, 20), "uint16")
    for kind, dtype in (("semantic", "uint8"), ("instances", "uint16")):
        out = tmp_path / kind
        grid = import_labels(opened(labels, kind), info_of(labels.shape, out), out)
        assert_same(grid, out, labels)
        assert (grid.reached, grid.values, grid.dtype) == ((), (), dtype)


@pytest.mark.parametrize("kind", ["semantic", "instances"])
def test_a_label_that_is_none_is_told_with_its_place_in_the_file(kind: str, tmp_path: Path) -> None:
    """Also where the box begins behind the first voxel, and in a later step."""
    labels = scattered((40, 40, 40), "int32", 9)
    labels[30, 31, 32] = -5
    box = ((10, 40), (5, 40), (2, 40))
    with pytest.raises(BadDataError, match=r"label -5 at z, y, x = 30, 31, 32") as caught:
        import_labels(opened(labels, kind, box), info_of((30, 35, 38), tmp_path), tmp_path)
    assert (caught.value.sample, caught.value.file) == ("s", "l.tif")
    outside = ((0, 30), (0, 40), (0, 40))
    grid = import_labels(opened(labels, kind, outside), info_of((30, 40, 40), tmp_path / "b"), tmp_path / "b")
    assert_same(grid, tmp_path / "b", labels[:30])


def test_blocks_compose_into_the_store_of_the_sample(tmp_path: Path) -> None:
    labels = scattered((40, 50, 60), "uint8", 4)
    grid = import_labels(opened(labels, "semantic"), info_of(labels.shape, tmp_path), tmp_path)
    compose_store(grid, tmp_path / "blocks", tmp_path)
    assert np.array_equal(zarr.open_array(str(tmp_path / "labels.ome.zarr"), path="semantic/0", mode="r")[:], labels)


# Through the scripts


def chain(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: list[dict[str, str]], *flags: str) -> list[dict]:
    """CHECK_INPUT without a model, then IMPORT_IMAGE batch by batch -> entries of samples.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns)] + [",".join(row.get(name, "") for name in columns) for row in rows]
    (folder / "in" / "samplesheet.csv").write_text("\n".join(lines) + "\n")
    files = [row[name] for row in rows for name in ("image", "semantic", "instances") if row.get(name)]
    stage(folder / "images", files, folder / "in")
    monkeypatch.chdir(folder)
    arguments = ["--staged", "images", "--schema", str(SCHEMA), "--input", "in/samplesheet.csv", *flags]
    load_script("check_input").main.main([*arguments, "--images", str(len(files))], standalone_mode=False)
    samples = read_json(Path("check/samples.json"))["samples"]
    script = load_script("import_image")
    for batch in dict.fromkeys(entry["batch"] for entry in samples):
        entries = [entry for entry in samples if entry["batch"] == batch]
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(entries)))
        script.main.main(["--batch", batch, "--images", "images", "--shard-size", "16"], standalone_mode=False)
    return samples


def test_sheet_to_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small samples share a batch and a group; one that is read in place has a batch, and groups, of its own."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    small = [scattered((6, 20, 60), "uint16", 300 + n, n) for n in range(2)]
    for n, labels in enumerate(small):
        write_image(inputs / f"{n}.tif", labels.shape)
        write_tiff(inputs / f"l{n}.tif", labels)
    large = scattered((40, 50, 90), "int64", 70_000)
    write_zarr(inputs / "i.zarr", np.ones(large.shape, "u1"))
    write_zarr(inputs / "o.zarr", large)
    rows = [
        {"sample": "a", "image": "0.tif", "semantic": "l0.tif"},
        {"sample": "c", "image": "i.zarr", "instances": "o.zarr", "unit": "pixel"},
        {"sample": "b", "image": "1.tif", "semantic": "l1.tif"},
    ]
    samples = chain(monkeypatch, tmp_path, rows, "--box", ":,3:,:83")
    assert [(e["id"], e["start"], e["batch"], e["images"]) for e in samples] == [
        ("a", "assemble", "batch1", [1, 2]),
        ("c", "analyze", "c", [3, 4]),
        ("b", "assemble", "batch1", [5, 6]),
    ]
    grids = {name: LabelGrid.load(tmp_path / name / f"{name}.grid.json") for name in "abc"}
    for name, labels in zip("abc", [*small, large], strict=True):
        assert_same(grids[name], tmp_path / name, labels[:, 3:, :83])
        batch = "c" if name == "c" else "batch1"
        counts = read_json(tmp_path / batch / f"{batch}.import_image.json")["counts"][name]
        assert counts["blocks"] == len(grids[name].reached) and counts["label_bytes"] > 0
    assert grids["a"].origin == (0.0, 3.0, 0.0) and grids["a"].spacing == (2.0, 1.0, 1.0)
    assert (grids["c"].unit, grids["c"].dtype) == ("pixel", "uint32")
    assert read_rows(tmp_path / "batch1" / "batch1.blocks.csv", BlockRow) == [
        BlockRow(name, block, 0, 0) for name in "ab" for block in grids[name].reached
    ]
    assert grids["a"].reached == (0, 1)
    assert len(grids["c"].reached) > 1
    assert read_rows(tmp_path / "c" / "c.blocks.csv", BlockRow) == [BlockRow("c", n, n, 0) for n in grids["c"].reached]
    assert not (tmp_path / "c" / "c.image.zarr").exists()


def test_axes_of_the_sheet_hold_for_the_labels_but_for_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    labels = scattered((20, 20, 20), "uint8", 9)
    array = zarr.create_array(inputs / "i.zarr", shape=(2, 20, 20, 20), chunks=(1, 20, 20, 20), dtype="u1")
    array[:] = 1
    write_zarr(inputs / "l.zarr", labels)
    row = {"sample": "a", "image": "i.zarr", "instances": "l.zarr", "axes": "CXYZ", "unit": "pixel"}
    (entry,) = chain(monkeypatch, tmp_path, [row])
    assert entry["channel"] == [0, 1]
    assert_same(LabelGrid.load(tmp_path / "a" / "a.grid.json"), tmp_path / "a", labels.transpose())


SHEET = """
include {{ readInput }} from '{functions}/inputs'

workflow {{
    readInput('{sheet}', false, {columns}).images.each {{ path -> println("file: ${{path}}") }}
}}
"""
LABELS = ["semantic", "instances"]


def numbered(folder: Path, parser: str, columns: Sequence[str]) -> list[str]:
    """Files of the sheet ``s.csv`` in the order in which Nextflow numbers them."""
    script = SHEET.format(functions=ROOT / "functions", sheet=folder / "s.csv", columns=list(columns))
    (folder / "main.nf").write_text(script)
    said = nextflow(folder, "-q", "run", "main.nf", parser=parser).stdout
    return [line.removeprefix(f"file: {folder}/") for line in said.splitlines() if line.startswith("file: ")]


@pytest.mark.nextflow
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_nextflow_numbers_the_files_of_a_sheet_as_the_check_does(parser: str, tmp_path: Path) -> None:
    """Labels after the images of their row, whatever the order of the columns and also where a row is refused."""
    text = (
        "instances,image,sample,semantic\n"
        ",1.tif;2.tif ,a, l;3.tif \n6.tif,4.tif,b,5.tif\n8.tif,7.tif,c,\n , 9.tif ; ,d,\n"
    )
    (tmp_path / "s.csv").write_text(text)
    names = numbered(tmp_path, parser, LABELS)
    rows, _, files = read_sheet(tmp_path / "s.csv", read_json(SCHEMA))
    assert len(names) == files == 9
    assert {number: name for row in rows for number, name in row.files} == {
        number: name for number, name in enumerate(names, 1) if number not in (4, 5, 6)
    }


@pytest.mark.nextflow
def test_the_truth_is_numbered_where_it_is_compared_with(tmp_path: Path) -> None:
    text = "truth,image,sample,semantic,instances\n3.tif,1.tif,a,2.tif,\n5.tif,,b,,4.tif\n"
    (tmp_path / "s.csv").write_text(text)
    for evaluate in (True, False):
        names = numbered(tmp_path, "v1", [*LABELS, *(["truth"] if evaluate else [])])
        rows, _, files = read_sheet(tmp_path / "s.csv", read_json(SCHEMA), evaluate=evaluate)
        assert len(names) == files == (5 if evaluate else 3)
        assert all(names[number - 1] == name for row in rows for number, name in row.files)
        assert len(rows) == (2 if evaluate else 1)


INPUTS = """
include {{ readInput }} from '{functions}/inputs'

workflow {{
    def base = "${{projectDir}}/in"
    [['many', false], ['many', true], ['stacks', false], ['stacks', true], ['stacks/*', true], ['stacks/*', false],
     ['many/a.tif', true], ['v.zarr', true], ['many/../stacks/b c', true], ['none', false],
     ['./many/*.h5', false]].each {{ text, stack ->
        def said = ''
        try {{
            def found = readInput("${{base}}/${{text}}", stack, []).images
            said = found.collect {{ path -> path.toString() - "${{base}}/" }}
        }}
        catch (Exception e) {{
            said = "refused: ${{(e.message ?: e.cause?.message ?: e.toString()).replace('\\n', ' ')}}"
        }}
        println("${{text}} ${{stack}}: ${{said}}")
    }}
}}
"""


@pytest.mark.nextflow
@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_what_an_input_names_with_and_without_stack(parser: str, tmp_path: Path) -> None:
    for name in ("many/a.tif", "many/b.h5", "many/notes.txt", "many/.hidden.tif", "stacks/b c/z1.tif", "stacks/a/1.png",
                 "stacks/empty/notes.txt", "v.zarr/zarr.json"):  # fmt: skip
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "main.nf").write_text(INPUTS.format(functions=ROOT / "functions"))
    said = nextflow(tmp_path, "-q", "run", "main.nf", parser=parser).stdout
    told = dict(line.split(": ", 1) for line in said.splitlines() if re.match(r"\S.* (true|false): ", line))
    assert told["many false"] == "[many/a.tif, many/b.h5]"
    assert told["many true"] == "[many]"
    assert "holds folders and no image: a, b c, empty" in told["stacks false"] and "/*' --stack" in told["stacks false"]
    assert told["stacks/* true"] == "[stacks/a, stacks/b c]"
    assert "no such file in stacks" in told["stacks true"] and "/stacks/*' --stack" in told["stacks true"]
    assert "holds folders and no image" in told["stacks/* false"]
    assert "Leave out --stack" in told["many/a.tif true"] and "Leave out --stack" in told["v.zarr true"]
    assert told["many/../stacks/b c true"] == "[stacks/b c]"
    assert "nothing like an image" in told["none false"]
    assert told["./many/*.h5 false"] == "[many/b.h5]"
    folders = {"b c": "b_c", "a.nrrd": "a", "x.mha": "x", "y.JPG": "y", "scan.01": "scan.01", "m.h5": "m"}
    rows = rows_of_images(dict(enumerate(folders, 1)))
    assert [row.sample for row in rows] == list(folders.values())
