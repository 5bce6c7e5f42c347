#!/usr/bin/env python3
"""Plan the samples of one batch: windows, tiles, blocks, and what each task needs."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--batch", required=True)
@click.option("--package", required=True, type=click.Path(path_type=Path))
@click.option("--step-size", default=0.5)
@click.option("--mirroring", type=click.Choice(["on", "off"]), default="on")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--engine", type=click.Choice(["float32", "compile", "bfloat16"]), default="float32")
@click.option("--threads", default=2)
@click.option("--batch-size", default=1, help="Windows that the network computes at once.")
@click.option("--gpu-memory-budget", default=8_000_000_000, help="Bytes of a GPU that one task may use.")
@click.option("--probed", type=click.Path(path_type=Path), help="What PROBE_DEVICE found; needed with --device cuda.")
@click.option("--memory-budget", default=4_000_000_000, help="Bytes of host memory that one task may use.")
@click.option("--task-minutes", default=30.0, help="What a task should take, by the estimate.")
@click.option("--tile-size", default=None, help="Voxels: one number, or z,y,x.")
@click.option("--shard-size", default=256)
@click.option("--save-probabilities", type=click.Choice(["uint8", "uint16"]))
@click.option("--member", default=0, help="Number of the model, from 1, where several are averaged.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(
    batch: str,
    package: Path,
    images: tuple[Path, ...],
    mirroring: str,
    tile_size: str | None,
    task_minutes: float,
    save_probabilities: str | None,
    member: int,
    batch_size: int,
    probed: Path | None,
    **options,
) -> None:
    with task("plan_tiles", batch, f"m{member}" if member else None) as record:
        from voxelmill.planning import Options
        from voxelmill.probe import chosen_device, sums_moved
        from voxelmill.schedule import plan_batch, tile_shape

        chosen = Options(
            mirroring=mirroring == "on",
            tile_size=tile_shape(tile_size),
            task_seconds=60 * task_minutes,
            probabilities=save_probabilities,
            batch=batch_size,
            **options,
        )
        chosen = chosen_device(chosen, probed)
        plan_batch(batch, package, images, chosen, Path(), record, member)
        for sample, text in sums_moved(chosen, sorted(Path().glob("*/*.plan.json"))):
            record.warn(text, sample=sample)


if __name__ == "__main__":
    main()
