//! A checkpoint of a run on the device, and the run that goes on from it.

use qf_config::model::Precision;
use tch::Kind;

use super::check::{Bench, Fault, NotOk, ADVICE};
use super::compare::same_bits;
use super::network::{config, model, Inputs, Tower};
use super::step::forward;
use super::upload::loader;
use crate::blip2::{Blip2Qformer, ComputeOptions};
use crate::checkpoint::{
    load_model, load_optimizer, newest, CheckpointWriter, Retention, TrainState,
};
use crate::collective::SingleProcess;
use crate::context::{choose_kernels, Kernels};
use crate::optim::{AdamW, AdamWConfig};

const LR: f64 = 1e-3;

/// A network that is trained.
struct Run {
    model: Blip2Qformer,
    optimizer: AdamW,
}

impl Run {
    /// Makes the step on the batch of this number; returns its loss.
    fn step(&mut self, bench: &Bench, number: i64) -> Result<f64, Fault> {
        let inputs = Inputs::new(number, bench.device, Kind::Float)?;
        let (images, output) = forward(&self.model, &inputs, &SingleProcess)?;
        self.optimizer.zero_grad()?;
        output.loss.f_backward()?;
        self.model.finish_backward(&images)?;
        self.optimizer.step(LR)?;
        Ok(output.loss.f_double_value(&[])?)
    }
}

fn start(tower: Tower, precision: Precision, bench: &Bench) -> Result<Run, Fault> {
    let config = config(tower);
    let model = model(&config, bench.device, precision, ComputeOptions::default())?;
    let optimizer = AdamW::new(model.params(), &AdamWConfig::default())?;
    Ok(Run { model, optimizer })
}

/// Saves after two steps, loads into a fresh run, and makes the next step in both: with everything in
/// 32 bits and trained, and as runs on this device do. All have the same bits, by deterministic kernels.
pub(super) fn restored(bench: &mut Bench) -> Result<(), NotOk> {
    choose_kernels(Kernels {
        deterministic: true,
        ..Kernels::default()
    })?;
    let result = restore(bench);
    choose_kernels(Kernels::default())?;
    result
}

fn restore(bench: &mut Bench) -> Result<(), NotOk> {
    for (tower, precision) in [
        (Tower::Eva, Precision::F32),
        (Tower::FrozenEva, bench.precision),
    ] {
        let folder = tempfile::tempdir()?;
        let checkpoints = folder.path().join("checkpoints");
        let state = TrainState::new(2, loader(folder.path(), bench.device, 4)?.state().clone());
        let mut run = start(tower, precision, bench)?;
        run.step(bench, 0)?;
        run.step(bench, 1)?;
        let mut writer = CheckpointWriter::start(checkpoints.clone(), Retention { newest: 1 })?;
        let (model, optimizer) = (&run.model, &run.optimizer);
        writer.save(
            model,
            optimizer,
            &SingleProcess,
            state.clone(),
            String::new(),
            Vec::new(),
        )?;
        writer.wait()?;
        let found = newest(&checkpoints)?.filter(|found| found.state == state);
        let Some(found) = found else {
            return Err(NotOk::Fault(Fault {
                what: "the checkpoint that was written".into(),
                got: "none, or another state".into(),
                expected: "that of step 2".into(),
                advice: ADVICE.into(),
            }));
        };
        let mut resumed = start(tower, precision, bench)?;
        resumed.step(bench, 2)?;
        load_model(&found.folder, &mut resumed.model)?;
        load_optimizer(&found.folder, &mut resumed.optimizer)?;
        bench.note("tensors", same_state("the checkpoint", &run, &resumed)?);
        let (expected, got) = (run.step(bench, 3)?, resumed.step(bench, 3)?);
        if got != expected {
            return Err(NotOk::Fault(Fault {
                what: "the loss of the step behind a checkpoint".into(),
                got: got.to_string(),
                expected: expected.to_string(),
                advice: ADVICE.into(),
            }));
        }
        same_state("the step behind it", &run, &resumed)?;
    }
    Ok(())
}

/// Compares all parameters and moments of two runs bit for bit; returns how many tensors they are.
fn same_state(when: &str, run: &Run, resumed: &Run) -> Result<usize, Fault> {
    let params = run.model.params().named_parameters();
    let restored = resumed.model.params().named_parameters();
    for (param, restored) in params.iter().zip(restored) {
        let what = format!("parameter {} of {when}", param.name);
        same_bits(&what, &restored.tensor, &param.tensor)?;
    }
    let (moments, restored) = (run.optimizer.state()?, resumed.optimizer.state()?);
    for ((name, moment), (_, restored)) in moments.iter().zip(&restored) {
        same_bits(&format!("{name} of {when}"), restored, moment)?;
    }
    Ok(params.len() + moments.len())
}
