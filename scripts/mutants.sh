#!/usr/bin/env bash
# Changes the code in small ways, one at a time, and runs the tests: a change that no test notices shows what is not
# tested. Needs cargo-mutants (cargo install --locked cargo-mutants) and set-up (scripts/setup.sh).
#
#   scripts/mutants.sh FILE...               all mutants of these files, e.g. pipeline/src/order/epoch.rs
#   scripts/mutants.sh --changed [COMMIT]    those of what changed since COMMIT (default: HEAD~1)
#   scripts/mutants.sh --sample N FILE...    N of them, spread evenly
#
# The unit tests of the file's own crate run for each; a mutant takes as long as compiling that crate, and them.
# Results: target/mutants/mutants.out (caught.txt, missed.txt, timeout.txt).
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'mutants: error: %s\n' "$*" >&2; exit 1; }

cargo mutants --version >/dev/null 2>&1 || die "no cargo-mutants; install it with: cargo install --locked cargo-mutants"
# The copy that is changed lies elsewhere, and the tests look for their data beside it.
QF_SHARED=${QF_SHARED:-$(cd .. && pwd)/shared}
export QF_SHARED
options=(--output target/mutants --no-shuffle --minimum-test-timeout 60 --cargo-test-arg=--lib --colors never)
changed() { # COMMIT
    mkdir -p target/mutants
    git diff "$1" -- '*.rs' >target/mutants/changed.diff
    [ -s target/mutants/changed.diff ] || die "nothing in Rust changed since $1"
    cargo mutants "${options[@]}" --in-diff target/mutants/changed.diff
}

case "${1-}" in
    '') die "name files, or --changed [COMMIT]" ;;
    --changed) changed "${2:-HEAD~1}" ;;
    --sample)
        [[ "${2-}" =~ ^[1-9][0-9]*$ ]] || die "--sample takes a number"
        wanted=$2
        shift 2
        files=()
        for file in "$@"; do files+=(--file "$file"); done
        [ ${#files[@]} -gt 0 ] || die "--sample N takes files, too"
        all=$(cargo mutants --list "${files[@]}" | wc -l)
        [ "$all" -gt 0 ] || die "no mutant in $*"
        shards=$((all > wanted ? all / wanted : 1))
        cargo mutants "${options[@]}" "${files[@]}" --shard "0/$shards"
        ;;
    *)
        files=()
        for file in "$@"; do
            [ -e "$file" ] || die "no file $file"
            files+=(--file "$file")
        done
        cargo mutants "${options[@]}" "${files[@]}"
        ;;
esac
