#!/usr/bin/env bash
# list-skipped.sh FILE: says which tests were skipped, and why, from the lines that they left in FILE.
set -euo pipefail

if [ ! -s "$1" ]; then
    printf '\ntests: none was skipped\n'
    exit 0
fi
lines=$(sort -u "$1")
printf '\ntests: %d skipped for want of data or hardware (CONTRIBUTING.md, Set-up):\n' "$(wc -l <<<"$lines")"
sed 's/^skipped: /  /' <<<"$lines"
