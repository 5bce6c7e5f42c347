#!/usr/bin/env python3
"""Write 04_parameters.md from nextflow_schema.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCHEMA = HERE.parent / "nextflow_schema.json"
PAGE = HERE / "04_parameters.md"

INTRODUCTION = """\
# 4. Parameters

Made from `nextflow_schema.json` by `docs/make_parameters.py`. Parameters have two dashes; Nextflow's own options, such
as `-resume`, `-profile` and `-work-dir`, have one. They may also come from a file: `-params-file params.json`.
"""


def page(schema: Mapping[str, Any]) -> str:
    """The page as Markdown: one table per group, hidden parameters left out."""
    groups = (section(group) for group in schema["$defs"].values())
    return "\n".join([INTRODUCTION, *filter(None, groups)])


def section(group: Mapping[str, Any]) -> str:
    """Heading and table of a group, empty where it shows nothing."""
    required = group.get("required", [])
    rows = [row(name, rule, name in required) for name, rule in group["properties"].items() if not rule.get("hidden")]
    if not rows:
        return ""
    table = ["| parameter | values | default | |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {group['title']}", "", group["description"], "", *table, ""])


def row(name: str, rule: Mapping[str, Any], required: bool) -> str:
    """One parameter: name, what it takes, default, help."""
    default = rule.get("default")
    shown = "required" if required else "" if default is None else f"`{json.dumps(default).strip(chr(34))}`"
    description = rule["description"].replace("|", "\\|")
    return f"| `--{name}` | {values(rule)} | {shown} | {description} |"


def values(rule: Mapping[str, Any]) -> str:
    """What a parameter takes, in words."""
    if "enum" in rule:
        return ", ".join(f"`{value}`" for value in rule["enum"])
    limits = [
        f"{words} {rule[key]}"
        for key, words in (("exclusiveMinimum", "above"), ("minimum", "from"), ("maximum", "to"))
        if key in rule
    ]
    kind = {"string": "text", "boolean": "switch", "integer": "whole number", "number": "number"}[rule["type"]]
    return " ".join([kind, *limits])


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(SCHEMA.read_text(encoding="utf-8"))), encoding="utf-8")
