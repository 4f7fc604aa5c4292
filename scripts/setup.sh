#!/usr/bin/env bash
# Set-up: checks the system packages, puts libtorch 2.11.0 into the user cache (or uses the one the
# user points at) and writes .cargo/config.toml, so that plain `cargo build|test|run` work here.
#
#   LIBTORCH=DIR            use this libtorch (DIR/include, DIR/lib/libtorch_cpu.so), version 2.11
#   LIBTORCH_USE_PYTORCH=1  use the PyTorch 2.11 of the `python3` on the PATH
#   QF_CACHE=DIR            where downloads go (default: ${XDG_CACHE_HOME:-~/.cache}/qformer)
#   QF_CUDA=0|1             fetch the lean CPU set or the full CUDA set (default: 1 where an NVIDIA GPU is)
#   QF_NO_APT=1             never call apt; name the missing packages instead
#
# Usage: scripts/setup.sh [--with-test-venv]
set -euo pipefail

readonly TORCH_VERSION=2.11.0
# The cu13 libraries that libtorch_cpu.so itself needs; the versions cuda-toolkit 13.0.2 pins.
readonly CUDA_RUNTIME=nvidia-cuda-runtime==13.0.96
readonly CUDA_CUPTI=nvidia-cuda-cupti==13.0.85

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${QF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qformer}

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# --- system packages --------------------------------------------------------------------------
system_packages() {
    local missing=()
    command -v cc >/dev/null && command -v c++ >/dev/null && command -v make >/dev/null || missing+=(build-essential)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v python3 >/dev/null || missing+=(python3)
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then missing+=(python3-venv python3-pip); fi
    if [ ${#missing[@]} -gt 0 ]; then
        local install="apt-get install -y --no-install-recommends ${missing[*]}"
        if [ "${QF_NO_APT:-0}" != 1 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
            say "missing system packages: ${missing[*]}; running: $install"
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install
        elif [ "${QF_NO_APT:-0}" != 1 ] && command -v apt-get >/dev/null && command -v sudo >/dev/null && [ -t 0 ]; then
            say "missing system packages: ${missing[*]}; running: sudo $install"
            sudo apt-get update -qq && sudo $install
        else
            die "missing system packages; run: sudo $install   (then run this again)"
        fi
    fi
    command -v cargo >/dev/null || die "no cargo on the PATH; install Rust (https://rustup.rs), then run this again"
}

# --- libtorch ---------------------------------------------------------------------------------
check_torch_version() { # VERSION WHERE
    case "$1" in
        "$TORCH_VERSION"*) ;;
        *) die "$2 is version ${1:-unknown}; tch 0.24 needs libtorch $TORCH_VERSION (unset LIBTORCH and LIBTORCH_USE_PYTORCH to have it fetched)" ;;
    esac
}

# A folder as torch-sys expects it, made of links into an installed `torch` Python package. It holds
# no libtorch_cuda.so: binaries link the CPU library alone, and open the CUDA one at run time.
link_folder() { # TORCH_PACKAGE_DIR TARGET
    local torch=$1 target=$2
    rm -rf "$target.new" && mkdir -p "$target.new/lib"
    ln -s "$torch/include" "$target.new/include"
    for lib in libtorch_cpu.so libc10.so libgomp.so.1; do
        [ -e "$torch/lib/$lib" ] && ln -s "$torch/lib/$lib" "$target.new/lib/$lib"
    done
    printf 'INPUT(-ltorch_cpu)\n' > "$target.new/lib/libtorch.so"
    printf '%s\n' "$TORCH_VERSION" > "$target.new/build-version"
    rm -rf "$target" && mv "$target.new" "$target"
}

has_nvidia_gpu() { [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

fetch_libtorch() { # prints the folder for LIBTORCH on fd 3
    local kind=cpu
    if [ "${QF_CUDA:-}" = 1 ] || { [ -z "${QF_CUDA:-}" ] && has_nvidia_gpu; }; then kind=cuda; fi
    local home="$cache/libtorch-$TORCH_VERSION-$kind"
    if [ ! -e "$home/complete" ]; then
        [ "$(uname -sm)" = "Linux x86_64" ] || [ "$(uname -sm)" = "Linux aarch64" ] \
            || die "no wheel set for $(uname -sm); point LIBTORCH at a libtorch $TORCH_VERSION"
        say "fetching libtorch $TORCH_VERSION ($kind) from PyPI into $home"
        local work="$home.part.$$"
        rm -rf "$work" && mkdir -p "$work"
        trap 'rm -rf "$work"' EXIT
        python3 -m venv "$work/venv"
        local pip=("$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --target "$work/site")
        if [ $kind = cuda ]; then
            "${pip[@]}" "torch==$TORCH_VERSION" || die "pip could not install torch $TORCH_VERSION; see its message above"
        else
            "${pip[@]}" --no-deps "torch==$TORCH_VERSION" "$CUDA_RUNTIME" "$CUDA_CUPTI" \
                || die "pip could not install torch $TORCH_VERSION; see its message above"
            # The lean set: nothing on a machine without a GPU opens these 550 MB.
            rm -f "$work/site/torch/lib"/libtorch_cuda*.so "$work/site/torch/lib"/libtorch_nvshmem.so \
                  "$work/site/torch/lib"/libtorch_python.so
        fi
        rm -rf "$work/venv"
        touch "$work/complete"
        rm -rf "$home" && mv "$work" "$home"
        trap - EXIT
    fi
    local torch="$home/site/torch"
    [ -e "$home/libtorch/lib/libtorch_cpu.so" ] || link_folder "$torch" "$home/libtorch"
    printf '%s\n' "$home/libtorch" >&3
}

choose_libtorch() { # prints the folder for LIBTORCH on fd 3
    if [ -n "${LIBTORCH:-}" ]; then
        [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so"
        local version=
        [ -e "$LIBTORCH/build-version" ] && version=$(cat "$LIBTORCH/build-version")
        [ -n "$version" ] || version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$LIBTORCH/version.py" 2>/dev/null || true)
        check_torch_version "$version" "LIBTORCH=$LIBTORCH"
        say "using libtorch $version of LIBTORCH=$LIBTORCH"
        (cd "$LIBTORCH" && pwd) >&3
    elif [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
        local found
        found=$(python3 -c 'import torch, pathlib; print(torch.__version__); print(pathlib.Path(torch.__file__).parent)') \
            || die "LIBTORCH_USE_PYTORCH is set but python3 cannot import torch"
        check_torch_version "$(head -n1 <<<"$found")" "the PyTorch of $(command -v python3)"
        local torch
        torch=$(tail -n1 <<<"$found")
        local home="$cache/pytorch-$(printf '%s' "$torch" | cksum | cut -d' ' -f1)"
        mkdir -p "$cache" && link_folder "$torch" "$home"
        say "using PyTorch $(head -n1 <<<"$found") at $torch"
        printf '%s\n' "$home" >&3
    else
        fetch_libtorch
    fi
}

write_cargo_config() { # LIBTORCH
    mkdir -p "$root/.cargo"
    cat > "$root/.cargo/config.toml.new" <<CONFIG
# Written by \`make setup\`; not committed. An exported LIBTORCH wins over this one.
[env]
LIBTORCH = "$1"
CONFIG
    # Rewriting an unchanged file would make cargo rebuild for nothing.
    cmp -s "$root/.cargo/config.toml.new" "$root/.cargo/config.toml" 2>/dev/null \
        && rm "$root/.cargo/config.toml.new" \
        || mv "$root/.cargo/config.toml.new" "$root/.cargo/config.toml"
}

# --- the Python of the interoperability tests --------------------------------------------------
test_venv() {
    local requirements="$root/tests/requirements.txt"
    local venv="$cache/test-venv-$(cksum < "$requirements" | cut -d' ' -f1)"
    if [ ! -e "$venv/complete" ]; then
        say "installing the Python packages of tests/requirements.txt into $venv"
        rm -rf "$venv" && mkdir -p "$cache" && python3 -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" \
            || die "pip could not install tests/requirements.txt; see its message above"
        touch "$venv/complete"
    fi
    mkdir -p "$root/target" && printf '%s\n' "$venv/bin/python" > "$root/target/test-python"
}

system_packages
exec 3>&1
libtorch=$(exec 3>&1 >&2; choose_libtorch)
write_cargo_config "$libtorch"
[ "${1:-}" = --with-test-venv ] && test_venv
say "ready: libtorch in $libtorch"
