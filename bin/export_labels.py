#!/usr/bin/env python3
"""Export the labels of one batch as files of other formats."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--samples", required=True, help="Ids joined by commas, in the order of the label stores.")
@click.option("--export", default="auto", help="auto, none, or formats joined by commas.")
@click.option("--label-values", type=click.Choice(["classes", "255"]), default="classes")
@click.option("--memory-budget", type=int, default=4_000_000_000, help="Bytes.")
def main(batch: str, samples: str, export: str, label_values: str, memory_budget: int) -> None:
    with task("export_labels", batch) as record:
        from voxelmill.errors import UsageError
        from voxelmill.export import CHOICES, export_batch

        strange = [name for name in export.split(",") if name not in CHOICES]
        if strange or (len(export.split(",")) > 1 and {"auto", "none"} & set(export.split(","))):
            raise UsageError(f"--export {export}", expected=f"auto, none, or some of {', '.join(CHOICES[1:-1])}")
        binary = 255 if label_values == "255" else None
        export_batch(samples.split(","), Path(), record, export=export, binary=binary, memory_budget=memory_budget)


if __name__ == "__main__":
    main()
