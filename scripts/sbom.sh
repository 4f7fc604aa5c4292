#!/usr/bin/env bash
# Writes what the programs are made of, as SPDX 2.3: target/sbom/qf.spdx.json, with every crate that can be linked (on any
# platform, with any feature). Made at each release. Needs cargo-sbom (cargo install --locked cargo-sbom). libtorch is not a
# crate: its wheels and their SHA-256 are in scripts/wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo sbom --version >/dev/null 2>&1 || { echo "sbom: error: no cargo-sbom; install it with: cargo install --locked cargo-sbom" >&2; exit 1; }
mkdir -p target/sbom
cargo sbom --output-format spdx_json_2_3 >target/sbom/qf.spdx.json
echo "sbom: target/sbom/qf.spdx.json, $(grep -c '"SPDXID": "SPDXRef-Package' target/sbom/qf.spdx.json) packages"
