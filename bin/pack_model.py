#!/usr/bin/env python3
"""Make a model safe and lean: nnU-Net folder or zip -> package."""

from __future__ import annotations

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="nnU-Net result folder, zip or package.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the package.")
@click.option("--folds", default="all", help="all, or names with commas.")
@click.option("--checkpoint", default="checkpoint_final.pth", help="File name of the checkpoint in every fold.")
@click.option("--spacing-unit", default="auto", type=click.Choice(["um", "mm", "none", "auto"]))
@click.option("--trust-model", help="sha256:... of a model whose pickle may run code.")
@click.option("--member", default=0, help="Number of the model, from 1, where several are averaged.")
def main(
    model: Path, out: Path, folds: str, checkpoint: str, spacing_unit: str, trust_model: str | None, member: int
) -> None:
    """Write the package and its task record."""
    with task("pack_model", "pack_model", f"m{member}" if member else None) as record:
        from voxelmill.model.checkpoint import pack_model

        config, warnings = pack_model(
            model, out, folds=folds, checkpoint=checkpoint, spacing_unit=spacing_unit, trust=trust_model
        )
        for text in warnings:
            record.warn(text)
        record.counts = {"folds": len(config.folds), "heads": config.heads, "channels": config.channels}
        record.output(out)


if __name__ == "__main__":
    main()
