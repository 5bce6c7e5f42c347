#!/usr/bin/env bash
# Builds the image of this version. Arguments go to `podman build`; VOXELMILL_IMAGE names the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' bin/voxelmill/__init__.py)
image=${VOXELMILL_IMAGE:-localhost/voxelmill:$version}
needed_gb=16

free_gb=$(df --output=avail -BG "$(podman info --format '{{.Store.GraphRoot}}')" | tail -n 1 | tr -dc 0-9)
if [[ $free_gb -lt $needed_gb ]]; then
    echo "the build needs $needed_gb GB of free disk where podman keeps its images; $free_gb GB are free" >&2
    exit 74
fi

podman build --file containers/Containerfile --tag "$image" "$@" requirements
echo "built $image; run the pipeline with: -profile podman"
