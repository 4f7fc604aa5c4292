//! The optimiser by itself on given gradients, and five whole steps.

use qf_config::model::Precision;
use tch::{Device, Kind, Tensor};

use super::check::{Bench, Fault, NotOk, ADVICE};
use super::compare::{norm, on_host, Comparison, Tolerance, BF16, F32};
use super::network::{config, drawn, model, Inputs, Tower};
use super::reference::{reference, PlainAdamW};
use super::step::forward;
use crate::accelerator::SideStream;
use crate::blip2::{Blip2Qformer, ComputeOptions};
use crate::collective::SingleProcess;
use crate::ops::clear_gradients;
use crate::optim::{AdamW, AdamWConfig};

const STEPS: i64 = 5;

/// Of parameters and moments after five steps from the same gradients, as a share of their norm: some
/// roundings of 32 bits (6e-8).
const ADAMW_TOLERANCE: f64 = 1e-6;

fn values(model: &Blip2Qformer) -> Result<Vec<(String, Tensor)>, Fault> {
    let params = model.params().trainable();
    let copies = params.map(|param| Ok((param.name.clone(), on_host(&param.tensor)?)));
    copies.collect()
}

pub(super) fn adamw(bench: &mut Bench) -> Result<(), NotOk> {
    let config = config(Tower::FrozenEva);
    let model = model(
        &config,
        bench.device,
        Precision::F32,
        ComputeOptions::default(),
    )?;
    let settings = AdamWConfig::default();
    let mut optimizer = AdamW::new(model.params(), &settings)?;
    let [decaying, _] = optimizer.groups();
    let mut plain = PlainAdamW::new(&settings, &decaying.names, values(&model)?)?;
    for step in 1..=STEPS {
        let mut gradients = Vec::new();
        let mut loss: Option<Tensor> = None;
        for param in model.params().trainable() {
            let name = format!("gradient of {} in step {step}", param.name);
            let gradient = drawn(&name, &param.tensor.size())?.f_mul_scalar(1e-3)?;
            // The gradient of a sum of products is the other factor, exactly.
            let on_device = gradient.f_to_device(bench.device)?;
            let sum = param.tensor.f_mul(&on_device)?.f_sum(Kind::Float)?;
            loss = Some(match loss {
                Some(loss) => loss.f_add(&sum)?,
                None => sum,
            });
            gradients.push(gradient.f_to_kind(Kind::Double)?);
        }
        optimizer.zero_grad()?;
        if let Some(loss) = loss {
            loss.f_backward()?;
        }
        let lr = 1e-3 * step as f64;
        optimizer.step(lr)?;
        plain.step(lr, &gradients)?;
    }
    let worst = worst_state(&model, &optimizer, &plain)?;
    bench.note("tensors", plain.state().count());
    bench.note("worst_error", worst.1);
    if worst.1.is_nan() || worst.1 > ADAMW_TOLERANCE {
        return Err(NotOk::Fault(Fault {
            what: format!("{} after {STEPS} steps of AdamW", worst.0),
            got: format!(
                "the norm of the difference over its norm is {:.2e}",
                worst.1
            ),
            expected: format!("at most {ADAMW_TOLERANCE:.0e}"),
            advice: ADVICE.into(),
        }));
    }
    Ok(())
}

/// What differs most of parameters and moments, and its error.
fn worst_state(
    model: &Blip2Qformer,
    optimizer: &AdamW,
    plain: &PlainAdamW,
) -> Result<(String, f64), Fault> {
    let moments = optimizer.state()?;
    let moment = |name: &str| moments.iter().find(|(found, _)| found == name);
    let mut worst = (String::new(), 0.0);
    for (name, value, mean, square) in plain.state() {
        let param = model.params().get(name).map(|param| &param.tensor);
        let (mean_name, square_name) = (format!("{name}.exp_avg"), format!("{name}.exp_avg_sq"));
        let found = [
            (name, param, value),
            (&mean_name, moment(&mean_name).map(|(_, t)| t), mean),
            (&square_name, moment(&square_name).map(|(_, t)| t), square),
        ];
        for (what, got, expected) in found {
            let error = match got {
                Some(got) => norm(&on_host(got)?.f_sub(expected)?)? / norm(expected)?,
                None => f64::NAN,
            };
            if error.is_nan() || error > worst.1 {
                worst = (what.to_string(), error);
            }
        }
    }
    Ok(worst)
}

pub(super) fn in_f32(bench: &mut Bench) -> Result<(), NotOk> {
    five_steps(bench, Precision::F32, F32)
}

pub(super) fn in_bf16(bench: &mut Bench) -> Result<(), NotOk> {
    five_steps(bench, Precision::Bf16, BF16)
}

/// Five steps, each on the weights that the one before it left: 16-bit copies of weights that are not
/// renewed would show here.
fn five_steps(bench: &mut Bench, precision: Precision, tolerance: Tolerance) -> Result<(), NotOk> {
    // Large enough that the losses of the last step are far from those of the first.
    const LR: f64 = 2e-3;
    let config = config(Tower::FrozenEva);
    let settings = AdamWConfig::default();
    let device = model(&config, bench.device, precision, ComputeOptions::default())?;
    let mut optimizer = AdamW::new(device.params(), &settings)?;
    let [decaying, _] = optimizer.groups();
    let (reference, kind) = reference(&config)?;
    let params = reference.params().trainable();
    let params = params.map(|p| Ok::<_, Fault>((p.name.clone(), p.tensor.f_detach()?)));
    let params = params.collect::<Result<_, _>>()?;
    let mut plain = PlainAdamW::new(&settings, &decaying.names, params)?;

    let mut comparison = Comparison::new(tolerance);
    let mut losses = Vec::new();
    let stream = SideStream::for_steps(bench.device)?;
    let inputs = Inputs::new(0, bench.device, Kind::Float)?;
    for step in 1..=STEPS {
        let output = stream.run(|| {
            let (images, output) = forward(&device, &inputs, &SingleProcess)?;
            optimizer.zero_grad()?;
            output.loss.f_backward()?;
            device.finish_backward(&images)?;
            optimizer.step(LR)?;
            Ok::<_, Fault>(output)
        })?;

        let inputs = Inputs::new(0, Device::Cpu, kind)?;
        let (_, expected) = forward(&reference, &inputs, &SingleProcess)?;
        let params: Vec<&Tensor> = reference.params().trainable().map(|p| &p.tensor).collect();
        clear_gradients(&params)?;
        expected.loss.f_backward()?;
        let gradients = reference.params().trainable().map(|p| p.tensor.f_grad());
        plain.step(LR, &gradients.collect::<Result<Vec<_>, _>>()?)?;

        for (name, got, expected) in [
            ("contrastive loss", &output.loss_itc, &expected.loss_itc),
            ("matching loss", &output.loss_itm, &expected.loss_itm),
            ("generation loss", &output.loss_lm, &expected.loss_lm),
        ] {
            let (got, expected) = (got.f_double_value(&[])?, expected.f_double_value(&[])?);
            comparison.trajectory(&format!("{name} of step {step}"), got, expected);
        }
        losses.push(output.loss.f_double_value(&[])?);
    }
    bench.note("worst_loss_error", comparison.worst_trajectory);
    bench.note("losses", losses);
    Ok(comparison.end()?)
}
