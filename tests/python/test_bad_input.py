"""Bad input through the real scripts: the exit code, words of the message, at most twelve lines for a fault.

Each case is one row of a table: a number, a function that writes the input, flags, the exit code and the words.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from conftest import ROOT
from test_check import SCHEMA, load_script, model, stage, write_image, write_package
from voxelmill.errors import MAX_LINES, InputMissingError
from voxelmill.files import read_json
from voxelmill.formats import open_image

SPACING = ("--spacing", "2,1,1")


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    ``write`` gets a folder, puts images there and returns the samplesheet, or None where the images are the input.
    ``config`` are changes of the model; without a model it is None.
    ``then`` runs the script of a later task in the folder where CHECK_INPUT ended well; the code is that of the last.
    """

    number: int
    name: str
    write: Callable[[Path], str | None]
    code: int
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    config: dict[str, Any] | None = field(default_factory=dict)
    then: Callable[[pytest.MonkeyPatch], None] | None = None

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


def volume(shape: tuple[int, ...] = (6, 20, 20), dtype: str = "u2") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def tiff(
    name: str = "a.tif", *, cut: float = 1.0, data: np.ndarray | None = None, **options: Any
) -> Callable[[Path], None]:
    """A TIFF, of which only a part may be left."""

    def write(folder: Path) -> None:
        tifffile.imwrite(folder / name, volume() if data is None else data, **{"photometric": "minisblack", **options})
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * cut)])

    return write


def nifti(name: str = "a.nii.gz", *, cut: float = 1.0, pixdim: float | None = None) -> Callable[[Path], None]:
    """A NIfTI of noise with a size in its header's third field that nibabel would repair."""

    def write(folder: Path) -> None:
        image = nib.Nifti1Image(volume().T.astype("i2"), np.diag([0.001, 0.001, 0.002, 1]))
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / "plain.nii")
        data = bytearray((folder / "plain.nii").read_bytes())
        (folder / "plain.nii").unlink()
        if pixdim is not None:
            struct.pack_into("<f", data, 76 + 3 * 4, pixdim)
        encoded = gzip.compress(bytes(data), mtime=0) if name.endswith(".gz") else bytes(data)
        (folder / name).write_bytes(encoded[: int(len(encoded) * cut)])

    return write


def raw(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def sheet(text: str, *writers: Callable[[Path], None]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        write_image(folder / "a.tif")
        for writer in writers:
            writer(folder)
        return text

    return write


def huge(folder: Path) -> None:
    """224 bytes that declare 2^31 x 2^31 pixels."""
    tags = [(256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, 2**31), (279, 4, 1, 100)]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    (folder / "a.tif").write_bytes((b"II*\0" + struct.pack("<I", 8) + body).ljust(224, b"\0"))


def different_pages(second: np.ndarray) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with tifffile.TiffWriter(folder / "a.tif") as writer:
            for plane in (volume((20, 20)), volume((20, 20)), second, volume((20, 20))):
                writer.write(plane, photometric="minisblack", contiguous=False, metadata=None)

    return write


def ome_set(folder: Path) -> None:
    """The first of two files, as a microscope writes them; the second is not there."""
    write_image(folder / "a.ome.tif")
    xml = tifffile.tiffcomment(folder / "a.ome.tif")
    uuid = xml.split('UUID="')[1].split('"')[0]
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">{key}</UUID></TiffData>'
        for z, (name, key) in enumerate((("a.ome.tif", uuid), ("b.ome.tif", "urn:uuid:1")))
    )
    text = xml[: xml.index("<TiffData")] + planes + xml[xml.index("</Pixels>") :]
    tifffile.tiffcomment(folder / "a.ome.tif", text.encode())


def zarr_image(*, lacking: tuple[str, ...] = (), version: int = 3) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        array = zarr.create_array(
            folder / "a.zarr", shape=(6, 20, 20), chunks=(3, 10, 10), dtype="u2", zarr_format=version
        )
        array[:] = 1
        for key in lacking:
            (folder / "a.zarr" / key).unlink()

    return write


def two_channels(folder: Path) -> None:
    names = {"axes": "CZYX", "Channel": {"Name": ["green", "red"]}}
    tifffile.imwrite(folder / "a.tif", volume((2, 6, 20, 20)), ome=True, photometric="minisblack", metadata=names)


def import_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """IMPORT_IMAGE on what CHECK_INPUT wrote."""
    samples = read_json(Path("check/samples.json"))["samples"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(samples)))
    load_script("import_image").main.main(["--batch", samples[0]["batch"], "--images", "images"], standalone_mode=False)


def with_value(value: float, *, everywhere: bool = False) -> Callable[[Path], None]:
    """A float image that holds a value that is no number."""
    data = volume(dtype="f4")
    data[... if everywhere else (3, 4, 5)] = value
    return tiff(data=data)


def checksum_off(folder: Path) -> None:
    """A .nii.gz whose length is right and whose checksum is not."""
    image = nib.Nifti1Image(volume((6, 200, 200)).T.astype("i2"), np.diag([0.001, 0.001, 0.002, 1]))
    nib.save(image, folder / "a.nii.gz")
    data = bytearray((folder / "a.nii.gz").read_bytes())
    data[-8] ^= 1
    (folder / "a.nii.gz").write_bytes(data)


def labelled(
    value: float = 1, dtype: str = "u1", shape: tuple[int, ...] = (6, 20, 20), column: str = "semantic"
) -> Callable[[Path], str]:
    """A sheet with an image and labels that hold one value."""
    data = np.zeros(shape, dtype)
    data[..., 3, 4, 5] = value
    return sheet(f"sample,image,{column}\na,a.tif,l.tif\n", tiff("l.tif", data=data))


def colours(folder: Path) -> None:
    write_image(folder / "l.tif", (2, 6, 20, 20))


def turned(axes: str) -> Callable[[Path], str]:
    """Image and labels as NIfTI, the labels with other axes."""

    def write(folder: Path) -> str:
        for name, codes in (("a.nii", "RAS"), ("l.nii", axes)):
            signs = [1 if code in "RAS" else -1 for code in codes]
            nib.save(nib.Nifti1Image(np.ones((20, 20, 6), "u1"), np.diag([*signs, 1])), folder / name)
        return "sample,image,instances\na,a.nii,l.nii\n"

    return write


TEXT = b"sample,image\n" * 60
TIME = {"imagej": True, "metadata": {"axes": "TZYX"}}
FLAT = {"patch_size": (16, 16), "configuration": "2d"}

CASES = [
    Case(2, "empty sheet", sheet(""), 65, ("no samples",)),
    Case(2, "header only", sheet("sample,image\n"), 65, ("no samples",)),
    Case(3, "misspelt column", sheet("sampel,image\na,a.tif\n"), 65, ("sampel", "did you mean 'sample'")),
    Case(3, "absent column", sheet("sample\na\n"), 65, ("'image' is missing",)),
    Case(4, "id twice", sheet("sample,image\na,a.tif\nb,a.tif\na,a.tif\n"), 65, ("2 faults", "in rows", "2 and 4")),
    Case(4, "id twice in capitals", sheet("sample,image\na,a.tif\nA,a.tif\n"), 65, ("2 faults", "in rows", "2 and 3")),
    Case(6, "id with a path", sheet("sample,image\n../../etc/x,a.tif\n"), 65, ("../../etc/x",)),
    Case(7, "id with a command", sheet("sample,image\nx$(touch pwned),a.tif\n"), 65, ("touch pwned",)),
    Case(7, "id with backticks", sheet("sample,image\n`touch pwned`,a.tif\n"), 65, ("touch pwned",)),
    Case(18, "missing image", sheet("sample,image\na,sub/gone.tif\n"), 66, ("sub/gone.tif", "does not exist")),
    Case(20, "0 bytes", raw("a.tif", b""), 65, ("0 bytes",)),
    Case(20, "text named .tif", raw("a.tif", TEXT), 65, ("holds text", "says TIFF")),
    Case(20, "TIFF named .nii.gz", tiff("a.nii.gz"), 65, ("holds TIFF", "says gzip-compressed NIfTI")),
    Case(20, "NIfTI named .tif", nifti("a.tif"), 65, ("holds NIfTI", "says TIFF")),
    Case(20, "PDF", raw("a.pdf", b"%PDF-1.7" + b"\0" * 99), 65, ("holds PDF",)),
    Case(20, "cut header", tiff(cut=0.001), 65, ("truncated",), SPACING),
    Case(21, "uncompressed, cut", tiff(cut=0.5), 65, ("truncated",), SPACING),
    Case(21, "uncompressed BigTIFF, cut", tiff(cut=0.5, bigtiff=True), 65, ("truncated",), SPACING),
    Case(21, "deflate, cut", tiff(cut=0.5, compression="zlib"), 65, ("truncated",), SPACING),
    Case(21, "bare deflate, cut", tiff(cut=0.6, compression="zlib", metadata=None), 65, ("truncated",), SPACING),
    Case(21, "ImageJ, cut", tiff(cut=0.5, imagej=True), 65, ("truncated",), SPACING),
    Case(25, "2^31 x 2^31", huge, 65, (str(2**62),), SPACING),
    Case(28, "page of another shape", different_pages(volume((20, 21))), 65, ("page 3 is 20 x 21",), SPACING),
    Case(28, "page of another type", different_pages(volume((20, 20), "u1")), 65, ("page 3", "uint8"), SPACING),
    Case(29, "RGB", tiff(data=volume((6, 20, 20, 3), "u1"), photometric="rgb"), 65, ("RGB", "ZYXC"), SPACING),
    Case(29, "2D for a 3D model", tiff(data=volume((20, 20))), 65, ("2D", "YX"), SPACING),
    Case(29, "2D for a 2d model", tiff(data=volume((20, 20))), 0, (), SPACING, FLAT),
    Case(29, "several times", tiff(data=volume((3, 6, 20, 20)), **TIME), 65, ("TZYX", "3 time points"), SPACING),
    Case(31, "big-endian TIFF", tiff(byteorder=">"), 0, (), SPACING),
    Case(34, "sibling missing", ome_set, 66, ("b.ome.tif",)),
    Case(38, "no spacing", tiff(), 65, ("no voxel size", "give spacing", "--spacing z,y,x")),
    Case(38, "printing resolution", tiff(resolution=(300, 300), resolutionunit="inch"), 65, ("give spacing",)),
    Case(42, "NIfTI cut at 30 %", nifti(cut=0.3), 65, ("truncated",)),
    Case(42, "NIfTI cut at 90 %", nifti(cut=0.9), 65, ("truncated",)),
    Case(42, "NIfTI cut in its trailer", nifti(cut=0.9999), 65, ("truncated",)),
    Case(42, "uncompressed NIfTI cut", nifti("a.nii", cut=0.9), 65, ("truncated",)),
    Case(45, "pixdim 0", nifti(pixdim=0.0), 65, ("spacing", "z 0")),
    Case(45, "pixdim -1", nifti(pixdim=-1.0), 65, ("spacing", "z -1")),
    Case(45, "pixdim NaN", nifti(pixdim=float("nan")), 65, ("spacing", "z nan")),
    Case(50, "missing chunk", zarr_image(lacking=("c/0/1/0", "c/1/0/0")), 65, ("2 chunks", "c/0/1/0"), SPACING),
    Case(50, "missing chunk, Zarr 2", zarr_image(lacking=("0.1.0",), version=2), 65, ("1 chunks", "0.1.0"), SPACING),
    Case(50, "missing chunk, filled", zarr_image(lacking=("c/0/1/0",)), 0, (), (*SPACING, "--missing-chunks", "fill")),
    Case(42, "wrong checksum", checksum_off, 65, ("decoded", "data check"), then=import_all),
    Case(56, "all zero", tiff(data=np.zeros((6, 20, 20), "u2")), 0, (), SPACING, then=import_all),
    Case(57, "constant", tiff(data=np.full((6, 20, 20), 7, "u2")), 0, (), SPACING, then=import_all),
    Case(57, "one bright voxel", tiff(data=np.eye(400, dtype="u2")[:6, :].reshape(6, 20, 20)), 0, (), SPACING,
         then=import_all),
    Case(58, "one NaN", with_value(np.nan), 65, ("1 voxels", "3, 4, 5"), SPACING, then=import_all),
    Case(58, "one infinite", with_value(np.inf), 65, ("1 voxels", "3, 4, 5"), SPACING, then=import_all),
    Case(58, "all NaN", with_value(np.nan, everywhere=True), 65, ("2400 voxels", "0, 0, 0"), SPACING, then=import_all),
    Case(58, "NaN as zero", with_value(np.nan), 0, (), (*SPACING, "--nonfinite", "zero"), then=import_all),
    Case(59, "smaller than a patch", tiff(data=volume((3, 5, 7))), 0, (), SPACING),
    Case(59, "one voxel", tiff(data=volume((1, 1, 1))), 0, (), SPACING),
    Case(59, "one thick", tiff(data=volume((1, 20, 20))), 0, (), SPACING),
    Case(63, "more channels", two_channels, 78, ("green, red", "1 channels of the model: grey"), SPACING),
    Case(63, "fewer channels", tiff(), 78, ("channel 0", "red, green"), SPACING, {"channel_names": ("red", "green")}),
    Case(63, "swapped channels", two_channels, 78, ("green, red", "red, green"), SPACING,
         {"channel_names": ("red", "green")}),
    Case(85, "labels of another shape", labelled(shape=(6, 20, 21)), 65, ("6 x 20 x 21", "6 x 20 x 20", "l.tif")),
    Case(85, "labels of two channels", sheet("sample,image,semantic\na,a.tif,l.tif\n", colours), 65,
         ("2 channels", "l.tif")),
    Case(85, "labels run otherwise", turned("LAS"), 65, ("run LAS", "image RAS", "l.nii")),
    Case(85, "labels run the same way", turned("RAS"), 0, (), then=import_all),
    Case(86, "float labels", labelled(1.5, "f4"), 65, ("float32", "integers", "convert")),
    Case(86, "negative label", labelled(-7, "i2"), 65, ("label -7", "3, 4, 5", "l.tif"), then=import_all),
    Case(86, "negative object", labelled(-7, "i8", column="instances"), 65, ("-7", "3, 4, 5"), then=import_all),
    Case(86, "a class too many", labelled(65535, "u2"), 65, ("65535", "column instances"), then=import_all),
    Case(86, "an id too large", labelled(2**63, "u8", column="instances"), 65, (str(2**63),), then=import_all),
    Case(86, "largest class", labelled(65534, "u4"), 0, (), config=None, then=import_all),
    Case(86, "largest object", labelled(2**63 - 1, "u8", column="instances"), 0, (), config=None, then=import_all),
    Case(87, "missing labels", sheet("sample,image,semantic\na,a.tif,sub/gone.tif\n"), 66, ("sub/gone.tif", "exist")),
    Case(87, "labels without image", sheet("sample,image,semantic\na,,a.tif\n"), 65, ("no image",)),
    Case(87, "labels twice", sheet("sample,image,semantic,instances\na,a.tif,a.tif,a.tif\n"), 65, ("leave one cell",)),
    Case(87, "no labels, no model", sheet("sample,image,semantic\na,a.tif,\n"), 2,
         ("--model", "given for a"), (), None),
    Case(87, "images, no model", tiff(), 2, ("--model", "given for a"), SPACING, None),
]  # fmt: skip


def prepare(case: Case, folder: Path) -> list[str]:
    """Write the input and the package -> arguments of the script."""
    inputs = folder / "in"
    inputs.mkdir()
    text = case.write(inputs)
    arguments = ["--staged", "images", "--schema", str(SCHEMA), *case.flags]
    if text is None:
        stage(folder / "images", sorted(path.name for path in inputs.iterdir()), inputs)
    else:
        (inputs / "samplesheet.csv").write_text(text)
        arguments += ["--input", "in/samplesheet.csv"]
        rows = list(csv.DictReader(text.splitlines()))
        named = [row.get(name) for row in rows for name in ("image", "semantic", "instances")]
        stage(folder / "images", [name for name in named if name], inputs)
    if case.config is not None:
        write_package(folder / "package", model(**case.config))
        arguments += ["--package", "package"]
    return arguments


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("check_input")


def assert_told(
    case: Case, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script ends with the code and the words of a case, leaves no half of a result, and touches no input."""
    arguments = prepare(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    try:
        script.main.main(arguments, standalone_mode=False)
        if case.then is not None:
            case.then(monkeypatch)
        code = 0
    except SystemExit as error:
        code = error.code
    message = capsys.readouterr().err
    assert (code, message if code != case.code else "") == (case.code, "")
    assert all(word in message for word in case.words), message
    assert all(len(fault.splitlines()) <= MAX_LINES for fault in message.split("\n\n"))
    assert "Traceback" not in message
    assert (tmp_path / "check" / "samples.json").exists() == (case.code == 0 or case.then is not None)
    assert before == {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(
    case: Case, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_told(case, tmp_path, script, monkeypatch, capsys)


def run_script(folder: Path, arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT / "bin"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1"} | options.pop("env", {})  # fmt: skip
    command = [sys.executable, str(ROOT / "bin" / "check_input.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **options)


def test_missing_sheet_is_named(tmp_path: Path) -> None:
    """Row 1."""
    write_package(tmp_path / "package", model())
    arguments = ["--input", "gone/s.csv", "--staged", "images", "--package", "package", "--schema", str(SCHEMA)]
    done = run_script(tmp_path, arguments)
    assert done.returncode == 66 and "gone/s.csv" in done.stderr


def test_header_that_lies_about_its_size_costs_nothing(tmp_path: Path) -> None:
    """Row 25: at most 5 seconds and 500 MB."""
    case = next(case for case in CASES if case.number == 25)
    arguments = prepare(case, tmp_path)
    start = time.monotonic()
    limit = 500_000_000
    done = run_script(tmp_path, arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert done.returncode == 65 and str(2**62) in done.stderr, done.stderr
    assert time.monotonic() - start < 5


NAMES = ["a b.tif", "a'b\"c.tif", "a;b.tif", "a$(touch pwned)`touch pwned`.tif", "a*[1]?.tif", "-rf.tif",
         "%n{x}.tif", "日本.tif",
         unicodedata.normalize("NFC", "Größe é.tif"), unicodedata.normalize("NFD", "Größe é.tif")]  # fmt: skip

FOLDERS = ["of slices", "-r", "日本 $(touch pwned)"]


def test_odd_names_under_a_plain_locale(tmp_path: Path) -> None:
    """Rows 10 and 13: every name gives what the plain name gives, byte by byte, with LANG=C."""
    config = write_package(tmp_path / "package", model())
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "plain.tif")
    for name in NAMES:
        shutil.copy(tmp_path / "in" / "plain.tif", tmp_path / "in" / name)
    for folder in FOLDERS:
        (tmp_path / "in" / folder).mkdir()
        for z in range(3):
            tifffile.imwrite(tmp_path / "in" / folder / f"{folder} {z}.tif", volume((20, 20)), photometric="minisblack")
    stage(tmp_path / "images", ["plain.tif", *NAMES, *FOLDERS], tmp_path / "in")
    arguments = ["--staged", "images", "--package", str(config), "--schema", str(SCHEMA), *SPACING]
    for language in ({"LANG": "C", "LC_ALL": "C"}, {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = run_script(tmp_path, arguments, env=language)
        assert done.returncode == 0, done.stderr
        samples = read_json(tmp_path / "check" / "samples.json")["samples"]
        assert [entry["files"][0] for entry in samples] == ["plain.tif", *NAMES, *FOLDERS]
        assert len({entry["id"].lower() for entry in samples}) == len(samples)
        stacks = [samples.pop() for _ in FOLDERS]
        assert all(entry["shape"] == [1, 3, 20, 20] for entry in stacks)
        varying = ("id", "images", "files")
        plain = {key: value for key, value in samples[0].items() if key not in varying}
        assert all({k: v for k, v in entry.items() if k not in varying} == plain for entry in samples)
    assert not list(tmp_path.rglob("pwned"))


def test_big_endian_files_read_like_little_endian_ones(tmp_path: Path) -> None:
    """Row 31."""
    for order in "<>":
        tifffile.imwrite(tmp_path / f"{ord(order)}.tif", volume(), byteorder=order, photometric="minisblack")
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype("i2")
        nib.save(nib.Nifti1Image(volume().T.astype("i2"), np.eye(4), header), tmp_path / f"{ord(order)}.nii")
    box = ((0, 6), (0, 20), (0, 20))
    for suffix in ("tif", "nii"):
        both = [open_image(tmp_path / f"{ord(order)}.{suffix}").read(0, box) for order in "<>"]
        assert both[0].tobytes() == both[1].tobytes() and both[0].dtype == both[1].dtype


def test_unreadable_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Row 17: as an ordinary user."""
    folder = tmp_path_factory.mktemp("unreadable")
    path = write_image(folder / "a.tif")
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        for parent in (folder, folder.parent, folder.parent.parent):
            parent.chmod(0o711)
        os.seteuid(65534)
    try:
        with pytest.raises(InputMissingError, match="permission"):
            open_image(path)
    finally:
        if root:
            os.seteuid(0)
            for parent in (folder, folder.parent, folder.parent.parent):
                parent.chmod(0o700)


def test_relative_paths_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    """Row 18: the sheet's own words for a file are what messages and records show."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_image(tmp_path / "in" / "sub" / "a.tif")
    (tmp_path / "in" / "samplesheet.csv").write_text("sample,image\na,sub/a.tif\n")
    stage(tmp_path / "images", ["sub/a.tif"], tmp_path / "in")
    write_package(tmp_path / "package", model())
    monkeypatch.chdir(tmp_path)
    arguments = ["--input", "in/samplesheet.csv", "--staged", "images", "--package", "package", "--schema", str(SCHEMA)]
    script.main.main(arguments, standalone_mode=False)
    assert read_json(Path("check/samples.json"))["samples"][0]["files"] == ["sub/a.tif"]
