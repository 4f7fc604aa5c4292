#!/usr/bin/env bash
# Runs the loader's hand-written synchronisation (reorder buffer, queues, rows of batches, decode memory) under many
# interleavings of its threads, with the shuttle checker: what deadlocks, loses a wake-up or mixes rows in one of them fails.
# Needs set-up (scripts/setup.sh).
#
#   scripts/schedules.sh [COUNT]   interleavings a test (default: 100000)
set -euo pipefail
cd "$(dirname "$0")/.."

QF_SCHEDULES=${1:-100000} cargo test --locked --package qf-pipeline --features shuttle --lib schedules
