#!/usr/bin/env bash
# Writes docs/reference/configuration.md and docs/reference/command-line.md from the programs. Tests compare both.
#
# Usage: scripts/reference.sh FOLDER     with qfdata and qftrain in it
set -euo pipefail
bin=$(realpath "${1:?usage: scripts/reference.sh FOLDER}")
cd "$(dirname "$0")/.."

"$bin/qftrain" config reference >docs/reference/configuration.md
{
    cat <<'HEAD'
<!-- Written by `make reference` from the programs' own definitions. -->

# Command line

What `--help` says, on one page. Every command also takes `--help`; the programs take `--version`. Exit codes: 0 done, 1 failed, 2 wrong
usage; more of them are in the help of each program. `RUST_LOG=info` or `debug` shows more.

HEAD
    "$bin/qfdata" command-line-reference
    echo
    "$bin/qftrain" command-line-reference
} >docs/reference/command-line.md
