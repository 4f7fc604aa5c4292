#!/usr/bin/env bash
# Runs tests of the crates with `unsafe` code or C++ under valgrind's memcheck. Needs valgrind and set-up
# (scripts/setup.sh). It is 30 to 100 times slower than the tests.
#
#   scripts/valgrind.sh [FILTER...]         tests of qf-codecs whose names hold a filter: decoders, inverse transforms,
#                                           resampling, in Rust and C (default: a list that takes minutes)
#   scripts/valgrind.sh --model [FILTER...] the same of qf-model: the C++ shim, host memory, tensor files
#                                           (default: a list that takes a quarter of an hour)
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind: error: no valgrind; install it with: apt-get install valgrind" >&2; exit 1; }
package=qf-codecs filters=(rgb_is_left huffman inverse webp normalise planes)
# Exit status 9 tells a memory error from a test that failed.
runner="valgrind --quiet --error-exitcode=9"
leaks="--errors-for-leak-kinds=definite --show-leak-kinds=definite --leak-check=full"
if [ "${1-}" = --model ]; then
    shift
    package=qf-model filters=(ops::tests::attention ops::tests::dropout ops::tests::fused ops::tests::indices host:: tensor_file:: checkpoint::)
    # What libtorch keeps for the life of the process is no leak of ours, and its optimised code compares absent
    # values before it looks whether they are there.
    leaks="--leak-check=no --suppressions=$PWD/scripts/valgrind.supp"
    # Valgrind knows no AVX-512.
    export ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1
fi
if [ $# -gt 0 ]; then filters=("$@"); fi
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$runner $leaks"
for filter in "${filters[@]}"; do
    cargo test --locked --package "$package" --lib "$filter" -- --test-threads 1
done
