"""The two container images: what is in them, and that it works for any user, without a network, on a read-only system.

An image that is absent or of another lock file is a failure here: `.ci/images` makes them.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from voxelmill import __version__

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/debian:bookworm-slim"
FULL = f"localhost/voxelmill:{__version__}"
LIGHT = f"{FULL}-light"
LOCKS = {LIGHT: "light.lock", FULL: "runtime.lock"}
# As hard as an engine can make it: nobody's id, no network, and nothing to write but the task's own folder.
BARE = ["--network=none", "--read-only", "--read-only-tmpfs=false", "--user=12345:12345", "--cap-drop=all"]
BOTH = pytest.mark.parametrize("image", [LIGHT, FULL])


def run(image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in an image; the caller judges."""
    line = ["podman", "run", "--rm", "--pull=never", *options, image, *command]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


def output(image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    """What a command in an image prints."""
    result = run(image, *command, options=options)
    assert result.returncode == 0, f"{image}: {' '.join(command)[:200]}\n{result.stderr[-2000:]}"
    return result.stdout


def inspected(image: str) -> dict:
    """The engine's account of an image."""
    result = subprocess.run(["podman", "image", "inspect", image], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)[0]


def in_task_folder(folder: Path) -> tuple[str, ...]:
    """Options for a container that may write one folder alone, and reads the pipeline's scripts."""
    folder.chmod(0o777)
    return (*BARE, f"--volume={folder}:/task", "--workdir=/task", f"--volume={ROOT / 'bin'}:/pipeline:ro")


@BOTH
def test_image_is_of_this_checkout_and_whole(image: str, tmp_path: Path) -> None:
    lock = (ROOT / "requirements" / LOCKS[image]).read_text()
    assert output(image, "cat", "/etc/voxelmill/requirements.lock") == lock, "run .ci/images"
    words = output(image, "python", "/etc/voxelmill/check_image.py", options=in_task_folder(tmp_path))
    torch = re.search(r"^torch==(\S+)", lock, re.MULTILINE)
    # Libraries that find no folder for their logs say so first.
    assert words.splitlines()[-1].startswith("whole: ")
    assert (f"torch {torch[1]}" if torch else "no torch") in words


# Runs the import statements of scripts, those inside functions too, and prints each script with what was absent.
IMPORTS = """
import ast, pathlib, sys
sys.path.insert(0, "/pipeline")
for script in sys.argv[1:]:
    tree = ast.parse(pathlib.Path("/pipeline", script).read_text())
    absent = ""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "") != "__future__":
            try:
                exec(compile(ast.Module([node], []), script, "exec"), {})
            except ModuleNotFoundError as error:
                absent = error.name
    print(script, absent)
"""


def absent_modules(image: str, scripts: list[str], folder: Path) -> dict[str, str]:
    """What each script looks for in vain in an image; empty where it finds all."""
    lines = output(image, "python", "-c", IMPORTS, *scripts, options=in_task_folder(folder)).splitlines()
    return {name: absent for name, absent in (line.split(" ") for line in lines)}


def called_by(label: bool) -> list[str]:
    """Scripts of the processes that bear the label process_torch, or of those that do not."""
    texts = [path.read_text() for path in (ROOT / "modules").glob("*/main.nf")]
    names = {name for text in texts if ("'process_torch'" in text) == label for name in re.findall(r"\w+\.py\b", text)}
    return sorted(name for name in names if (ROOT / "bin" / name).exists())


def test_light_image_serves_every_process_but_those_that_need_torch(tmp_path: Path) -> None:
    found = absent_modules(LIGHT, called_by(label=False), tmp_path)
    assert len(found) > 20
    assert set(found.values()) == {""}
    heavy = absent_modules(LIGHT, called_by(label=True), tmp_path)
    assert (heavy["pack_model.py"], heavy["predict_tiles.py"]) == ("torch", "torch")


def test_full_image_serves_every_process(tmp_path: Path) -> None:
    found = absent_modules(FULL, called_by(label=False) + called_by(label=True), tmp_path)
    assert set(found.values()) == {""}


@BOTH
def test_image_holds_no_project_code_and_nothing_that_installs(image: str) -> None:
    scripts = [path.name for path in (ROOT / "bin").glob("*.py")]
    look = "python -c 'import voxelmill' 2>/dev/null && exit 3; for name; do command -v $name && exit 4; done; exit 0"
    assert run(image, "bash", "-c", look, "look", "pip", "uv", *scripts).returncode == 0
    assert run(image, "python", "-m", "pip", "--version").returncode == 1


@BOTH
def test_list_of_contents_is_what_is_there(image: str) -> None:
    document = json.loads(output(image, "cat", "/etc/voxelmill/sbom.json"))
    assert (document["bomFormat"], document["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
    listed = {kind: {c["name"]: c["version"] for c in document["components"] if f"pkg:{kind}" in c["purl"]}
              for kind in ("pypi", "deb")}  # fmt: skip
    installed = (
        "import importlib.metadata as m; print(*(f'{d.name}\\t{d.version}' for d in m.distributions()), sep='\\n')"
    )
    python = dict(line.split("\t") for line in output(image, "python", "-c", installed).splitlines())
    debian = dict(
        line.split() for line in output(image, "dpkg-query", "-W", "-f", "${Package} ${Version}\n").splitlines()
    )
    assert listed == {"pypi": python, "deb": debian}
    assert {"procps", "bash"} <= debian.keys()
    assert all(c.get("licenses") for c in document["components"] if "pkg:pypi/numpy" in c["purl"])


@BOTH
def test_image_says_what_it_is_and_its_user_is_not_root(image: str) -> None:
    config = inspected(image)["Config"]
    assert config["User"] == "1000:1000"
    assert output(image, "id", "-u") == "1000\n"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["base.name"] == "debian:bookworm-slim"
    assert {"title", "description"} <= labels.keys()


@BOTH
def test_charliecloud_finds_the_environment_of_the_image(image: str) -> None:
    config = set(inspected(image)["Config"]["Env"])
    lines = set(output(image, "cat", "/ch/environment").splitlines())
    assert "PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin" in lines
    # Home and name are the user's own there.
    assert lines <= config
    assert {line.split("=")[0] for line in config - lines} <= {"HOME", "USER", "container", "TERM"}


def test_both_images_share_what_both_hold() -> None:
    light, full = (inspected(image)["RootFS"]["Layers"] for image in (LIGHT, FULL))
    shared = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(light, full, strict=False)))
    # What follows in the light one: its list of contents and the check; the packages lie below.
    history = [step.get("created_by", "") for step in inspected(LIGHT)["History"] if not step.get("empty_layer")]
    last = max(n for n, step in enumerate(history) if "pip --python" in step)
    assert len(shared) > last


@BOTH
def test_certificates_of_the_machine_that_built_it_stay_out(image: str) -> None:
    machine = Path("/etc/ssl/certs/ca-certificates.crt").read_text()
    inside = output(image, "cat", "/etc/ssl/certs/ca-certificates.crt")
    assert inside == output(BASE, "cat", "/etc/ssl/certs/ca-certificates.crt")
    if inside == machine:
        pytest.skip("this machine has no certificates of its own")
