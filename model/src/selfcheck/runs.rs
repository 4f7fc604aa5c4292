//! Whole runs of the training loop on the device: a frozen tower that runs ahead, the streams, steps that
//! are recorded as CUDA graphs, the guard, the checkpoint at the end. Their losses are those of the
//! same run on the CPU.

use std::path::Path;

use qf_config::model::{ModelConfig, Precision};
use qf_config::run_dir::RunDir;
use qf_pipeline::Loader;
use tch::Device;

use super::check::{Bench, Fault, NotOk, ADVICE};
use super::compare::{Comparison, Tolerance, BF16, F32};
use super::network::{config, model, Tower};
use super::upload::{loader, tokenizer};
use crate::blip2::ComputeOptions;
use crate::checkpoint::newest;
use crate::collective::SingleProcess;
use crate::feed::DeviceFeed;
use crate::optim::{AdamW, AdamWConfig};
use crate::train::{MetricsRecord, RunContext, TrainConfig, Trainer};

/// The first few steps of a run are made as they come; those after them are recorded and run again.
const STEPS: u64 = 12;

/// With two pairs the negatives are certain, however a device draws them.
const PAIRS: usize = 2;

/// A line of metrics.jsonl: the losses, and the norm of the gradients.
type Line = [f64; 4];

const NAMES: [&str; 4] = [
    "contrastive loss",
    "matching loss",
    "generation loss",
    "norm of all gradients",
];

pub(super) fn in_f32(bench: &mut Bench) -> Result<(), NotOk> {
    compare(bench, Precision::F32, F32)
}

pub(super) fn in_bf16(bench: &mut Bench) -> Result<(), NotOk> {
    compare(bench, Precision::Bf16, BF16)
}

fn compare(bench: &mut Bench, precision: Precision, tolerance: Tolerance) -> Result<(), NotOk> {
    let expected = run(Device::Cpu, Precision::F32, false)?;
    let mut comparison = Comparison::new(tolerance);
    for (name, is_plain) in [("with graphs", false), ("without", true)] {
        let got = run(bench.device, precision, is_plain)?;
        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
            for ((what, got), expected) in NAMES.iter().zip(got).zip(expected) {
                let what = format!("{what} of step {} of a run {name}", step + 1);
                comparison.trajectory(&what, *got, *expected);
            }
        }
        if got.len() != expected.len() {
            return Err(NotOk::Fault(Fault {
                what: "steps of a run".into(),
                got: got.len().to_string(),
                expected: expected.len().to_string(),
                advice: ADVICE.into(),
            }));
        }
    }
    bench.note("steps", STEPS);
    bench.note("worst_error", comparison.worst_trajectory);
    Ok(comparison.end()?)
}

/// The lines of a run; `is_plain` without a tower that runs ahead and without graphs.
fn run(device: Device, precision: Precision, is_plain: bool) -> Result<Vec<Line>, Fault> {
    let folder = tempfile::tempdir()?;
    let loader = loader(folder.path(), device, PAIRS)?;
    let mut sizes = config(Tower::FrozenEva);
    sizes.qformer.fit_to_tokenizer(&tokenizer()?);
    let model = model(&sizes, device, precision, ComputeOptions::default())?;
    let optimizer = AdamW::new(model.params(), &AdamWConfig::default())?;
    let tower = match is_plain {
        true => None,
        false => model.recorded_tower(PAIRS as i64)?,
    };
    let trainer = Trainer {
        model,
        optimizer,
        scaler: None,
        step: 0,
        best: None,
    };
    let settings = settings(&sizes, is_plain)?;
    train(trainer, &settings, loader, device, tower, folder.path())
}

fn train(
    mut trainer: Trainer,
    settings: &TrainConfig,
    loader: Loader,
    device: Device,
    tower: Option<crate::blip2::FrozenTower>,
    folder: &Path,
) -> Result<Vec<Line>, Fault> {
    let mut feed = DeviceFeed::start(loader, device, tower)?;
    let run_dir = RunDir::new(folder.join("run"));
    std::fs::create_dir_all(run_dir.path())?;
    let mut lines = Vec::new();
    let ended = trainer.run(RunContext {
        config: settings,
        feed: &mut feed,
        validator: None,
        ranks: &SingleProcess,
        run_dir: &run_dir,
        stop: &Default::default(),
        trace: None,
        observer: &mut |record: &MetricsRecord| {
            if let MetricsRecord::Train(line) = record {
                lines.push([line.loss_itc, line.loss_itm, line.loss_lm, line.grad_norm]);
            }
        },
    });
    ended.map_err(|failure| Fault::from(failure.error))?;
    match newest(&run_dir.checkpoints())? {
        Some(checkpoint) if checkpoint.state.step == STEPS => Ok(lines),
        found => Err(Fault {
            what: "the checkpoint at the end of a run".into(),
            got: format!("one of step {:?}", found.map(|found| found.state.step)),
            expected: STEPS.to_string(),
            advice: ADVICE.into(),
        }),
    }
}

fn settings(model: &ModelConfig, is_plain: bool) -> Result<TrainConfig, Fault> {
    let unfit = |error: &dyn std::fmt::Display| Fault {
        what: "the settings of a run".into(),
        got: error.to_string(),
        expected: "no error".into(),
        advice: ADVICE.into(),
    };
    let mut table = toml::Table::new();
    table.insert("steps".into(), (STEPS as i64).into());
    table.insert("cuda_graphs".into(), (!is_plain).into());
    let model = toml::Table::try_from(model).map_err(|error| unfit(&error))?;
    table.insert("model".into(), model.into());
    table.try_into().map_err(|error| unfit(&error))
}
