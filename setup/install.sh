#!/usr/bin/env bash
# Leaves an environment in .venv with every Python package and a working nextflow.
# Safe to run again and after an interruption: a step leaves its stamp only when it is complete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamps=$venv/share/voxelmill
nextflow_version=25.04.4
lock=requirements/dev.lock

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 69
}

python_is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if python_is_new "$name"; then
            echo "$name"
            return
        fi
    done
}

# The same order as Nextflow's launcher.
java_command() {
    if [[ -n ${NXF_JAVA_HOME:-${JAVA_HOME:-}} ]]; then
        echo "${NXF_JAVA_HOME:-$JAVA_HOME}/bin/java"
    else
        echo "${JAVA_CMD:-java}"
    fi
}

java_major() {
    "$(java_command)" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1 || true
}

# A nextflow of 25.04 or newer that is not the one installed here.
nextflow_on_path() {
    local candidate version
    while read -r candidate; do
        [[ $candidate -ef $venv/bin/nextflow ]] && continue
        version=$(NXF_DISABLE_CHECK_LATEST=true "$candidate" -v 2>/dev/null </dev/null |
            sed -nE 's/.*version ([0-9]+\.[0-9]+).*/\1/p') || continue
        if [[ -n $version && $(printf '%s\n25.04\n' "$version" | sort -V | head -n 1) == 25.04 ]]; then
            echo "$candidate"
            return
        fi
    done < <(type -aP nextflow || true)
}

# Everything that is absent, in one message.
check_machine() {
    local absent=() major
    if [[ -z $python ]]; then
        absent+=("Python 3.11 or newer is absent: apt-get install python3 python3-venv")
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        absent+=("Python's venv module is absent: apt-get install python3-venv")
    fi
    major=$(java_major)
    if [[ -z $major || $major -lt 17 ]]; then
        absent+=("Java 17 or newer is absent (found: ${major:-none}): apt-get install openjdk-17-jre-headless")
    elif [[ -z $nextflow && $major -gt 24 ]]; then
        absent+=(
            "Nextflow $nextflow_version runs on Java 17 to 24 (found: $major): apt-get install openjdk-17-jre-headless"
            "and set JAVA_HOME to it; or put a newer nextflow on PATH"
        )
    fi
    if [[ -z $nextflow ]] && ! command -v mvn >/dev/null; then
        absent+=("Maven is absent, and so is a nextflow of 25.04 or newer: apt-get install maven")
    fi
    [[ ${#absent[@]} -eq 0 ]] || fail "${absent[@]}"
}

make_venv() {
    if [[ -e $venv/bin/python ]] && ! python_is_new "$venv/bin/python"; then
        fail "$venv does not run, or is older than Python 3.11: remove it and run make setup again"
    fi
    [[ -e $venv/bin/activate && -e $venv/bin/python ]] && "$venv/bin/python" -m pip --version &>/dev/null && return
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
}

# uv from PATH, or from the environment itself.
find_uv() {
    local candidate
    for candidate in uv "$venv/bin/uv"; do
        if "$candidate" --version &>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

install_packages() {
    local uv started=$stamps/packages.started again=() quiet=()
    uv=$(find_uv)
    if [[ -z $uv ]]; then
        say "installing uv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
        uv=$venv/bin/uv
    fi
    say "installing $(grep -c '==' $lock) locked packages (about 6 GB with torch)"
    # A package that was half written when the last run was stopped looks complete: write all of them again.
    [[ -e $started ]] && again=(--reinstall)
    [[ -t 2 ]] || quiet=(--quiet)
    touch "$started"
    "$uv" pip sync "${quiet[@]+"${quiet[@]}"}" "${again[@]+"${again[@]}"}" --python "$venv/bin/python" --require-hashes $lock
    rm "$started"
}

install_nextflow() {
    local partial=$venv/share/nextflow.partial
    say "installing Nextflow $nextflow_version"
    rm -rf "$partial"
    mvn --quiet --batch-mode --strict-checksums --file setup/pom.xml dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$PWD/$partial" 2>&1 |
        sed 's/\x1b\[[0-9;]*m//g'
    rm -rf "$venv/share/nextflow"
    mv "$partial" "$venv/share/nextflow"
    install -m 755 setup/nextflow "$venv/bin/nextflow"
    "$venv/bin/nextflow" -v >/dev/null
}

stamp_of() { cat "$@" | sha256sum | cut -d ' ' -f 1; }
done_before() { [[ -e $stamps/$1 && $(<"$stamps/$1") == "$2" ]]; }

packages_done() { done_before packages "$packages_stamp" && "$venv/bin/python" -c '' 2>/dev/null; }
# One that was found outside may have left PATH since.
nextflow_done() {
    done_before nextflow "$nextflow_stamp" && command -v "$(<"$stamps/nextflow.path")" >/dev/null &&
        PATH=$venv/bin:$PATH type -P nextflow >/dev/null
}

packages_stamp=$(stamp_of $lock setup/install.sh)
nextflow_stamp=$(stamp_of setup/pom.xml setup/nextflow setup/install.sh)
if [[ -e $stamps/place && $(<"$stamps/place") != "$PWD" ]]; then
    say "this folder has moved, and an environment cannot: making it anew"
    rm -rf $venv
fi
if packages_done && nextflow_done && command -v "$(java_command)" >/dev/null; then
    exit 0
fi

python=$(find_python)
nextflow=$(nextflow_on_path)
check_machine
make_venv
mkdir -p "$stamps"
echo "$PWD" >"$stamps/place"
if ! packages_done; then
    install_packages
    echo "$packages_stamp" >"$stamps/packages"
fi
if ! nextflow_done; then
    if [[ -n $nextflow ]]; then
        say "using $nextflow"
        # Links and jars of an earlier set-up would come first on PATH.
        rm -rf "$venv/bin/nextflow" "$venv/share/nextflow"
        echo "$nextflow" >"$stamps/nextflow.path"
    else
        install_nextflow
        echo "$venv/bin/nextflow" >"$stamps/nextflow.path"
    fi
    echo "$nextflow_stamp" >"$stamps/nextflow"
fi
say "ready: . $venv/bin/activate"
