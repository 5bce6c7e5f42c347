#!/usr/bin/env bash
# Builds the images of this version with podman or docker: voxelmill:<version>-light and voxelmill:<version>.
#   containers/build.sh [light|full] [arguments for the engine's build command]
# VOXELMILL_ENGINE chooses podman or docker, VOXELMILL_IMAGE another name (the light one gets -light at its end).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=(light full)
if [[ ${1:-} == light || ${1:-} == full ]]; then
    targets=("$1")
    shift
fi

engine=${VOXELMILL_ENGINE:-$(command -v podman >/dev/null && echo podman || echo docker)}
if ! command -v "$engine" >/dev/null; then
    echo "$engine is not installed: install podman or docker, or name one in VOXELMILL_ENGINE" >&2
    exit 69
fi
case $engine in
    podman) prefix=localhost/ store=$(podman info --format '{{.Store.GraphRoot}}') ;;
    docker) prefix='' store=$(docker info --format '{{.DockerRootDir}}') ;;
    *) echo "VOXELMILL_ENGINE is podman or docker, not $engine" >&2; exit 2 ;;
esac

version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' bin/voxelmill/__init__.py)
image=${VOXELMILL_IMAGE:-${prefix}voxelmill:$version}

# While it is built an image takes about three times its size: downloads, the layer, and the layer again as it is kept.
declare -A needed_gb=([light]=4 [full]=20)
needed=${needed_gb[${targets[-1]}]}
folders=("$store")
# podman keeps a layer there before it stores it.
if [[ $engine == podman ]]; then folders+=("${TMPDIR:-/var/tmp}"); fi
for folder in "${folders[@]}"; do
    # The engine may keep its images in a machine of its own.
    [[ -d $folder ]] || continue
    free=$(df --output=avail -BG "$folder" | tail -n 1 | tr -dc 0-9)
    if [[ $free -lt $needed ]]; then
        echo "the build needs $needed GB of free disk in $folder, and $free GB are free" >&2
        exit 74
    fi
done

for target in "${targets[@]}"; do
    name=$image
    if [[ $target == light ]]; then name+=-light; fi
    "$engine" build --file containers/Containerfile --target "$target" --build-arg "VERSION=$version" \
        --tag "$name" "$@" .
    echo "built $name"
done
