#!/usr/bin/env bash
# `make build`: both programs in target/release, on one line with its progress; cargo's output is in
# target/build.log (QF_VERBOSE=1 shows it).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/phase.sh
. scripts/phase.sh

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
QF_LOG=$target/build.log
: >"$QF_LOG"
# shellcheck disable=SC2034 # of phase.sh
phase_tail=40
# Cargo draws its bar, from which `phase` takes the counts, only if it is told to.
export CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100
phase "build: qfdata and qftrain in $target/release" cargo build --locked --release -p qfdata -p qftrain
