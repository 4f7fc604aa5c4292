//! NaN and infinities: found before they reach a checkpoint, named, and kept for inspection.

use std::path::{Path, PathBuf};

use qf_config::run::OnNonFinite;
use qf_pipeline::loader::LoaderState;
use qf_pipeline::Batch;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::record::SkippedRecord;
use crate::blip2::{Blip2Qformer, StepOutput};
use crate::collective::{Ranks, SingleProcess};
use crate::error::ModelError;
use crate::host::DeviceBatch;
use crate::tensor_file::{write_safetensors, Metadata};

/// Steps that are checked together on a GPU.
const MAX_PENDING: usize = 8;

/// Batches that a run keeps for inspection; later ones are named in the log alone.
const MAX_SAVED: usize = 16;

const NORM: &str = "the norm of all gradients";

/// Watches the steps of a run. All ranks come to the same verdict.
pub(super) struct Guard<'a> {
    ranks: &'a dyn Ranks,
    policy: OnNonFinite,
    max_skips_in_a_row: u64,
    /// Where batches are saved.
    folder: PathBuf,
    skipped_in_a_row: u64,
    /// Whether steps are looked at later, several at once.
    defers: bool,
    pending: Vec<Watched>,
}

/// What becomes of the update of a step.
pub(super) enum Verdict {
    Update,
    Skip(SkippedRecord),
}

/// A step between its gradients and its update.
pub(super) struct StepView<'a> {
    /// Number of the step, from 1.
    pub(super) step: u64,
    pub(super) batches: &'a [MicroStep],
    pub(super) model: &'a Blip2Qformer,
    /// Norm of all gradients together, unless an infinite one is nothing special.
    pub(super) gradient_norm: Option<&'a Tensor>,
}

/// One of a step's batches, with what was computed from it.
pub(super) struct MicroStep {
    pub(super) batch: Batch,
    pub(super) input: DeviceBatch,
    pub(super) image_embeds: Tensor,
    pub(super) output: StepOutput,
}

/// A step whose numbers have not been looked at yet.
struct Watched {
    /// As in [`Watch`].
    finite: Tensor,
    names: Vec<&'static str>,
    suspect: Suspect,
}

/// What is needed to report a step.
struct Suspect {
    step: u64,
    epoch: u64,
    losses: Tensor,
    samples: Vec<String>,
    captions: Vec<String>,
    loader: LoaderState,
    tensors: Vec<(String, Tensor)>,
}

/// What is wrong with a step, as the rank that saw it tells the others.
#[derive(Serialize, Deserialize)]
struct Finding {
    epoch: u64,
    first_tensor: String,
    /// Words, for JSON has no NaN.
    losses: [String; 3],
    samples: Vec<String>,
    batch: Option<PathBuf>,
}

impl Guard<'static> {
    /// A guard of steps on `device` that saves batches in `folder`.
    pub(super) fn new(
        policy: OnNonFinite,
        max_skips_in_a_row: u64,
        folder: PathBuf,
        device: Device,
    ) -> Self {
        Guard {
            ranks: &SingleProcess,
            policy,
            max_skips_in_a_row,
            folder,
            skipped_in_a_row: 0,
            defers: device.is_cuda() && policy == OnNonFinite::Stop,
            pending: Vec::new(),
        }
    }
}

impl<'a> Guard<'a> {
    /// The same guard as one of several.
    pub(super) fn among(self, ranks: &'a dyn Ranks) -> Guard<'a> {
        Guard { ranks, ..self }
    }

    /// Judges a step whose gradients are there and whose update is not.
    ///
    /// On the CPU, and wherever updates may be skipped, the numbers are read at once. On a GPU they
    /// are left for [`settle`](Self::settle), which a run calls before it logs, validates or saves.
    pub(super) fn judge(&mut self, view: &StepView<'_>) -> Result<Verdict, ModelError> {
        if self.defers {
            self.pending.push(Watched::new(view)?);
            if self.pending.len() >= MAX_PENDING {
                self.settle()?;
            }
            return Ok(Verdict::Update);
        }
        let losses = view.batches.iter().map(|done| &done.output.loss);
        let watched = losses.chain(view.gradient_norm);
        let watched = watched.map(|tensor| Ok(tensor.f_detach()?.f_to_kind(Kind::Float)?));
        let watched = watched.collect::<Result<Vec<Tensor>, ModelError>>()?;
        let is_finite = all_finite(&Tensor::f_stack(&watched, 0)?)?;
        if self.ranks.max(&[i64::from(!is_finite)])? == [0] {
            self.skipped_in_a_row = 0;
            return Ok(Verdict::Update);
        }
        // Gradients are means over the ranks: where one is broken they are broken on all, and only
        // what was computed before them tells whose batch it was.
        let own = first_non_finite_output(view)?;
        let finding = self.share(own.is_some(), || {
            let first_tensor = match own {
                Some(name) => name,
                None => first_non_finite(view)?,
            };
            self.report(&Suspect::of(view, view.watch()?.parts)?, first_tensor)
        })?;
        let limit_reached = self.skipped_in_a_row >= self.max_skips_in_a_row;
        if self.policy == OnNonFinite::Stop || limit_reached {
            return Err(finding.error(view.step, self.skipped_in_a_row));
        }
        self.skipped_in_a_row += 1;
        let record = SkippedRecord {
            step: view.step,
            epoch: finding.epoch,
            first_tensor: finding.first_tensor,
            samples: finding.samples,
            batch: finding.batch,
        };
        if self.ranks.is_first() {
            log::warn!("{record}");
        }
        Ok(Verdict::Skip(record))
    }

    /// The same guard, as on a GPU.
    #[cfg(test)]
    pub(super) fn deferring(mut self) -> Guard<'a> {
        self.defers = true;
        self
    }

    /// Whether steps are looked at later.
    pub(super) fn defers(&self) -> bool {
        self.defers
    }

    /// Leaves a step for [`settle`](Self::settle) that has made its update, by its [`Watch`].
    pub(super) fn leave(
        &mut self,
        step: u64,
        (batch, input): (&Batch, &DeviceBatch),
        watch: Watch,
    ) -> Result<(), ModelError> {
        let suspect = Suspect::new(step, &[(batch, input)], watch.parts)?;
        self.pending.push(Watched {
            finite: watch.finite,
            names: watch.names,
            suspect,
        });
        match self.pending.len() >= MAX_PENDING {
            true => self.settle(),
            false => Ok(()),
        }
    }

    /// Looks at all steps that were left.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] for the first that is not finite.
    pub(super) fn settle(&mut self) -> Result<(), ModelError> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let count = pending.len();
        let mut broken = (count, None);
        // All flags in one transfer.
        let flags: Vec<&Tensor> = pending.iter().map(|watched| &watched.finite).collect();
        let flags = Vec::<bool>::try_from(&Tensor::f_cat(&flags, 0)?)?;
        let mut flags = flags.into_iter();
        for (index, watched) in pending.iter().enumerate() {
            let own = flags.by_ref().take(watched.finite.numel());
            if let Some(name) = watched.first_non_finite(&own.collect::<Vec<_>>())? {
                broken = (index, Some(name));
                break;
            }
        }
        // The first over all ranks.
        let index = match self.ranks.max(&[-(broken.0 as i64)])?[..] {
            [last] => usize::try_from(-last).unwrap_or(count),
            _ => count,
        };
        let Some(watched) = pending.get(index) else {
            return Ok(());
        };
        let own = broken.1.filter(|_| broken.0 == index);
        let finding = self.share(own.is_some(), || {
            let first_tensor = own.unwrap_or_else(|| NORM.to_string());
            self.report(&watched.suspect, first_tensor)
        })?;
        Err(finding.error(watched.suspect.step, 0))
    }

    /// What the first rank of those that see the fault in their own batch finds, on all ranks; that of
    /// rank 0 if none does.
    fn share(
        &self,
        is_own: bool,
        find: impl FnOnce() -> Result<Finding, ModelError>,
    ) -> Result<Finding, ModelError> {
        let (rank, size) = (self.ranks.rank(), self.ranks.world_size());
        if size == 1 {
            return find();
        }
        let claims = self.ranks.max(&[if is_own { size - rank } else { 0 }])?;
        let culprit = match claims[..] {
            [claim] if claim > 0 => size - claim,
            _ => 0,
        };
        let json = match rank == culprit {
            true => {
                let mut finding = find()?;
                if is_own {
                    finding.first_tensor += &format!(" on rank {rank}");
                }
                serde_json::to_vec(&finding).map_err(|error| unreadable(&error))?
            }
            false => Vec::new(),
        };
        let all = self.ranks.gather_bytes(&json)?;
        let told = usize::try_from(culprit).ok().and_then(|rank| all.get(rank));
        serde_json::from_slice(told.map_or(&[][..], |bytes| bytes))
            .map_err(|error| unreadable(&error))
    }

    fn report(&self, suspect: &Suspect, first_tensor: String) -> Result<Finding, ModelError> {
        let losses = suspect.losses()?;
        let batch = self.keep(suspect, &first_tensor, &losses)?;
        Ok(Finding {
            epoch: suspect.epoch,
            first_tensor,
            losses: losses.map(|loss| loss.to_string()),
            samples: suspect.samples.clone(),
            batch,
        })
    }

    /// Saves the batch for inspection; `None` when enough are saved.
    fn keep(
        &self,
        suspect: &Suspect,
        first_tensor: &str,
        losses: &[f64; 3],
    ) -> Result<Option<PathBuf>, ModelError> {
        let saved = std::fs::read_dir(&self.folder).map_or(0, |entries| entries.count());
        if saved >= MAX_SAVED {
            return Ok(None);
        }
        let folder = self.folder.join(format!("step-{:08}", suspect.step));
        suspect.save(&folder, first_tensor, losses)?;
        Ok(Some(folder))
    }
}

impl Finding {
    fn error(self, step: u64, skipped_before: u64) -> ModelError {
        let [loss_itc, loss_itm, loss_lm] =
            self.losses.map(|loss| loss.parse().unwrap_or(f64::NAN));
        ModelError::NonFinite {
            step,
            first_tensor: self.first_tensor,
            loss_itc,
            loss_itm,
            loss_lm,
            samples: self.samples,
            batch: self.batch,
            skipped_before,
        }
    }
}

fn unreadable(error: &serde_json::Error) -> ModelError {
    ModelError::Input {
        what: "finding of a rank",
        message: error.to_string(),
    }
}

/// The numbers by which a step is watched.
pub(super) struct Watch {
    /// One flag per name, and one for the norm of the gradients, if that is watched.
    pub(super) finite: Tensor,
    pub(super) names: Vec<&'static str>,
    /// Contrastive, matching, language-model loss: `[3]`.
    pub(super) parts: Tensor,
}

impl Watch {
    /// Losses and norm alone: whatever is not finite before them makes them so, and every tensor more
    /// would cost each step some kernels.
    pub(super) fn of(
        outputs: &[&StepOutput],
        gradient_norm: Option<&Tensor>,
    ) -> Result<Watch, ModelError> {
        let losses = outputs.iter().flat_map(|output| losses(output));
        let (names, losses): (Vec<_>, Vec<_>) = losses.unzip();
        let watched = losses.into_iter().chain(gradient_norm);
        let watched = watched.map(|tensor| Ok(tensor.f_detach()?.f_to_kind(Kind::Float)?));
        let watched = watched.collect::<Result<Vec<Tensor>, ModelError>>()?;
        let parts = outputs.iter().map(|output| {
            let parts = [&output.loss_itc, &output.loss_itm, &output.loss_lm];
            Ok(Tensor::f_stack(&parts, 0)?.f_detach()?)
        });
        let parts = parts.collect::<Result<Vec<Tensor>, ModelError>>()?;
        Ok(Watch {
            finite: Tensor::f_stack(&watched, 0)?.f_isfinite()?,
            names,
            parts: Tensor::f_stack(&parts, 0)?.f_mean_dim([0i64].as_slice(), false, None)?,
        })
    }
}

impl StepView<'_> {
    fn watch(&self) -> Result<Watch, ModelError> {
        let outputs: Vec<&StepOutput> = self.batches.iter().map(|done| &done.output).collect();
        Watch::of(&outputs, self.gradient_norm)
    }
}

impl Watched {
    fn new(view: &StepView<'_>) -> Result<Watched, ModelError> {
        let watch = view.watch()?;
        Ok(Watched {
            finite: watch.finite,
            names: watch.names,
            suspect: Suspect::of(view, watch.parts)?,
        })
    }

    /// Names, by the flags of `finite`, the first that is not finite of what the step was given and what it is watched by.
    fn first_non_finite(&self, finite: &[bool]) -> Result<Option<String>, ModelError> {
        let Some(first) = finite.iter().position(|finite| !finite) else {
            return Ok(None);
        };
        for (name, tensor) in &self.suspect.tensors {
            if !all_finite(tensor)? {
                return Ok(Some(format!("`{name}`")));
            }
        }
        Ok(Some(match self.names.get(first) {
            Some(name) => format!("`{name}`"),
            None => NORM.to_string(),
        }))
    }
}

impl Suspect {
    fn of(view: &StepView<'_>, losses: Tensor) -> Result<Suspect, ModelError> {
        let batches = view.batches.iter().map(|done| (&done.batch, &done.input));
        Suspect::new(view.step, &batches.collect::<Vec<_>>(), losses)
    }

    fn new(
        step: u64,
        batches: &[(&Batch, &DeviceBatch)],
        losses: Tensor,
    ) -> Result<Suspect, ModelError> {
        let mut tensors = Vec::with_capacity(3 * batches.len());
        for (index, (_, input)) in batches.iter().enumerate() {
            // One of several is named by its place in the step.
            let suffix = match batches.len() {
                1 => String::new(),
                _ => format!(".{index}"),
            };
            for (name, tensor) in [
                ("pixels", &input.images),
                ("token_ids", &input.token_ids),
                ("attention_mask", &input.attention_mask),
            ] {
                tensors.push((format!("{name}{suffix}"), tensor.shallow_clone()));
            }
        }
        let Some((last, _)) = batches.last() else {
            return Err(ModelError::Input {
                what: "step",
                message: "it has no batch".into(),
            });
        };
        let all = || batches.iter().map(|(batch, _)| batch);
        Ok(Suspect {
            step,
            epoch: last.epoch,
            losses,
            samples: all()
                .flat_map(|batch| batch.ids.iter().map(|id| id.to_string()))
                .collect(),
            captions: all()
                .flat_map(|batch| batch.captions.iter().cloned())
                .collect(),
            loader: last.state.clone(),
            tensors,
        })
    }

    /// Contrastive, matching, language-model.
    fn losses(&self) -> Result<[f64; 3], ModelError> {
        let losses = Vec::<f64>::try_from(self.losses.f_to_kind(Kind::Double)?)?;
        Ok([0, 1, 2].map(|index| losses.get(index).copied().unwrap_or(f64::NAN)))
    }

    /// `batch.safetensors` (pixels as the network saw them, ids, mask) and `batch.json`.
    fn save(&self, folder: &Path, first_tensor: &str, losses: &[f64; 3]) -> Result<(), ModelError> {
        let at = |source| ModelError::Io {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(at)?;
        write_safetensors(
            &folder.join("batch.safetensors"),
            &self.tensors,
            &Metadata::new(),
        )?;
        // Words, for JSON has no NaN.
        let losses = losses.map(|loss| loss.to_string());
        let json = serde_json::json!({
            "step": self.step,
            "epoch": self.epoch,
            "first_tensor": first_tensor,
            "loss_itc": losses[0],
            "loss_itm": losses[1],
            "loss_lm": losses[2],
            "samples": self.samples,
            "captions": self.captions,
            "loader": self.loader,
        });
        std::fs::write(folder.join("batch.json"), format!("{json:#}\n")).map_err(at)
    }
}

/// What a step comes to.
fn losses(output: &StepOutput) -> [(&'static str, &Tensor); 4] {
    [
        ("loss_itc", &output.loss_itc),
        ("loss_itm", &output.loss_itm),
        ("loss_lm", &output.loss_lm),
        ("loss", &output.loss),
    ]
}

/// What a step computes, in order.
fn outputs(done: &MicroStep) -> Vec<(&'static str, &Tensor)> {
    let output = &done.output;
    vec![
        ("pixels", &done.input.images),
        ("image_embeds", &done.image_embeds),
        ("image_feats", &output.image_feats),
        ("text_feat", &output.text_feat),
        ("sim_i2t", &output.sim_i2t),
        ("sim_t2i", &output.sim_t2i),
        ("loss_itc", &output.loss_itc),
        ("itm_logits", &output.itm_logits),
        ("loss_itm", &output.loss_itm),
        ("loss_lm", &output.loss_lm),
        ("loss", &output.loss),
    ]
}

/// The first parameter that is not finite.
fn broken_parameter<'a>(view: &StepView<'a>) -> Result<Option<&'a str>, ModelError> {
    for param in view.model.params().named_parameters() {
        if !all_finite(&param.tensor)? {
            return Ok(Some(&param.name));
        }
    }
    Ok(None)
}

/// Names the first tensor of this rank's outputs, in order of computation, that is not finite.
fn first_non_finite_output(view: &StepView<'_>) -> Result<Option<String>, ModelError> {
    for (name, tensor) in view.batches.iter().flat_map(outputs) {
        if !all_finite(tensor)? {
            return Ok(Some(match broken_parameter(view)? {
                Some(parameter) => format!("`{name}` (as is parameter `{parameter}`)"),
                None => format!("`{name}`"),
            }));
        }
    }
    Ok(None)
}

/// Names the first gradient, or else parameter, that is not finite.
fn first_non_finite(view: &StepView<'_>) -> Result<String, ModelError> {
    for param in view.model.params().trainable() {
        let gradient = param.tensor.f_grad()?;
        if gradient.defined() && !all_finite(&gradient)? {
            return Ok(format!("the gradient of `{}`", param.name));
        }
    }
    Ok(match broken_parameter(view)? {
        Some(parameter) => format!("parameter `{parameter}`"),
        // Each gradient is finite, but the sum of their squares is beyond 32 bits.
        None => NORM.to_string(),
    })
}

fn all_finite(tensor: &Tensor) -> Result<bool, ModelError> {
    let all = tensor.f_detach()?.f_isfinite()?.f_all()?;
    Ok(all.f_int64_value(&[])? != 0)
}

#[cfg(test)]
pub(super) mod tests;
