#!/usr/bin/env python3
"""Find what of a model fits the GPU of this machine, before anything is planned."""

from pathlib import Path

import click

from voxelmill.task import task


@click.command()
@click.option("--package", required=True, type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(["float32", "compile", "bfloat16"]), default="float32")
@click.option("--threads", default=1)
@click.option("--batch-size", default=1, help="Windows that the network computes at once, if they fit.")
@click.option("--gpu-memory-budget", default=8_000_000_000, help="Bytes of the GPU that one task may use.")
@click.option("--shard-size", default=256)
@click.option("--save-probabilities", type=click.Choice(["uint8", "uint16"]))
@click.option("--cpu-fallback", is_flag=True, help="Plan for the CPU where not even a window fits the GPU.")
@click.option("--tasks-per-gpu", default=1, help="Tasks that share the GPU, each with its part of what is free.")
@click.option("--member", default=0, help="Number of the model, from 1, where several are averaged.")
def main(
    package: Path,
    batch_size: int,
    save_probabilities: str | None,
    cpu_fallback: bool,
    tasks_per_gpu: int,
    member: int,
    **options,
) -> None:
    """Write device.json."""
    with task("probe_device", "probe_device", f"m{member}" if member else None) as record:
        from voxelmill.planning import Options
        from voxelmill.probabilities import MEMBER_TYPE
        from voxelmill.probe import FILE_NAME, probe_device

        kept = MEMBER_TYPE if member else save_probabilities
        chosen = Options(device="cuda", batch=batch_size, probabilities=kept, **options)
        probe_device(package, chosen, cpu_fallback, Path(FILE_NAME), record, tasks_per_gpu)


if __name__ == "__main__":
    main()
