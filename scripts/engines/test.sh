#!/usr/bin/env bash
# Runs the examples of Ray, Dask and Spark on rendered scenes, and compares their samples with those of one
# run: make test-engines. Spark is left out, by name, where there is no Java.
#
# Usage: scripts/engines/test.sh QFDATA CACHE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
qfdata=$(realpath "$1") cache=$2
mkdir -p "$cache"
python=$cache/bin/python
if [ ! -e "$cache/complete" ] || ! cmp -s "$here/requirements.txt" "$cache/complete"; then
    echo "engines: installing $(grep -v '^#' "$here/requirements.txt" | tr '\n' ' ')"
    python3 -m venv --clear "$cache"
    "$python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$cache/complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH=$(dirname "$qfdata"):$PATH
export PATH PYSPARK_PYTHON=$python RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
cd "$work"
qfdata synth --out scenes --count 90 --size 64 >/dev/null
qfdata shard scenes --out one/s --max-count 10 --quiet
samples() { # SHARDS...: name and checksum of every member, in order
    for shard in "$@"; do
        tar -xf "$shard" --to-command 'printf "%s %s\n" "$TAR_FILENAME" "$(sha256sum | cut -d" " -f1)"'
    done
}
samples one/*.tar >expected.txt
failed=0
for engine in ray dask spark; do
    if [ $engine = spark ] && ! command -v java >/dev/null; then
        echo "engines: spark was not tried: there is no java; install a Java runtime (17 or later)"
        continue
    fi
    qfdata plan scenes --out "$engine/s" --max-count 10 --parts 4 --plan "$engine.json" >/dev/null
    qfdata shard --plan "$engine.json" --part 2 --quiet # what is complete is not made again
    before=$(stat -c %Y.%i "$engine"/s-00002-*.tar)
    if "$python" "$here/${engine}_parts.py" "$engine.json" >"$engine.log" 2>&1 \
        && samples "$engine"/*.tar | cmp -s - expected.txt \
        && [ "$before" = "$(stat -c %Y.%i "$engine"/s-00002-*.tar)" ] \
        && [ -e "$engine/s.tar_stats.json" ]; then
        echo "engines: $engine: 4 parts, the samples of one run"
    else
        echo "engines: $engine failed:"
        tail -n 30 "$engine.log"
        failed=1
    fi
done
exit $failed
