#!/usr/bin/env bash
# Changes the code in small ways (mutants), one at a time, and runs the tests: a mutant that no test notices shows what
# is not tested. Needs cargo-mutants (cargo install --locked cargo-mutants) and set-up (scripts/setup.sh).
#
#   scripts/mutants.sh [--each N] FILE...           mutants of these files, or of all files of a folder
#   scripts/mutants.sh [--each N] --since COMMIT    those of the lines that changed since COMMIT
#   scripts/mutants.sh --again                      those that were missed the last time
#   scripts/mutants.sh --list ...                   names of these mutants
#
# --each N takes at most N mutants of a file, evenly spread. Files are changed where they are and put back, so commit
# first. The unit tests of the mutant's own module run first; what they miss goes through all unit tests of its crate and
# the integration tests that use it (not with --quick). .cargo/mutants.toml says what is not tried, and why.
# Results: target/mutants/missed.txt, caught.txt, timeout.txt, unviable.txt (does not compile). Exit status 2: some were missed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly OUT=target/mutants
# Seconds for the tests of one mutant that may loop for ever; the second round has four times as many.
readonly PATIENCE=${QF_MUTANTS_PATIENCE:-60}
# Kibibytes of address space for it: it may allocate for ever, too.
readonly MEMORY=$((16 << 20))

say() { printf 'mutants: %s\n' "$*"; }
die() { printf 'mutants: error: %s\n' "$*" >&2; exit 1; }

package_of() { # FILE
    case "$1" in
        pipeline/codecs/*) echo qf-codecs ;;
        pipeline/*) echo qf-pipeline ;;
        model/config/*) echo qf-config ;;
        model/*) echo qf-model ;;
        *) die "$1: mutants are made of the files below pipeline and model" ;;
    esac
}

# The module at the top of the crate, whose unit tests run first.
module_of() { # FILE
    local path=${1##*/src/}
    path=${path%%/*}
    echo "${path%.rs}"
}

# Names, one a line, of the mutants that the arguments of cargo-mutants select; of each file at most $each, evenly spread,
# and those that leave a field out, which cargo-mutants 27 does not choose by name.
names() { # ARGUMENT...
    cargo mutants --list --colors never "$@" | awk -F: -v each="$each" '
        / delete field / { print; next }
        { line[++total] = $0; file[total] = $1; count[$1]++ }
        END {
            for (i = 1; i <= total; i++) {
                n = count[file[i]]
                at = seen[file[i]]++
                if (!each || n <= each || int((at + 1) * each / n) > int(at * each / n)) print line[i]
            }
        }'
}

# Demands that these tests pass, then runs them on the mutants that a file names, and adds the results to those in $OUT.
# TESTS are arguments of cargo test, given to its build, too, so that nothing else is built.
round() { # PATIENCE NAMES 'PACKAGES' 'TESTS' FILTER...
    local patience=$1 list=$2 status=0 kind file word options=() packages=() tests=()
    for word in $3; do packages+=(--package "$word") options+=(--test-package "$word"); done
    for word in $4; do tests+=("$word") options+=("--cargo-arg=$word"); done
    shift 4
    while read -r file; do options+=(--file "$file"); done < <(cut -d: -f1 "$list" | sort -u)
    cargo test --quiet "${packages[@]}" "${tests[@]}" -- "$@" >$OUT/unchanged.log 2>&1 \
        || { tail -n 40 $OUT/unchanged.log >&2; die "these tests fail on the unchanged code"; }
    {
        if [ -e .cargo/mutants.toml ]; then cat .cargo/mutants.toml; fi
        echo 'examine_re = ['
        # The characters that mean something in a regular expression.
        sed -e 's/[].*+?()|[{}^$\\]/\\&/g' -e "s/.*/'''^&\$''',/" "$list"
        echo ']'
    } >$OUT/round.toml
    (
        ulimit -v "$MEMORY"
        cargo mutants --in-place --config $OUT/round.toml --output $OUT --baseline skip --timeout "$patience" \
            --no-shuffle --colors never "${options[@]}" -- -- "$@"
    ) >$OUT/round.log 2>&1 || status=$?
    # 2: missed, 3: timed out.
    [[ $status =~ ^[023]$ ]] || { tail -n 20 $OUT/round.log >&2; die "cargo mutants ended with status $status"; }
    for kind in missed caught timeout unviable; do
        grep -Fxf "$list" "$OUT/mutants.out/$kind.txt" >>"$OUT/$kind.txt" || true
    done
}

# Tests have small tensors: more threads for each would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# The module's own unit tests, and for parts of the model or of a batch those of the whole. Code that is not
# optimised compiles sooner, and these tests take a second.
first_round() { # PACKAGE MODULE NAMES
    (
        export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=none
        case "$1 $2" in
            'qf-pipeline batch') round "$PATIENCE" "$3" "$1" --lib "$2::" loader::tests ;;
            'qf-model layers' | 'qf-model loss' | 'qf-model qformer' | 'qf-model vision')
                round "$PATIENCE" "$3" "$1" --lib "$2::" blip2:: generate::
                ;;
            *) round "$PATIENCE" "$3" "$1" --lib "$2::" ;;
        esac
    )
}

# All tests of the package, and those of others that use it.
second_round() { # PACKAGE NAMES
    local uses='--lib --test=pil --test=pil_formats --test=fused_decode --test=allocations' patience=$((4 * PATIENCE))
    case "$1" in
        qf-codecs) round $patience "$2" 'qf-codecs qf-pipeline' "$uses" ;;
        qf-pipeline)
            if grep -qE '^pipeline/src/(remote|source)/' "$2"; then uses='--lib --test=*'; fi
            round $patience "$2" qf-pipeline "$uses"
            ;;
        qf-model)
            round $patience "$2" qf-model --lib
            if missed_of "$2" $OUT/third.txt; then round $patience $OUT/third.txt qf-tests --test=all golden::; fi
            ;;
        *) round $patience "$2" "$1" --lib ;;
    esac
}

# Takes those missed of the mutants that a file names out of the results, and writes their names to another.
missed_of() { # NAMES TO
    grep -Fxf "$1" $OUT/missed.txt >"$2" || return 1
    grep -vFxf "$2" $OUT/missed.txt >$OUT/kept.txt || true
    mv $OUT/kept.txt $OUT/missed.txt
}

# A line for each module: mutants tried, and what became of them.
report() {
    local kind
    for kind in caught timeout missed unviable; do sed "s/^/$kind /" "$OUT/$kind.txt"; done | awk '
        {
            split($2, path, ":")
            crate = path[1]; sub(/\/src\/.*/, "", crate)
            module = path[1]; sub(/.*\/src\//, "", module); sub(/(\/|\.rs).*/, "", module)
            row = crate " " module
            n[row, $1]++; n["all", $1]++; rows[row]
        }
        function line(name, row, tried) {
            tried = n[row, "caught"] + n[row, "timeout"] + n[row, "missed"]
            return sprintf("%-28s %6d %7d %8d %7d %9d %6.1f %%", name, tried, n[row, "caught"], n[row, "timeout"], n[row, "missed"],
                n[row, "unviable"], tried ? 100 * (tried - n[row, "missed"]) / tried : 0)
        }
        END {
            printf "%-28s %6s %7s %8s %7s %9s %8s\n", "module", "tried", "caught", "timeout", "missed", "unviable", "noticed"
            for (row in rows) print line(row, row) | "sort"
            close("sort")
            print line("all", "all")
        }'
}

each=0 list_only='' since='' once_more='' quick=''
while [ $# -gt 0 ]; do
    case "$1" in
        --each)
            [[ "${2-}" =~ ^[1-9][0-9]*$ ]] || die "--each takes a number"
            each=$2
            shift 2
            ;;
        --since)
            git rev-parse --quiet --verify "${2-}^{commit}" >/dev/null || die "--since takes a commit"
            since=$2
            shift 2
            ;;
        --list) list_only=1; shift ;;
        --again) once_more=1; shift ;;
        --quick) quick=1; shift ;;
        --help | -h) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
        -*) die "no option $1; there are --each N, --since COMMIT, --again, --quick and --list" ;;
        *) break ;;
    esac
done
cargo mutants --version >/dev/null 2>&1 || die "no cargo-mutants; install it with: cargo install --locked cargo-mutants"
mkdir -p $OUT
selection=()
if [ -n "$once_more" ]; then
    [ -s $OUT/missed.txt ] || { say "none was missed the last time"; exit; }
    [ "$#$since" = 0 ] || die "--again takes no files, and no --since"
    sort -u $OUT/missed.txt >$OUT/last.txt
    while read -r file; do selection+=(--file "$file"); done < <(cut -d: -f1 $OUT/last.txt | sort -u)
elif [ -n "$since" ]; then
    [ $# = 0 ] || die "give files or --since, not both"
    git diff "$since" -- 'pipeline/*.rs' 'model/*.rs' >$OUT/changed.diff
    [ -s $OUT/changed.diff ] || { say "nothing below pipeline and model changed since $since"; exit; }
    selection=(--in-diff "$OUT/changed.diff")
else
    [ $# -gt 0 ] || die "name files, or --since COMMIT"
    for file in "$@"; do
        [ -e "$file" ] || die "no file $file"
        package_of "$file/" >/dev/null
        if [ -d "$file" ]; then selection+=(--file "${file%/}/**/*.rs"); else selection+=(--file "$file"); fi
    done
fi
names "${selection[@]}" >$OUT/names.txt
if [ -n "$once_more" ]; then
    names "${selection[@]}" | sort -u | comm -12 - $OUT/last.txt >$OUT/names.txt
    gone=$(comm -13 $OUT/names.txt $OUT/last.txt | wc -l)
    [ "$gone" = 0 ] || say "$gone of the last time are no longer there: their lines have changed"
fi
[ -s $OUT/names.txt ] || { say "no mutant there"; exit; }
if [ -n "$list_only" ]; then cat $OUT/names.txt; exit; fi

git diff --quiet HEAD -- pipeline model || die "files below pipeline or model differ from the last commit; commit them first"
# What is killed half-way is put back.
trap 'git checkout --quiet -- pipeline model; git clean -fdq -- ":(glob)**/proptest-regressions/**"' EXIT
trap 'exit 130' INT TERM
for kind in missed caught timeout unviable; do : >$OUT/$kind.txt; done
begun=$SECONDS
say "$(wc -l <$OUT/names.txt) mutants"
while read -r package; do
    while IFS= read -r name; do
        if [ "$(package_of "$name")" = "$package" ]; then printf '%s\t%s\n' "$(module_of "${name%%:*}")" "$name"; fi
    done <$OUT/names.txt >$OUT/package.txt
    while read -r module; do
        awk -F '\t' -v module="$module" '$1 == module { print $2 }' $OUT/package.txt >$OUT/first.txt
        say "$package, $module: $(wc -l <$OUT/first.txt) mutants"
        first_round "$package" "$module" $OUT/first.txt
    done < <(cut -f1 $OUT/package.txt | sort -u)
    cut -f2 $OUT/package.txt >$OUT/tried.txt
    if [ -z "$quick" ] && missed_of $OUT/tried.txt $OUT/second.txt; then
        say "$package: $(wc -l <$OUT/second.txt) of them again, with more tests"
        second_round "$package" $OUT/second.txt
    fi
done < <(cut -d: -f1 $OUT/names.txt | while read -r file; do package_of "$file"; done | sort -u)
report
took=$((SECONDS - begun))
say "$((took / 60)) min $((took % 60)) s; missed: $OUT/missed.txt"
[ ! -s $OUT/missed.txt ] || exit 2
