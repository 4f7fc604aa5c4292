//! Does this machine compute what it should? One check for each thing that a training run relies on.
//!
//! ```text
//! run ──▶ check after check, each on a thread of its own with a time limit ──▶ CheckReport
//!   machine   libtorch, CUDA, driver, memory           state   snapshot, checkpoint, restore
//!   step      losses, outputs, every gradient          group   all_reduce, all_gather, Reducer
//!   train     AdamW, five steps                        rates   copies to the device, products
//!   upload    loader, page-locked memory, pixels       golden  the numbers of the reference
//!   runs      the whole loop, CUDA graphs
//! ```
//!
//! Steps on the device are compared with `reference`: the same network on the CPU in 64 bits with
//! every row computed, which takes libtorch's plain operations instead of the fused ones.

mod check;
mod compare;
mod golden;
mod group;
mod machine;
mod network;
mod rates;
mod reference;
mod runs;
mod state;
mod step;
mod train;
mod upload;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{sync_channel, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Map;
use tch::Device;

use qf_config::model::Precision;

use crate::context::{choose_kernels, Kernels};
use check::{Bench, NotOk, ADVICE};
pub use check::{CheckReport, Fault, Outcome};

/// Time for one check. Each takes a second or two; a GPU whose first kernels are compiled, some more.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What is checked.
#[derive(Clone, Debug)]
pub struct SelfCheck {
    /// An opened device.
    pub device: Device,
    /// What runs on it train in.
    pub precision: Precision,
    /// A folder with `golden_a.json` and `golden_traj.json` and their tensors, to compare with the
    /// numbers of the reference.
    pub golden: Option<PathBuf>,
}

type Check = fn(&mut Bench) -> Result<(), NotOk>;

/// All checks, in the order in which they are made.
const CHECKS: [(&str, Check); 14] = [
    ("libraries", machine::libraries),
    ("step in f32", step::in_f32),
    ("step in bf16", step::in_bf16),
    ("AdamW", train::adamw),
    ("training in f32", train::in_f32),
    ("training in bf16", train::in_bf16),
    ("reference", golden::reference),
    ("upload", upload::bits),
    ("checkpoint", state::restored),
    ("process group", group::of_one),
    ("run in f32", runs::in_f32),
    ("run in bf16", runs::in_bf16),
    ("copy rate", rates::copies),
    ("product rate", rates::products),
];

/// Makes all checks, whatever becomes of each, and hands their reports to `on_report` one by one. A
/// check that panics or does not end within a minute has failed.
///
/// TF32 is off from here on, for the whole process.
pub fn run(settings: &SelfCheck, on_report: &mut dyn FnMut(&CheckReport)) -> Vec<CheckReport> {
    let exact = choose_kernels(Kernels::default());
    let mut reports = Vec::new();
    for (name, check) in CHECKS {
        let report = match &exact {
            Ok(()) => make(name, check, settings, TIME_LIMIT),
            Err(error) => CheckReport {
                name,
                outcome: Outcome::Failed(Fault {
                    what: "choosing kernels without TF32".into(),
                    got: error.to_string(),
                    expected: "no error".into(),
                    advice: ADVICE.into(),
                }),
                figures: Map::new(),
                seconds: 0.0,
            },
        };
        on_report(&report);
        reports.push(report);
    }
    reports
}

/// Makes one check on a thread of its own: what it sets for its thread, or breaks, is gone with it.
fn make(name: &'static str, check: Check, settings: &SelfCheck, limit: Duration) -> CheckReport {
    let started = Instant::now();
    let mut bench = Bench {
        device: settings.device,
        precision: settings.precision,
        golden: settings.golden.clone(),
        figures: Map::new(),
    };
    let (sender, receiver) = sync_channel(1);
    let spawned = std::thread::Builder::new()
        .name("selfcheck".into())
        .spawn(move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| check(&mut bench)));
            // Nobody listens where the time is over.
            let _ = sender.send((result, bench.figures));
        });
    let ended = spawned.map_err(|error| error.to_string()).and_then(|_| {
        receiver.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                format!("no answer within {:.1} s", limit.as_secs_f64())
            }
            RecvTimeoutError::Disconnected => "its thread died".into(),
        })
    });
    let broken = |got: String| {
        Outcome::Failed(Fault {
            what: "the check".into(),
            got,
            expected: "an end".into(),
            advice: ADVICE.into(),
        })
    };
    let (outcome, figures) = match ended {
        Ok((Ok(Ok(())), figures)) => (Outcome::Ok, figures),
        Ok((Ok(Err(NotOk::Skipped(reason))), figures)) => (Outcome::Skipped { reason }, figures),
        Ok((Ok(Err(NotOk::Fault(fault))), figures)) => (Outcome::Failed(fault), figures),
        Ok((Err(panic), figures)) => (broken(format!("a panic ({})", words(&*panic))), figures),
        Err(message) => (broken(message), Map::new()),
    };
    CheckReport {
        name,
        outcome,
        figures,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}
