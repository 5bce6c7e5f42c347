"""The package: a model as JSON and safetensors with a manifest, the only form that later tasks read.

``manifest.json`` holds the sha256 of every other file. A file is hashed from the very bytes that are then used, so
nothing can change between the check and the use. This module needs neither torch nor nnU-Net.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voxelmill.errors import BadDataError, ModelMismatchError, RefusedError, UsageError
from voxelmill.files import write_bytes, write_json
from voxelmill.model.config import ModelConfig, shorten

FORMAT = 1
MANIFEST = "manifest.json"
CONFIG = "model.json"
CARD = "card.md"
FINGERPRINT = "fingerprint.json"
POSTPROCESSING = "postprocessing.json"
_FILE_NAME = re.compile(
    r"(model|plans|dataset|fingerprint|postprocessing)\.json|card\.md|fold_(all|[0-9]{1,3})\.safetensors"
)


def weights_name(fold: str) -> str:
    """File of a fold's weights inside a package."""
    return f"fold_{fold}.safetensors"


def is_package(path: Path) -> bool:
    """Whether a folder is meant as a package, sound or not."""
    return (Path(path) / MANIFEST).is_file() and (Path(path) / CONFIG).is_file()


def load_manifest(path: Path) -> dict[str, str]:
    """Names and sha256 of a package's files.

    Raises
    ------
    ModelMismatchError
        No package, or one of another format.
    RefusedError
        The manifest names a file that no package has.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise ModelMismatchError("not a packed model", file=path, expected=f"a folder with {MANIFEST}")
    manifest = parse_json(file.read_bytes(), str(file))
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
    if not isinstance(files, dict):
        raise ModelMismatchError(f"not a package of format {FORMAT}", file=file, remedy="pack the model again")
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise RefusedError(f"the manifest names {shorten(name)}, which is no file of a package", file=file)
    return files


def verified_bytes(path: Path, name: str, manifest: dict[str, str]) -> bytes:
    """Contents of a package's file, proved to be those of the manifest.

    Raises
    ------
    ModelMismatchError
        The file is missing, in the folder or in the manifest.
    RefusedError
        The file was changed or damaged after packing.
    """
    file = Path(path) / name
    if name not in manifest or not file.is_file():
        raise ModelMismatchError(
            f"the package lacks {name}",
            file=path,
            expected=f"the files of {MANIFEST}: {', '.join(sorted(manifest))}",
            remedy="copy the package again, or pack the model again",
        )
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != manifest[name]:
        raise RefusedError(
            f"the file was changed after packing: sha256 is {found}",
            file=file,
            expected=f"{manifest[name]}, as {MANIFEST} says",
            remedy="copy the package again, or pack the model again",
        )
    return data


def load_config(path: Path) -> ModelConfig:
    """Configuration of a package; every JSON file of it is verified, no weights are read.

    Parameters
    ----------
    path : Path
        Folder of the package.

    Raises
    ------
    ModelMismatchError
        No package, or a file of it is missing.
    RefusedError
        A file differs from the manifest, or names an unknown class.
    """
    manifest = load_manifest(path)
    texts = {name: verified_bytes(path, name, manifest) for name in sorted({*manifest, CONFIG}) if is_text(name)}
    config = ModelConfig.from_dict(parse_json(texts[CONFIG], str(Path(path) / CONFIG)), str(Path(path) / CONFIG))
    for fold in config.folds:
        if weights_name(fold) not in manifest or not (Path(path) / weights_name(fold)).is_file():
            raise ModelMismatchError(f"the package lacks {weights_name(fold)}", file=path, remedy="copy it again")
    return config


def is_text(name: str) -> bool:
    return not name.endswith(".safetensors")


def parse_json(data: bytes, file: str) -> Any:
    """Value of a JSON text from a stranger.

    Raises
    ------
    BadDataError
        Not JSON, or nested too deep.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"not readable as JSON: {str(error)[:120]}", file=file) from error


class PackageWriter:
    """Adds files to a package that is being written; see :func:`new_package`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{name} is no file of a package")
        write_bytes(self.folder / name, data)
        self.files[name] = hashlib.sha256(data).hexdigest()

    def add_config(self, config: ModelConfig) -> None:
        # unsorted: the order of the labels says which region is which output of the network
        text = json.dumps(config.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        self.add(CONFIG, (text + "\n").encode())


@contextmanager
def new_package(out: Path) -> Iterator[PackageWriter]:
    """Write a package under a temporary name; on success it gets its manifest and its final name, else it is removed.

    Raises
    ------
    UsageError
        ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already", remedy="name a new folder")
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        writer = PackageWriter(temporary)
        yield writer
        write_json(temporary / MANIFEST, {"format": FORMAT, "files": writer.files})
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
