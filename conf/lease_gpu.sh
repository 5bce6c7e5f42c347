# shellcheck shell=bash
# Sourced by a task's wrapper: waits until one of the GPUs named is free, and sets CUDA_VISIBLE_DEVICES to it.
#
#     . lease_gpu.sh 0,1 1      # GPUs of this machine; how many tasks may share one
#
# A lease is a lock on an open file. All children inherit the descriptor, so the kernel keeps the lease as long as any
# process of the task lives, and frees it however the last one ends. Files left behind say nothing. They lie in /tmp and
# not in TMPDIR, so that all runs of all users of a machine meet.

lease_folder=${VOXELMILL_LOCKS:-/tmp}

lease_fail() { # what was found, what to do
    printf '%-10s%s\n' error: "$1" do: "$2" >&2
    exit 69
}

# Sets lease_devices to the machine's cards and parts of cards (MIG): kind, the card's number, UUID. Empty without nvidia-smi.
lease_list() {
    local listing
    lease_devices=
    command -v nvidia-smi >/dev/null || return 0
    listing=$(timeout 60 nvidia-smi -L 2>&1) || lease_fail "nvidia-smi -L failed: ${listing:0:300}" "see that the driver works"
    lease_devices=$(awk '
        { uuid = match($0, /UUID: [^)]+/) ? substr($0, RSTART + 6, RLENGTH - 6) : "" }
        /^GPU / { number = $2 + 0; print "card", number, uuid }
        /^ +MIG / { print "part", number, uuid }' <<<"$listing")
}

# Sets lease_uuid to the one name of a device that all runs use: '0' and 'GPU-1a2b' may be the same card.
lease_name() { # number, UUID or the beginning of a UUID
    local found parts
    lease_uuid=$1
    command -v nvidia-smi >/dev/null || return 0
    found=$(awk -v id="$1" '$1 == "card" && $2 == id || index($3, id) == 1' <<<"$lease_devices")
    [[ -n $found && $found != *$'\n'* ]] ||
        lease_fail "not one GPU of this machine is meant by '$1'" "name GPUs as nvidia-smi -L does, in --gpu_ids"
    lease_uuid=${found##* }
    parts=$(awk -v card="${found% *}" '"card " $2 == card && $1 == "part" { print $3 }' <<<"$lease_devices")
    [[ -z $parts ]] || lease_fail "GPU $1 is divided into MIG devices" "name these in --gpu_ids: ${parts//$'\n'/,}"
}

# Sets lease_path to a lock file that every user may open.
lease_file() { # name of what it stands for
    lease_path=$lease_folder/voxelmill-gpu-${1//\//_}.lock
    # Where /tmp is protected, nobody may open another user's file for writing if that could create it.
    [[ -e $lease_path ]] || (umask 0 && : >>"$lease_path") 2>/dev/null || true
    [[ -f $lease_path && ! -L $lease_path && -r $lease_path ]] ||
        lease_fail "the lock file $lease_path cannot be made or read" "make the folder writable, or set VOXELMILL_LOCKS to one for all users"
}

# Sets lease_descriptor, open on a locked file; fails if another holds it.
lease_lock() { # -x alone or -s with others, path
    local status=0
    exec {lease_descriptor}<"$2" || return
    flock "$1" -n "$lease_descriptor" || status=$?
    [[ $status -le 1 ]] || lease_fail "flock failed in $lease_folder" "set VOXELMILL_LOCKS to a folder on a local disk, for all users"
    # A lock on a file that somebody removed in the meantime keeps nobody out.
    [[ $status -eq 0 && /proc/self/fd/$lease_descriptor -ef $2 ]] && return
    exec {lease_descriptor}<&-
    return 1
}

# Whether the last holder's container is still there: docker's hang on its daemon, and outlive a client that was killed.
lease_haunted() { # lock files
    local path box
    for path; do
        [[ -f $path ]] || continue
        read -r _ _ box _ <"$path" || continue
        [[ $box =~ ^nxf-[A-Za-z0-9]+$ ]] || continue
        [[ -z $(timeout 20 docker ps --quiet --filter "name=$box" 2>/dev/null) ]] || return 0
    done
    return 1
}

# Takes a place on a card. A task that wants a card alone excludes those that share it, of other runs as well.
lease_place() { # UUID, place, how many may share
    local card place=$2
    lease_file "$1"
    card=$lease_path
    if [[ $3 -eq 1 ]]; then
        lease_lock -x "$card" || return
        ! lease_haunted "$card" "${card%.lock}".*.lock && lease_path=$card && return
        exec {lease_descriptor}<&-
        return 1
    fi
    local shared
    lease_file "$1.$place"
    lease_lock -s "$card" || return
    shared=$lease_descriptor
    if lease_lock -x "$lease_path"; then
        ! lease_haunted "$card" "$lease_path" && return
        exec {lease_descriptor}<&-
    fi
    exec {shared}<&-
    return 1
}

# Takes the first free place, an empty card before a shared one.
lease_any() { # UUIDs, how many may share
    local place uuid
    for ((place = 0; place < $2; place++)); do
        for uuid in $1; do lease_place "$uuid" "$place" "$2" && lease_uuid=$uuid && return; done
    done
    return 1
}

# Who holds the cards, as far as they wrote it down.
lease_holders() { # UUIDs
    local uuid path pid user box folder
    for uuid in $1; do
        for path in "$lease_folder/voxelmill-gpu-${uuid//\//_}".lock "$lease_folder/voxelmill-gpu-${uuid//\//_}".*.lock; do
            [[ -f $path ]] || continue
            read -r pid user box folder <"$path" || continue
            [[ $pid =~ ^[0-9]+$ && -e /proc/$pid ]] || lease_haunted "$path" || continue
            printf '  %s: process %s of %s in %s, container %s\n' "$uuid" "$pid" "$user" "$folder" "$box" | tr -cd '[:print:]\n'
        done
    done
}

# The name of the task's container in docker, and '-' in other engines: their containers hold the descriptor themselves.
lease_box() {
    if [[ $(declare -f on_term) == *docker* ]]; then printf '%s' "${NXF_BOXID:--}"; else printf -- -; fi
}

# Waits as long as need be: another run's card comes free at some time, and an error would end this run.
lease_gpu() { # ids with commas, how many tasks may share one
    local id uuids=() traps parent since=$SECONDS next=0
    command -v flock >/dev/null || lease_fail "there is no flock on this machine" "install util-linux, or leave out -profile gpus"
    lease_list
    for id in ${1//,/ }; do lease_name "$id" && uuids+=("$lease_uuid"); done

    # The wrapper's own handlers end the task's processes, of which there are none yet.
    traps=$(trap -p TERM INT USR2)
    trap 'exit 143' TERM INT USR2
    parent=$(lease_parent)
    until lease_any "${uuids[*]}" "$2"; do
        # Nextflow is gone: nobody waits for this task any more.
        [[ $(lease_parent) == "$parent" ]] || exit 143
        if ((SECONDS - since >= next)); then
            printf 'GPU: waiting since %d s for one of %s; held:\n%s\n' $((SECONDS - since)) "$1" "$(lease_holders "${uuids[*]}")" >&2
            next=$((next + 600))
        fi
        sleep 0.5
    done
    trap - TERM INT USR2
    eval "$traps"

    # For those who wait. dd, because the shell opens no file of another user for writing in a protected /tmp.
    printf '%d %s %s %s\n' $$ "$(id -un 2>/dev/null || id -u)" "$(lease_box)" "$PWD" |
        dd of="$lease_path" conv=nocreat status=none 2>/dev/null || true
    # Files that look old are swept from /tmp.
    touch -c "$lease_folder/voxelmill-gpu-${lease_uuid//\//_}".*lock 2>/dev/null || true
    export CUDA_VISIBLE_DEVICES=$lease_uuid
    printf 'GPU: %s after %d s\n' "$lease_uuid" $((SECONDS - since)) >&2
}

lease_parent() { awk '/^PPid/ { print $2 }' "/proc/$$/status"; }

lease_gpu "$1" "$2"
