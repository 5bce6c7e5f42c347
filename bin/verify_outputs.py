#!/usr/bin/env python3
"""Check that the files of a results' folder are there and have the contents that were published."""

import sys
from pathlib import Path

import click

from voxelmill.task import exit_codes


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
def main(results: Path) -> None:
    """RESULTS: what was given to the run as --outdir."""
    with exit_codes():
        from voxelmill.verify import check_results, first

        found = check_results(results)
        if found.unlisted:
            print(
                f"warning:  {len(found.unlisted)} files are not of this run: {first(found.unlisted)}", file=sys.stderr
            )
        print(f"{len(found.intact)} files are as they were published")


if __name__ == "__main__":
    main()
