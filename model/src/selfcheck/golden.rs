//! The device against numbers of the reference implementation, from the files `golden_a` (a step) and
//! `golden_traj` (steps of AdamW): see `QF_GOLDEN` in the tests.

use std::collections::HashMap;
use std::path::Path;

use qf_config::model::{FeaturesConfig, ModelConfig, QformerConfig, VisionConfig};
use serde_json::Value;
use tch::{Device, Tensor};

use super::check::{Bench, Fault, NotOk, ADVICE};
use super::compare::{norm, on_host, Comparison, F32};
use super::reference::is_zero_gradient;
use crate::blip2::{Blip2Qformer, NegativeSampling, StepInput, StepOutput};
use crate::collective::SingleProcess;
use crate::optim::{AdamW, AdamWConfig};
use crate::params::LoadScope;
use crate::weights::read_safetensors;

type Tensors = HashMap<String, Tensor>;

/// A golden file: numbers by name, and tensors.
struct Golden {
    json: Value,
    tensors: Tensors,
}

impl Golden {
    fn read(folder: &Path, name: &str) -> Result<Golden, Fault> {
        let path = folder.join(format!("{name}.json"));
        let fault = |got: String| Fault {
            what: path.display().to_string(),
            got,
            expected: "a golden file".into(),
            advice: "give --golden a folder with golden_a and golden_traj, .json and .safetensors"
                .into(),
        };
        let text = std::fs::read(&path).map_err(|error| fault(error.to_string()))?;
        Ok(Golden {
            json: serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?,
            tensors: read_safetensors(&folder.join(format!("{name}.safetensors")))?,
        })
    }

    fn number(&self, path: &[&str]) -> Result<f64, Fault> {
        let mut at = &self.json;
        for key in path {
            at = &at[*key];
        }
        at.as_f64().ok_or_else(|| missing(&path.join(".")))
    }

    fn size(&self, key: &str) -> Result<i64, Fault> {
        Ok(self.number(&["config", key])? as i64)
    }

    fn tensor(&self, name: &str, device: Device) -> Result<Tensor, Fault> {
        let tensor = self.tensors.get(name).ok_or_else(|| missing(name))?;
        Ok(tensor.f_to_device(device)?)
    }

    /// The model of this file's sizes with the parameters of `from`.
    fn model(&self, from: &Tensors, device: Device) -> Result<Blip2Qformer, Fault> {
        let width = self.size("enc_width")?;
        let or = |key: &str, default: f64| self.json[key].as_f64().unwrap_or(default);
        let config = ModelConfig {
            vision: VisionConfig::Features(FeaturesConfig { width }),
            qformer: QformerConfig {
                hidden: self.size("hidden")?,
                layers: self.size("layers")?,
                heads: self.size("heads")?,
                intermediate: self.size("inter")?,
                cross_attention_freq: self.size("cross_freq")?,
                num_queries: self.size("n_query")?,
                encoder_width: width,
                vocab_size: self.size("vocab")?,
                max_positions: self.size("max_pos")?,
                dropout: self.number(&["config", "dropout"])?,
                embed_dim: self.size("embed_dim")?,
                eps: or("ln_eps", 1e-12),
                ln_vision_eps: or("ln_vision_eps", 1e-5),
                label_smoothing: or("label_smoothing", 0.1),
                dec_token_id: self.size("dec_id")?,
                pad_token_id: self.size("pad_id")?,
                ..ModelConfig::vit_g().qformer
            },
        };
        let mut model = Blip2Qformer::new(&config, device, 0)?;
        let params = from.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix("param.")?;
            Some((name.to_owned(), tensor.shallow_clone()))
        });
        let params: Tensors = params.collect();
        model.params_mut().load(&params, "golden", LoadScope::All)?;
        Ok(model)
    }
}

fn missing(name: &str) -> Fault {
    Fault {
        what: "a golden file".into(),
        got: format!("no `{name}`"),
        expected: "one".into(),
        advice: "take the files as they were written".into(),
    }
}

pub(super) fn reference(bench: &mut Bench) -> Result<(), NotOk> {
    let Some(folder) = bench.golden.clone() else {
        return Err(NotOk::Skipped("no folder was given (--golden DIR)".into()));
    };
    let step = Golden::read(&folder, "golden_a")?;
    let mut comparison = Comparison::new(F32);
    one_step(&step, bench.device, &mut comparison)?;
    let trajectory = Golden::read(&folder, "golden_traj")?;
    let steps = several_steps(&trajectory, &step.tensors, bench.device, &mut comparison)?;
    super::step::note(bench, &comparison);
    bench.note("steps", steps);
    bench.note("worst_loss_error_of_steps", comparison.worst_trajectory);
    Ok(comparison.end()?)
}

fn forward(
    golden: &Golden,
    model: &Blip2Qformer,
    prefix: &str,
    [images, texts]: [&str; 2],
) -> Result<StepOutput, Fault> {
    let device = model.params().device();
    let input = |name: &str| golden.tensor(&format!("{prefix}{name}"), device);
    let (ids, mask) = (input("input_ids")?, input("attention_mask")?);
    let features = model.encode_image(&input("vit_output")?)?;
    let input = StepInput {
        image_embeds: &features,
        token_ids: &ids,
        attention_mask: &mask,
        image_ids: None,
    };
    let negatives = NegativeSampling::Given {
        image_idx: &golden.tensor(images, device)?,
        text_idx: &golden.tensor(texts, device)?,
    };
    Ok(model.forward_losses(&input, negatives, &SingleProcess, true)?)
}

fn one_step(golden: &Golden, device: Device, comparison: &mut Comparison) -> Result<(), Fault> {
    let model = golden.model(&golden.tensors, device)?;
    let output = forward(golden, &model, "input.", ["neg.image_idx", "neg.text_idx"])?;
    output.loss.f_backward()?;
    let expected = |name: &str| golden.tensor(&format!("out.{name}"), Device::Cpu);
    for (name, got) in [
        ("loss", &output.loss),
        ("loss_itc", &output.loss_itc),
        ("loss_itm", &output.loss_itm),
        ("loss_lm", &output.loss_lm),
    ] {
        let (got, expected) = (
            got.f_double_value(&[])?,
            expected(name)?.f_double_value(&[])?,
        );
        comparison.loss(&format!("golden_a: {name}"), got, expected);
    }
    for (name, got) in [
        ("image_feats", &output.image_feats),
        ("text_feat", &output.text_feat),
        ("sim_i2t", &output.sim_i2t),
        ("sim_t2i", &output.sim_t2i),
        ("weights_i2t", &output.weights_i2t),
        ("weights_t2i", &output.weights_t2i),
        ("itm_logits", &output.itm_logits),
    ] {
        comparison.output(&format!("golden_a: {name}"), got, &expected(name)?)?;
    }
    for param in model.params().trainable() {
        let (got, expected) = (
            param.tensor.f_grad()?,
            golden.tensors.get(&format!("grad.{}", param.name)),
        );
        let what = format!("golden_a: {}", param.name);
        match (got.defined(), expected) {
            (true, Some(expected)) => {
                let is_zero = is_zero_gradient(&param.name);
                comparison.gradient(&what, &got, expected, is_zero, 1.0)?;
            }
            (false, None) => {}
            // What the reference's loss does not reach has a gradient of zeros there or none.
            (false, Some(expected)) if norm(&on_host(expected)?)? == 0.0 => {}
            (true, None) if norm(&on_host(&got)?)? == 0.0 => {}
            _ => {
                return Err(Fault {
                    what,
                    got: "a gradient on one side alone".into(),
                    expected: "one on both, or none".into(),
                    advice: ADVICE.into(),
                });
            }
        }
    }
    Ok(())
}

/// Steps at the reference's rates, from the parameters of golden_a; compares the losses of each.
fn several_steps(
    golden: &Golden,
    start: &Tensors,
    device: Device,
    comparison: &mut Comparison,
) -> Result<u64, Fault> {
    let model = golden.model(start, device)?;
    let betas = &golden.json["hyper"]["betas"];
    let beta = |index: usize| betas[index].as_f64().ok_or_else(|| missing("hyper.betas"));
    let config = AdamWConfig {
        beta1: beta(0)?,
        beta2: beta(1)?,
        eps: golden.number(&["hyper", "eps"])?,
        weight_decay: golden.number(&["hyper", "weight_decay"])?,
        ..AdamWConfig::default()
    };
    let mut optimizer = AdamW::new(model.params(), &config)?;
    let steps = golden.json["steps"].as_array();
    let steps = steps.ok_or_else(|| missing("steps"))?;
    for (number, expected) in steps.iter().enumerate() {
        let prefix = format!("step{number}.");
        let negatives = [
            format!("{prefix}neg_image_idx"),
            format!("{prefix}neg_text_idx"),
        ];
        let output = forward(golden, &model, &prefix, [&negatives[0], &negatives[1]])?;
        optimizer.zero_grad()?;
        output.loss.f_backward()?;
        let value = |key: &str| expected[key].as_f64().ok_or_else(|| missing(key));
        optimizer.step(value("lr")?)?;
        for (name, got) in [
            ("loss_itc", &output.loss_itc),
            ("loss_itm", &output.loss_itm),
            ("loss_lm", &output.loss_lm),
        ] {
            let what = format!("golden_traj: {name} of step {number}");
            comparison.trajectory(&what, got.f_double_value(&[])?, value(name)?);
        }
    }
    Ok(steps.len() as u64)
}
