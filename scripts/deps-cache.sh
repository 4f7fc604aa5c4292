#!/usr/bin/env bash
# Shares the compiled dependencies (crates of the registry, never our own) between checkouts.
#
#   scripts/deps-cache.sh seed PROFILE   before the first build: fill target/PROFILE from the cache
#   scripts/deps-cache.sh save PROFILE   after a build: put what target/PROFILE has into the cache
#
# PROFILE is debug or release. Cargo names the artefacts of a registry crate by a hash of the crate,
# its features, the profile and the compiler, not of the place, so they fit any checkout; where one
# does not fit, cargo builds it again. Copies are real: no checkout can spoil another, or the cache.
# The cache holds a folder per set of crates (with features and profiles), compiler and libtorch; the
# $KEEP used last are kept. QF_DEPS_CACHE=0 turns all this off. Nothing here makes a build fail.
set -euo pipefail

readonly KEEP=3
readonly PARTS=(.fingerprint build deps)

[ "${QF_DEPS_CACHE:-1}" != 0 ] || exit 0
verb=${1:-} profile=${2:-}
case "$verb $profile" in
    'seed debug' | 'seed release' | 'save debug' | 'save release') ;;
    *) echo "usage: scripts/deps-cache.sh seed|save debug|release" >&2; exit 2 ;;
esac

part=
finish() {
    local status=$?
    if [ -n "$part" ]; then rm -rf "$part"; fi
    if [ $status != 0 ]; then echo "setup: warning: cannot $verb the cache of compiled dependencies; going on without" >&2; fi
    exit 0
}
trap finish EXIT

cd "$(dirname "$0")/.."
store=${QF_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/qformer}/deps
metadata=$(cargo metadata --no-deps --offline --format-version 1)
ask_metadata() { python3 -c "import json, sys; m = json.load(sys.stdin); $1" <<<"$metadata"; }
target=$(ask_metadata 'print(m["target_directory"])')/$profile
key=$(
    {
        awk 'BEGIN { RS = "" } /\nsource = / { print }' Cargo.lock # the registry's crates
        awk '/^\[/ { wanted = /^\[(profile|workspace\.dependencies)/ } wanted && !/^(#|$)/' Cargo.toml
        grep -v '^#' .cargo/config.toml
        rustc -vV
        cc --version | head -n1
        printf '%s\n' "${CARGO_HOME:-${HOME:-}}" "${RUSTFLAGS:-}" "${CARGO_ENCODED_RUSTFLAGS:-}"
    } | sha256sum | cut -c1-16
)
entry="$store/$key/$profile"
# Says under which key a target folder began, so that what older ones left behind is never saved.
marker="$target/.deps-cache-key"
mkdir -p "$store"

lock() { # -s|-x
    if command -v flock >/dev/null; then
        exec 9>"$store/lock"
        flock "$1" 9
    fi
}

# The files and folders of registry crates, relative to the profile's folder.
registry_artefacts() { # DIR
    local ours
    ours=$(ask_metadata '
names = {n for p in m["packages"] for n in [p["name"]] + [t["name"] for t in p["targets"]]}
print(*(n.replace("-", "_") for n in names))')
    # A name is [lib]CRATE-HASH[.EXTENSION]. It counts as ours with `lib` taken off or left on.
    (cd "$1" && find "${PARTS[@]}" -mindepth 1 -maxdepth 1) | awk -F/ -v ours="$ours" '
        BEGIN { split(ours, names, " "); for (i in names) skip[names[i]] }
        {
            name = $2
            if (!sub(/-[0-9a-f]+(\..*)?$/, "", name)) next
            gsub(/-/, "_", name)
            bare = name; sub(/^lib/, "", bare)
            if (!(name in skip) && !(bare in skip)) print
        }'
}

units() { (cd "$1/.fingerprint" && find . -mindepth 1 -maxdepth 1) | sort; } # DIR

copy() { # FROM TO, names on stdin
    mkdir -p "$2"
    (cd "$1" && tr '\n' '\0' | xargs -0 cp -a --reflink=auto --parents -t "$2")
}

seed() {
    [ ! -e "$target/.fingerprint" ] || return 0
    mkdir -p "$target"
    printf '%s\n' "$key" > "$marker"
    [ -d "$entry" ] || return 0
    echo "setup: taking the compiled dependencies of an earlier build from $entry"
    touch "$store/$key"
    part="$target/seed.$$.tmp"
    (cd "$entry" && find "${PARTS[@]}" -mindepth 1 -maxdepth 1) | copy "$entry" "$part"
    # .fingerprint last: with it cargo finds the rest.
    mv -T "$part/deps" "$target/deps"
    mv -T "$part/build" "$target/build"
    mv -T "$part/.fingerprint" "$target/.fingerprint"
}

save() {
    [ "$(cat "$marker" 2>/dev/null)" = "$key" ] || return 0
    part="$store/save.$$.tmp"
    registry_artefacts "$target" | copy "$target" "$part"
    if [ -d "$entry" ]; then
        # Only a larger set takes the place of what is there.
        [ -z "$(comm -23 <(units "$entry") <(units "$part"))" ] || return 0
        [ -n "$(comm -13 <(units "$entry") <(units "$part"))" ] || return 0
        rm -rf "$entry"
    fi
    mkdir -p "$store/$key"
    mv -T "$part" "$entry"
    touch "$store/$key"
    # shellcheck disable=SC2012 # the names are hashes
    (cd "$store" && ls -dt -- */ | tail -n "+$((KEEP + 1))" | xargs -r rm -rf)
}

case "$verb" in
    seed) lock -s; seed ;;
    save) lock -x; rm -rf "$store"/save.*.tmp; save ;;
esac
