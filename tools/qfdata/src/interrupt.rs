//! Ctrl-C (and SIGTERM, SIGHUP): work stops at the next sample, unfinished files are removed.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::Context;
use qf_cli::output::InPart;
use qf_pipeline::stop::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// 128 + SIGINT, as shells report it.
const INTERRUPTED_EXIT_CODE: u8 = 130;

/// Some of the input could not be used.
const IN_PART_EXIT_CODE: u8 = 3;

/// The run was interrupted.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Whether the user has asked to stop. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals from now on; call it once. A second signal ends the process at once.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first signal finds the flag unset.
            let exit_code = i32::from(INTERRUPTED_EXIT_CODE);
            flag::register_conditional_shutdown(signal, exit_code, interrupt.0.clone())
                .and_then(|_| flag::register(signal, interrupt.0.clone()))
                .with_context(|| format!("cannot catch signal {signal}"))?;
        }
        Ok(interrupt)
    }

    /// Ends reads that wait once the user has asked to stop.
    pub(crate) fn stop(&self) -> Stop {
        Stop::within(self.0.clone())
    }

    /// Fails once the user has asked to stop.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        Ok(())
    }
}

/// Ends the process at the first signal, wherever it waits: for work that leaves nothing unfinished.
pub(crate) struct EndAtOnce(Arc<AtomicBool>);

impl EndAtOnce {
    /// Catches the signals from now on; call it once, and no [`Interrupt::install`].
    pub(crate) fn install() -> anyhow::Result<Self> {
        let ends = Arc::new(AtomicBool::new(true));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let exit_code = i32::from(INTERRUPTED_EXIT_CODE);
            flag::register_conditional_shutdown(signal, exit_code, ends.clone())
                .with_context(|| format!("cannot catch signal {signal}"))?;
        }
        Ok(EndAtOnce(ends))
    }

    /// Does what should not be left unfinished: a small file is written.
    pub(crate) fn finish<T>(self, work: impl FnOnce() -> T) -> T {
        self.0.store(false, Ordering::Relaxed);
        work()
    }
}

/// 130 if an interruption is at the root of the error, 3 if the work was done in part, else 1.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<InPart>() {
        ExitCode::from(IN_PART_EXIT_CODE)
    } else if error.root_cause().is::<Interrupted>() {
        ExitCode::from(INTERRUPTED_EXIT_CODE)
    } else {
        ExitCode::FAILURE
    }
}
