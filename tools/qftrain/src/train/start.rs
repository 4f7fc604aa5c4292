//! What rank 0 finds in the run folder, or puts there, and what of it all ranks get.

use std::path::PathBuf;

use anyhow::{bail, Context};
use qf_cli::journal;
use qf_cli::output::remark;
use qf_model::checkpoint::{self, Checkpoint, TrainState};
use qf_model::run_dir::{RunDir, RunLock};
use qf_model::train::WeightsConfig;
use qf_model::Ranks;
use qf_pipeline::atomic_file::NewFolders;
use qf_pipeline::trace::{Trace, TraceLimits};
use qftrain::resumption::check_changes;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::configuration::make_paths_absolute;
use crate::session::{create_tokenizer, saved_config, TokenizerFile};
use crate::weights::{adopt_tokenizer, StartWeights};

/// What rank 0 finds in the run folder, or puts there, and the others take over.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) run_dir: PathBuf,
    /// The checkpoint to go on from.
    pub(super) state: Option<TrainState>,
    /// None where there is nothing left to train.
    pub(super) tokenizer: Option<TokenizerFile>,
}

/// What only rank 0 has.
pub(super) struct FirstRank {
    pub(super) newest: Option<Checkpoint>,
    pub(super) weights: StartWeights,
    _claim: Claim,
}

/// Claims the run folder, finds the checkpoint to go on from or the weights to start from, and the
/// tokenizer: on rank 0, whose results the others take over.
pub(super) fn begin(
    plan: &mut Plan,
    allows_changes: bool,
    ranks: &dyn Ranks,
) -> anyhow::Result<(Start, Option<FirstRank>)> {
    if !ranks.is_first() {
        return Ok((share(None, ranks)?, None));
    }
    let claim = Claim::of(&plan.run_dir)?;
    journal::keep(&plan.run_dir.log())?;
    let (newest, weights, start) = prepare(plan, allows_changes)?;
    let first = FirstRank {
        newest,
        weights,
        _claim: claim,
    };
    Ok((share(Some(start), ranks)?, Some(first)))
}

/// The run folder, for as long as the run lasts.
struct Claim {
    run_dir: RunDir,
    _lock: RunLock,
    /// Dropped last: those that are empty go.
    folders: NewFolders,
}

impl Claim {
    fn of(run_dir: &RunDir) -> anyhow::Result<Claim> {
        let folders = NewFolders::create(run_dir.path()).with_context(|| {
            format!("cannot create the run folder {}", run_dir.path().display())
        })?;
        Ok(Claim {
            run_dir: run_dir.clone(),
            _lock: run_dir.lock()?,
            folders,
        })
    }
}

impl Drop for Claim {
    /// A new folder in which nothing was trained goes again.
    fn drop(&mut self) {
        if self.folders.is_new() {
            self.run_dir.remove_start();
        }
    }
}

/// Rank 0's part in a folder that it has claimed. A run that goes on may have other settings where
/// `allows_changes`.
fn prepare(
    plan: &mut Plan,
    allows_changes: bool,
) -> anyhow::Result<(Option<Checkpoint>, StartWeights, Start)> {
    let Plan {
        config,
        run_dir,
        resumes,
        shards,
        ..
    } = plan;
    if !*resumes && run_dir.holds_run()? {
        bail!(
            "{} already holds a run; add --resume to continue it, or take another --run-dir",
            run_dir.path().display()
        );
    }
    let newest = match resumes {
        true => checkpoint::newest(&run_dir.checkpoints())?,
        false => None,
    };
    if *resumes && newest.is_none() {
        remark(format_args!(
            "{} holds no checkpoint: the run starts from its beginning",
            run_dir.path().display()
        ));
    }
    make_paths_absolute(config)?;
    if let Some(newest) = &newest {
        let mut saved = saved_config(run_dir, &newest.folder)?;
        make_paths_absolute(&mut saved)?;
        check_changes(&saved, config, newest.state.step, allows_changes)?;
    }
    let state = newest.as_ref().map(|checkpoint| checkpoint.state.clone());
    let is_done = state
        .as_ref()
        .is_some_and(|state| state.step >= config.steps);
    let kept = [run_dir.tokenizer_json(), run_dir.vocabulary()];
    let kept = kept.into_iter().find(|path| *resumes && path.exists());
    if !is_done && newest.is_some() && kept.is_none() {
        bail!(
            "{}: its vocab.txt (or tokenizer.json) is gone, and a new vocabulary would give every \
             word of the trained weights another meaning; put it back",
            run_dir.path().display()
        );
    }
    // Those of a resumed run are in its checkpoint.
    let weights = match newest {
        None => StartWeights::find(&config.weights)?,
        Some(_) => StartWeights::find(&WeightsConfig::default())?,
    };
    match kept {
        Some(kept) => {
            let _ = weights.tokenizer(Some(&kept))?;
        }
        None if !is_done => {
            adopt_tokenizer(config, &weights)?;
            make_paths_absolute(config)?;
            create_tokenizer(config, shards, run_dir)?;
        }
        None => {}
    }
    let tokenizer = match is_done {
        true => None,
        false => Some(TokenizerFile::read(run_dir)?),
    };
    let start = Start {
        run_dir: run_dir.path().to_owned(),
        state,
        tokenizer,
    };
    Ok((newest, weights, start))
}

/// Rank 0's start, on every rank.
fn share(start: Option<Start>, ranks: &dyn Ranks) -> anyhow::Result<Start> {
    if let (1, Some(start)) = (ranks.world_size(), start.as_ref()) {
        // Unchanged, not even by way of JSON.
        return Ok(start.clone());
    }
    let json = match &start {
        Some(start) => serde_json::to_vec(start)?,
        None => Vec::new(),
    };
    let json = ranks.broadcast_bytes(&json)?;
    serde_json::from_slice(&json).context("what rank 0 sent")
}

/// The trace of a rank. Its folder may be on another machine than rank 0's.
pub(super) fn open_trace(run_dir: &RunDir, ranks: &dyn Ranks) -> anyhow::Result<Trace> {
    std::fs::create_dir_all(run_dir.path())
        .with_context(|| format!("cannot create the run folder {}", run_dir.path().display()))?;
    let path = run_dir.trace(ranks.rank());
    let trace = Trace::create(path, TraceLimits::default()).context("--profile")?;
    trace.name_this_thread("train");
    trace.name_process(&match ranks.world_size() {
        1 => "qftrain".to_string(),
        _ => format!("qftrain, rank {}", ranks.rank()),
    });
    Ok(trace)
}
