//! One step of the three losses, and each again from what the step returns, as the paper writes it:
//!
//! ```sh
//! cargo run -p qf-model --example three_losses
//! ```

use qf_model::{Blip2Qformer, ComputeOptions, ModelConfig, ModelError, NegativeSampling};
use qf_model::{SingleProcess, StepInput};
use tch::{Device, Kind, Reduction, Tensor};

const BATCH: i64 = 4;
const TOKENS: i64 = 12;
const INTEGERS: (Kind, Device) = (Kind::Int64, Device::Cpu);

fn main() -> Result<(), ModelError> {
    let mut model = Blip2Qformer::new(&ModelConfig::tiny(), Device::Cpu, 42)?;
    model.set_compute(ComputeOptions::ALL_ROWS); // Only so are all hidden rows returned.
    let smoothing = model.config().qformer.label_smoothing;
    let pixels = Tensor::f_randn([BATCH, 3, 224, 224], (Kind::Float, Device::Cpu))?;
    let token_ids = Tensor::f_randint_low(1000, 30_000, [BATCH, TOKENS], INTEGERS)?;
    let image_embeds = model.encode_image(&pixels)?;
    let input = StepInput {
        image_embeds: &image_embeds,
        attention_mask: &token_ids.f_ones_like()?,
        token_ids: &token_ids,
        image_ids: None,
    };
    let step = model.forward_losses(&input, NegativeSampling::Multinomial, &SingleProcess, true)?;
    let cross_entropy = |scores: &Tensor, classes: &Tensor, smoothing: f64| {
        scores.f_cross_entropy_loss::<Tensor>(classes, None, Reduction::Mean, -100, smoothing)
    };

    // ITC: each image finds its text among all texts, and each text its image. `[B, B]`.
    let matching = Tensor::f_arange(BATCH, INTEGERS)?;
    let image_to_text = cross_entropy(&step.sim_i2t, &matching, smoothing)?;
    let text_to_image = cross_entropy(&step.sim_t2i, &matching, smoothing)?;
    let itc = image_to_text.f_add(&text_to_image)?.f_div_scalar(2.0)?;

    // ITM: B matched pairs, then 2 B with a hard negative image or text. `[3 B, 2]`.
    let is_match = Tensor::f_arange(3 * BATCH, INTEGERS)?.f_lt(BATCH)?;
    let itm = cross_entropy(&step.itm_logits, &is_match.f_to_kind(Kind::Int64)?, 0.0)?;

    // ITG: each row of the decoder predicts the next token. `[B, T, V]`.
    let hidden = step.hidden.as_ref().expect("with ALL_ROWS");
    let logits = model.lm_logits(&hidden.itg)?.f_narrow(1, 0, TOKENS - 1)?;
    let next = token_ids.f_narrow(1, 1, TOKENS - 1)?;
    let lm = cross_entropy(&logits.f_flatten(0, 1)?, &next.f_flatten(0, 1)?, smoothing)?;

    for (name, loss, again) in [
        ("itc", &step.loss_itc, itc),
        ("itm", &step.loss_itm, itm),
        ("lm", &step.loss_lm, lm),
    ] {
        let again = again.f_double_value(&[])?;
        println!("{name}\t{}\t{again}", loss.f_double_value(&[])?);
    }
    step.loss.f_backward()?;
    println!("total\t{}", step.loss.f_double_value(&[])?);
    Ok(())
}
