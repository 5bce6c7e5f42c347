"""Finding a model in what a user passes: a result folder of nnU-Net, its zip, or a package."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from voxelmill.errors import BadDataError, InputMissingError, ModelMismatchError, RefusedError, UsageError
from voxelmill.model.config import is_fold, shorten
from voxelmill.model.package import POSTPROCESSING, is_package
from voxelmill.model.plans import DATASET, PLANS

MAX_MEMBERS = 20_000
MAX_RATIO = 50
MAX_EXTRA_BYTES = 64 << 20
"""A zip may unpack to ``MAX_RATIO`` times its own size plus this: weights hardly compress."""
MAX_DEPTH = 5
CROSSVALIDATION = "crossval_results_folds_"
_WANTED_NAMES = frozenset(
    {PLANS, DATASET, POSTPROCESSING, "dataset_fingerprint.json", "README.md", "model_card.md"}
    | {"manifest.json", "model.json", "fingerprint.json", "card.md"}
)
_WANTED_ENDINGS = (".pth", ".safetensors")
_CHECKPOINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.pth")


@dataclass(frozen=True)
class ModelFolder:
    """A complete nnU-Net result folder: its path and the checkpoint of each chosen fold, in order."""

    path: Path
    checkpoints: dict[str, Path]


@contextmanager
def opened_source(source: Path, scratch: Path) -> Iterator[Path]:
    """Yield the folder of a model or package; a zip is unpacked below ``scratch`` for the time of the block.

    Parameters
    ----------
    source : Path
        Folder or zip.
    scratch : Path
        Folder with room for the unpacked zip.

    Raises
    ------
    InputMissingError
        Nothing there.
    ModelMismatchError
        A file that is no zip, or a zip with no model or several.
    RefusedError
        See :func:`unpack`.
    """
    # Messages name the user's own folder, not the link to it in a task's folder.
    source = Path(source).resolve()
    if source.is_dir():
        yield source
    elif not source.exists():
        raise InputMissingError("the model does not exist", file=source, remedy="pass nnU-Net's result folder")
    elif source.suffix == ".pth" or not zipfile.is_zipfile(source):
        raise ModelMismatchError(
            "a single file that is no zip of a model",
            file=source,
            expected=f"the folder that holds {PLANS}, {DATASET} and fold_*, or a zip of it, or a package",
            remedy=f"pass --model {source.parent.parent}" if source.suffix == ".pth" else None,
        )
    else:
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=scratch) as folder:
            unpack(source, Path(folder))
            models = models_below(Path(folder))
            if len(models) != 1:
                names = [model.relative_to(folder).as_posix() for model in models]
                raise ModelMismatchError(
                    f"the zip holds {len(models)} models: {', '.join(names)}" if names else "the zip holds no model",
                    file=source,
                    expected=f"one folder with {PLANS}, {DATASET} and fold_*, or one package",
                    remedy="unzip it and pass the folder of one model",
                )
            yield models[0]


def unpack(archive: Path, target: Path) -> None:
    """Unpack the files of a model from a stranger's zip, which is checked whole before the first byte is written.

    Zips inside the zip stay closed. Links, other special files and files of no use are never written.

    Raises
    ------
    RefusedError
        A name that leaves the folder or is ambiguous, a link, or more members or bytes than a model has.
    BadDataError
        Damaged, or encrypted.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            check_members(members, archive)
            for member in members:
                if not member.is_dir() and is_wanted(member.filename):
                    file = target / member.filename
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as packed, open(file, "xb") as unpacked:
                        shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadDataError(f"the zip is damaged or encrypted: {error}", file=archive, remedy="get it again") from error


def check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    """Raise RefusedError for a zip that is more than the files of a model."""

    def refuse(found: str) -> RefusedError:
        return RefusedError(found, file=archive, remedy="nothing was unpacked; do not use this file")

    if len(members) > MAX_MEMBERS:
        raise refuse(f"the zip has {len(members)} members, more than {MAX_MEMBERS}")
    limit = MAX_RATIO * archive.stat().st_size + MAX_EXTRA_BYTES
    total = sum(member.file_size for member in members)
    if total > limit:
        raise refuse(f"the zip unpacks to {total} bytes, more than {limit} for its size")
    seen: set[str] = set()
    folders: set[str] = set()
    for member in members:
        name = member.filename
        # ``filename`` is cut at a NUL; the stranger's own text is in ``orig_filename``.
        if not is_inside(member.orig_filename):
            raise refuse(f"the zip has a member that leaves its folder: {shorten(member.orig_filename)}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
            raise refuse(f"the zip has a link or special file: {shorten(name)}")
        path = PurePosixPath(name)
        key = unicodedata.normalize("NFC", path.as_posix()).casefold()
        parents = {unicodedata.normalize("NFC", parent.as_posix()).casefold() for parent in path.parents} - {"."}
        if member.is_dir():
            parents.add(key)
        else:
            if key in seen:
                raise refuse(f"the zip has two members of one name: {shorten(name)}")
            seen.add(key)
        folders |= parents
    if seen & folders:
        raise refuse(f"the zip has a file and a folder of one name: {shorten(min(seen & folders))}")


def is_inside(name: str) -> bool:
    """Whether a zip member's name is a plain relative path that means the same on every system."""
    parts = name.removesuffix("/").split("/")
    return (
        0 < len(name) <= 1024
        and "\\" not in name
        and ":" not in name
        and name.isprintable()
        and all(part not in ("", ".", "..") for part in parts)
    )


def is_wanted(name: str) -> bool:
    file = name.rsplit("/", 1)[-1]
    return file in _WANTED_NAMES or file.endswith(_WANTED_ENDINGS)


def models_below(folder: Path) -> list[Path]:
    """Folders at or below ``folder`` that look like a model or a package, in the order of their names."""
    if looks_like_model(folder):
        return [folder]
    found: list[Path] = []
    level = [folder]
    for _ in range(MAX_DEPTH):
        level = sorted(child for parent in level for child in listed(parent) if child.is_dir())[:1000]
        found += [child for child in level if looks_like_model(child)]
    return found


def looks_like_model(folder: Path) -> bool:
    return is_package(folder) or ((folder / PLANS).is_file() and bool(folds_of(folder)))


def listed(folder: Path) -> list[Path]:
    """Entries of a folder by name; none where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def folds_of(folder: Path) -> dict[str, Path]:
    """Fold folders by name, numbers first."""
    found = {child.name.removeprefix("fold_"): child for child in listed(folder) if child.name.startswith("fold_")}
    return {name: found[name] for name in sorted(found, key=fold_order) if is_fold(name) and found[name].is_dir()}


def fold_order(name: str) -> tuple[bool, int, str]:
    """Sort key: 0, 1, ..., then ``all``."""
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def find_model(folder: Path, folds: str, checkpoint: str) -> ModelFolder:
    """Check that a folder is a complete model and choose its folds.

    Parameters
    ----------
    folder : Path
    folds : str
        See :func:`choose_folds`.
    checkpoint : str
        File name of the checkpoint in every fold.

    Raises
    ------
    ModelMismatchError
        Wrong level or something is missing; the message lists what is there and what to pass.
    """
    if not _CHECKPOINT_NAME.fullmatch(checkpoint):
        raise UsageError(f"{shorten(checkpoint)} is no name of a checkpoint", expected="such as checkpoint_final.pth")
    there = [entry.name for entry in listed(folder)]
    missing = [name for name in (PLANS, DATASET) if name not in there]
    present = folds_of(folder)
    if missing or not present:
        raise ModelMismatchError(
            f"no model in this folder: it lacks {', '.join(missing or ['fold_*'])}; it holds {some(there)}",
            file=folder,
            expected=f"nnU-Net's result folder: {PLANS}, {DATASET}, fold_*/{checkpoint}",
            remedy=where_instead(folder),
        )
    chosen = choose_folds(folds, list(present), folder)
    checkpoints = {name: present[name] / checkpoint for name in chosen}
    lacking = [name for name, file in checkpoints.items() if not file.is_file()]
    if lacking:
        complete = [name for name, path in present.items() if (path / checkpoint).is_file()]
        others = {f"fold_{name}": [p.name for p in listed(present[name]) if p.suffix == ".pth"] for name in lacking}
        raise ModelMismatchError(
            "; ".join(f"{fold} has no {checkpoint}, only {some(names)}" for fold, names in list(others.items())[:4]),
            file=folder,
            expected=f"{checkpoint} in every fold that is used",
            remedy=(f"pass --folds {','.join(complete)}, or " if complete else "")
            + "pass --checkpoint with a name that every fold has",
        )
    return ModelFolder(folder, checkpoints)


def where_instead(folder: Path) -> str:
    """What to pass in place of a folder that is no model."""
    if looks_like_model(folder.parent):
        return f"pass the folder above: --model {folder.parent}"
    below = models_below(folder)
    if below:
        return "pass one of: " + ", ".join(str(path) for path in below[:5])
    return "pass the folder that nnUNetv2_train wrote: <trainer>__<plans>__<configuration>"


def choose_folds(wanted: str, present: list[str], where: Path) -> tuple[str, ...]:
    """Folds to use.

    Parameters
    ----------
    wanted : str
        ``all`` for every fold that is there, or names with commas: ``0,2``. ``fold_all`` means the fold of that name.
    present : list of str

    Raises
    ------
    UsageError
        Not such a text.
    ModelMismatchError
        A fold is not there.
    """
    if wanted == "all":
        return tuple(present)
    names = [name.strip().removeprefix("fold_") for name in wanted.split(",")]
    if not all(is_fold(name) for name in names) or len(set(names)) < len(names):
        raise UsageError(f"folds {shorten(wanted)} make no sense", expected="all, or numbers such as 0,1,2")
    absent = [name for name in names if name not in present]
    if absent:
        raise ModelMismatchError(
            f"the model has no fold {', '.join(absent)}",
            file=where,
            expected=f"folds out of {', '.join(present)}",
            remedy="pass --folds all, or some of these",
        )
    return tuple(sorted(names, key=fold_order))


def find_postprocessing(model: ModelFolder) -> tuple[Path | None, str | None]:
    """nnU-Net's post-processing of a model, in its folder or where nnU-Net determined it on its cross-validation.

    Returns
    -------
    file : Path or None
        That of the model's folder before that of the packed folds before the only one there is.
    warning : str or None
        Why none was taken, or which.
    """
    folders = [entry for entry in listed(model.path) if entry.name.startswith(CROSSVALIDATION) and entry.is_dir()]
    # nnU-Net names the folder by the folds' numbers
    own = model.path / (CROSSVALIDATION + "_".join(model.checkpoints))
    for folder in (model.path, own):
        if (folder / POSTPROCESSING).is_file():
            return folder / POSTPROCESSING, None
    found = [folder / POSTPROCESSING for folder in folders if (folder / POSTPROCESSING).is_file()]
    if len(found) == 1:
        folds = found[0].parent.name.removeprefix(CROSSVALIDATION).replace("_", ",")
        return found[
            0
        ], f"the model's post-processing was determined with folds {folds}, not with those that are packed"
    if found:
        return None, (
            f"the model has {len(found)} post-processings, none of the packed folds; none was taken: "
            f"copy one of {some([file.parent.name for file in found])} into the model's folder"
        )
    if any((folder / "postprocessing.pkl").exists() for folder in (model.path, *folders)):
        return None, f"the model's postprocessing.pkl is a pickle and was not opened; no {POSTPROCESSING} is beside it"
    return None, None


def some(names: list[str]) -> str:
    """The first names of a list for a message."""
    shown = ", ".join(shorten(name) for name in names[:8])
    return (shown or "nothing") + (f" and {len(names) - 8} more" if len(names) > 8 else "")
