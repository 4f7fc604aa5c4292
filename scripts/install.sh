#!/usr/bin/env bash
# `make install`, after `make build`: the programs, their completions and manual pages under a prefix.
#
#   scripts/install.sh PREFIX              installs
#   scripts/install.sh --uninstall PREFIX  removes what an installation there put down
#
#   BIN=dir   where the programs were built (default: target/release)
#
# qftrain records where its libtorch is (an rpath to the folder that set-up chose); it is not copied.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'install: error: %s\n' "$*" >&2; exit 1; }

uninstall=0
if [ "${1:-}" = --uninstall ]; then uninstall=1 && shift; fi
{ [ $# = 1 ] && [ -n "$1" ]; } || die "usage: scripts/install.sh [--uninstall] PREFIX"
prefix=$(realpath -m -- "$1")
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release}
libexec=$prefix/libexec/qformer
share=$prefix/share

if [ $uninstall = 1 ]; then
    rm -f "$prefix"/bin/{qfdata,qftrain} "$libexec/qftrain-torch" \
        "$share"/bash-completion/completions/{qfdata,qftrain} \
        "$share"/zsh/site-functions/_{qfdata,qftrain} \
        "$share"/fish/vendor_completions.d/{qfdata,qftrain}.fish \
        "$share"/man/man1/{qfdata,qftrain}{,-*}.1
    rmdir --ignore-fail-on-non-empty "$libexec" 2>/dev/null || true
    echo "install: removed qfdata and qftrain from $prefix"
    exit
fi

for program in qfdata qftrain qftrain-torch; do
    [ -x "$bin/$program" ] || die "$bin has no $program; run \`make install\`"
done
{ mkdir -p "$prefix/bin" 2>/dev/null && [ -w "$prefix/bin" ]; } \
    || die "cannot write to $prefix/bin; choose another folder: make install PREFIX=folder"
install -Dm755 "$bin/qfdata" "$prefix/bin/qfdata"
install -Dm755 "$bin/qftrain" "$prefix/bin/qftrain"
install -Dm755 "$bin/qftrain-torch" "$libexec/qftrain-torch"
mkdir -p "$share"/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d,man/man1}
for program in qfdata qftrain; do
    "$prefix/bin/$program" completions bash >"$share/bash-completion/completions/$program"
    "$prefix/bin/$program" completions zsh >"$share/zsh/site-functions/_$program"
    "$prefix/bin/$program" completions fish >"$share/fish/vendor_completions.d/$program.fish"
    "$prefix/bin/$program" man --out "$share/man/man1"
done

echo "install: qfdata and qftrain are in $prefix/bin; manual pages and completions in $share"
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) echo "install: $prefix/bin is not on the PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
cat <<'NEXT'
next:
  qfdata shard photos/ --out shards/photos        # NAME.jpg beside NAME.txt; `make demo` needs no photographs
  qftrain --shards 'shards/photos-*.tar'          # trains on them; `qftrain config` lists the presets
NEXT
