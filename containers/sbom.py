"""Lists what an image holds as CycloneDX: the Python packages of its environment and the packages of its Debian."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

SCHEMA = SchemaVersion.V1_6


def python_packages(python: str) -> dict[str, Any]:
    """The document of cyclonedx-py for the packages that an interpreter finds."""
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", python,
        "--spec-version", SCHEMA.to_version(), "--output-reproducible",
    ]  # fmt: skip
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def debian_packages() -> list[dict[str, Any]]:
    """Components of the packages that dpkg says are installed, by name."""
    form = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    listing = subprocess.run(["dpkg-query", "--show", "--showformat", form], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in listing.stdout.splitlines()]
    return [debian_component(*row[1:]) for row in sorted(rows) if row[0].startswith("ii")]


def debian_component(name: str, version: str, architecture: str) -> dict[str, Any]:
    """One Debian package with its package URL, in which `+` and `:` are spelt as the rules of such URLs ask."""
    spelt = version.replace("+", "%2B").replace(":", "%3A")
    url = f"pkg:deb/debian/{name.replace('+', '%2B')}@{spelt}?arch={architecture}"
    return {"bom-ref": url, "type": "library", "name": name, "version": version, "purl": url}


def whole(document: dict[str, Any], name: str, version: str, debian: list[dict[str, Any]]) -> dict[str, Any]:
    """The document with the image as what it describes and Debian's packages added."""
    image = {"bom-ref": "image", "type": "container", "name": name, "version": version}
    return {
        **document,
        "metadata": {**document["metadata"], "component": image},
        "components": [*document["components"], *debian],
    }


def main() -> None:
    """Write the list; anything that is not CycloneDX ends the build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--python", required=True, help="interpreter of the environment")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    document = whole(python_packages(given.python), given.name, given.version, debian_packages())
    text = json.dumps(document, indent=1, sort_keys=True)
    if error := JsonStrictValidator(SCHEMA).validate_str(text):
        sys.exit(f"the list of the image's contents is not CycloneDX {SCHEMA.to_version()}: {error}")
    given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
