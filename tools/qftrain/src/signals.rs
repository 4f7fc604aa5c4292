//! Signals that end a run in order.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The first signal saves and ends the run, a second one ends the process. A hang-up that the caller has
/// turned off, as `nohup` does, stays off.
pub(crate) fn catch(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let hang_up = (!ignores_hang_up()).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hang_up) {
        flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .with_context(|| format!("cannot catch signal {signal}"))?;
    }
    Ok(())
}

/// Whether this process was started with hang-ups turned off.
pub(crate) fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status).is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0)
}

/// The signals that are ignored, a bit each, of /proc/PID/status.
fn ignored(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_turned_off_is_seen() {
        assert_eq!(
            ignored("SigBlk:\t00\nSigIgn:\t0000000000001001\n"),
            Some(0x1001)
        );
        assert_eq!(ignored("SigBlk:\t00\n"), None);
    }
}
