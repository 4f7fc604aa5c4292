//! One step on the device: losses, outputs and every gradient against the reference.

use qf_config::model::Precision;
use tch::{Kind, Tensor};

use super::check::{Bench, Fault, NotOk};
use super::compare::{norm, on_host, Comparison, Tolerance, BF16, F32};
use super::network::{config, model, Inputs, Tower};
use super::reference::{is_zero_gradient, reference};
use crate::blip2::{Blip2Qformer, ComputeOptions, NegativeSampling, StepInput, StepOutput};
use crate::collective::{Collective, SingleProcess};

/// What is compared of a step.
pub(super) struct StepNumbers {
    pub(super) losses: Vec<(&'static str, f64)>,
    pub(super) outputs: Vec<(&'static str, Tensor)>,
    /// By parameter; undefined for one that no loss reaches.
    pub(super) gradients: Vec<(String, Tensor)>,
}

pub(super) fn in_f32(bench: &mut Bench) -> Result<(), NotOk> {
    compare(bench, Precision::F32, F32)
}

pub(super) fn in_bf16(bench: &mut Bench) -> Result<(), NotOk> {
    compare(bench, Precision::Bf16, BF16)
}

fn compare(bench: &mut Bench, precision: Precision, tolerance: Tolerance) -> Result<(), NotOk> {
    let mut comparison = Comparison::new(tolerance);
    for tower in Tower::ALL {
        let config = config(tower);
        let device = model(&config, bench.device, precision, ComputeOptions::default())?;
        let got = numbers(
            &device,
            &Inputs::new(0, bench.device, Kind::Float)?,
            &SingleProcess,
        )?;
        let (reference, kind) = reference(&config)?;
        let expected = numbers(
            &reference,
            &Inputs::new(0, tch::Device::Cpu, kind)?,
            &SingleProcess,
        )?;
        against(&mut comparison, tower.name(), &got, &expected)?;
    }
    note(bench, &comparison);
    Ok(comparison.end()?)
}

/// The figures of a comparison.
pub(super) fn note(bench: &mut Bench, comparison: &Comparison) {
    bench.note("quantities", comparison.compared);
    bench.note("worst_loss_error", comparison.worst_loss);
    bench.note("worst_output_error", comparison.worst_output);
    bench.note("worst_gradient_error", comparison.worst_gradient);
    bench.note("worst_zero_gradient", comparison.worst_zero);
}

/// The forward pass of a training step on `inputs`.
pub(super) fn forward(
    model: &Blip2Qformer,
    inputs: &Inputs,
    ranks: &dyn Collective,
) -> Result<(crate::TrainingImages, StepOutput), Fault> {
    let images = model.encode_training_image(&inputs.images)?;
    let input = StepInput {
        image_embeds: &images.features,
        token_ids: &inputs.token_ids,
        attention_mask: &inputs.attention_mask,
        image_ids: None,
    };
    let negatives = NegativeSampling::Given {
        image_idx: &inputs.negative_images,
        text_idx: &inputs.negative_texts,
    };
    let output = model.forward_losses(&input, negatives, ranks, true)?;
    Ok((images, output))
}

/// Forward and backward from no gradients.
pub(super) fn numbers(
    model: &Blip2Qformer,
    inputs: &Inputs,
    ranks: &dyn Collective,
) -> Result<StepNumbers, Fault> {
    let (images, output) = forward(model, inputs, ranks)?;
    output.loss.f_backward()?;
    model.finish_backward(&images)?;
    let losses = [
        ("loss", &output.loss),
        ("contrastive loss", &output.loss_itc),
        ("matching loss", &output.loss_itm),
        ("generation loss", &output.loss_lm),
    ];
    let losses = losses.map(|(name, loss)| Ok::<_, Fault>((name, loss.f_double_value(&[])?)));
    let outputs = [
        ("image features of the tower", &images.features),
        ("image features", &output.image_feats),
        ("text features", &output.text_feat),
        ("similarities of images", &output.sim_i2t),
        ("similarities of texts", &output.sim_t2i),
        ("weights of negative texts", &output.weights_i2t),
        ("weights of negative images", &output.weights_t2i),
        ("matching logits", &output.itm_logits),
    ];
    let outputs = outputs.map(|(name, output)| Ok::<_, Fault>((name, on_host(output)?)));
    let gradients = model.params().trainable().map(|param| {
        let gradient = param.tensor.f_grad()?;
        let gradient = match gradient.defined() {
            true => on_host(&gradient)?,
            false => gradient,
        };
        Ok::<_, Fault>((param.name.clone(), gradient))
    });
    Ok(StepNumbers {
        losses: losses.into_iter().collect::<Result<_, _>>()?,
        outputs: outputs.into_iter().collect::<Result<_, _>>()?,
        gradients: gradients.collect::<Result<_, _>>()?,
    })
}

/// Compares all numbers of two steps.
pub(super) fn against(
    comparison: &mut Comparison,
    label: &str,
    got: &StepNumbers,
    expected: &StepNumbers,
) -> Result<(), Fault> {
    for ((name, got), (_, expected)) in got.losses.iter().zip(&expected.losses) {
        comparison.loss(&format!("{label}: {name}"), *got, *expected);
    }
    for ((name, got), (_, expected)) in got.outputs.iter().zip(&expected.outputs) {
        comparison.output(&format!("{label}: {name}"), got, expected)?;
    }
    let mut squares = 0.0;
    for (_, expected) in expected.gradients.iter().filter(|(_, g)| g.defined()) {
        squares += norm(expected)?.powi(2);
    }
    for ((name, got), (_, expected)) in got.gradients.iter().zip(&expected.gradients) {
        let what = format!("{label}: {name}");
        match (got.defined(), expected.defined()) {
            (true, true) => {
                let is_zero = is_zero_gradient(name);
                comparison.gradient(&what, got, expected, is_zero, squares.sqrt())?;
            }
            (false, false) => {}
            (got, expected) => {
                let word = |is_there| {
                    if is_there {
                        "a gradient"
                    } else {
                        "no gradient"
                    }
                };
                return Err(Fault {
                    what,
                    got: word(got).into(),
                    expected: word(expected).into(),
                    advice: super::ADVICE.into(),
                });
            }
        }
    }
    Ok(())
}
