# shellcheck shell=bash
# One line for each phase of a long job, with its time and progress; what its commands print goes to a log.
# To be sourced. `QF_LOG` names the log; `QF_VERBOSE=1` shows everything on the terminal too.
#
#   phase LABEL [COMMAND...]   runs the command; where it fails, shows the end of its output and fails likewise
#
# On a terminal the line counts seconds, megabytes of the folder `phase_folder`, if that is set, and units of
# work that a line such as `Building [==> ] 12/345` reports. Elsewhere a phase prints its line once it is done.

exec 3>&1 4>&2 # for functions that print a result, and for phases: the user's stdout and stderr

phase() { # LABEL COMMAND...
    local label=$1 started=$SECONDS output status=0 shown=0
    shift
    if [ "${QF_VERBOSE:-0}" = 1 ]; then
        printf '%s\n' "$label" >&3
        "$@" >&3 2>&4
        return
    fi
    output=$(mktemp)
    "$@" >"$output" 2>&1 3>&1 4>&2 &
    local pid=$!
    # Ctrl-C reaches the command as well.
    if [ -t 3 ]; then
        while kill -0 "$pid" 2>/dev/null; do
            printf '\r%s: %s\033[K' "$label" "$(phase_progress "$output" $((SECONDS - started)))" >&3
            shown=1
            sleep 0.5
        done
    fi
    wait "$pid" || status=$?
    if [ -n "${QF_LOG:-}" ]; then
        { printf '== %s (%s)\n' "$label" "$(date '+%F %T')" && tr '\r' '\n' <"$output"; } >>"$QF_LOG" 2>/dev/null || true
    fi
    if [ $shown = 1 ]; then printf '\r\033[K' >&3; fi
    if [ $status = 0 ]; then
        printf '%s: %s\n' "$label" "$(phase_time $((SECONDS - started)))" >&3
    else
        # What the command says itself is all there is to say: its own error lines, or else its last ones.
        { grep -aE '^(setup|demo): error: ' "$output" \
            || { printf '%s failed:\n' "$label" && tr '\r' '\n' <"$output" | grep -av '^ *$' | tail -n "${phase_tail:-20}"; }; } >&4
        if [ -n "${QF_LOG:-}" ]; then printf 'the whole output is in %s\n' "$QF_LOG" >&4; fi
    fi
    rm -f "$output"
    return $status
}

phase_time() { # SECONDS
    if [ "$1" -ge 60 ]; then printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}

phase_progress() { # OUTPUT SECONDS
    local words units
    words=$(phase_time "$2")
    if [ -n "${phase_folder:-}" ] && [ -d "${phase_folder}" ]; then
        words+=", $(du -sm "$phase_folder" 2>/dev/null | cut -f1) MB"
    fi
    units=$(tail -c 2000 "$1" | tr '\r' '\n' | grep -aoE '\] +[0-9]+/[0-9]+' | tail -n1 | tr -d '] ')
    printf '%s' "$words${units:+, $units}"
}
