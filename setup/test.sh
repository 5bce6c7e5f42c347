#!/usr/bin/env bash
# Runs every check in the active environment, goes on after a failure, and ends with what passed and what failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export NXF_ANSI_LOG=false NXF_DISABLE_CHECK_LATEST=true
# Two test processes share the machine: one thread each.
export OMP_NUM_THREADS=1

passed=()
failed=()
check() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then passed+=("$name"); else failed+=("$name"); fi
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

# Reports, caches and logs of a run that only parses stay out of the checkout; what it prints matters when it fails.
with_parser() {
    local parser=$1
    shift
    (cd "$scratch" && NXF_SYNTAX_PARSER=$parser NXF_WORK=$scratch/work nextflow -log "$scratch/nextflow.log" "$@") \
        >"$scratch/output" 2>&1 && return
    cat "$scratch/output"
    return 1
}

nextflow_sources=()
for name in main.nf nextflow.config functions workflows subworkflows modules conf; do
    [[ -e $name ]] && nextflow_sources+=("$name")
done

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "nextflow lint" nextflow -log "$scratch/lint.log" lint "${nextflow_sources[@]}"
for parser in v1 v2; do
    check "nextflow config, parser $parser" with_parser $parser -q config "$root" -profile test -flat
    check "nextflow preview, parser $parser" with_parser $parser -q run "$root" -profile test -preview
done
check "pytest" python -m pytest -n 2 --dist worksteal
if command -v nf-test >/dev/null; then
    check "nf-test" nf-test test
else
    printf '\n== nf-test is not on PATH: its files were not run\n'
fi

printf '\n'
printf 'failed: %s\n' "${failed[@]+"${failed[@]}"}" | sed '/: $/d'
printf 'checks: %d passed, %d failed\n' "${#passed[@]}" "${#failed[@]}"
[[ ${#failed[@]} -eq 0 ]]
