//! The model against numbers of the reference implementations.
//!
//! Reads every `golden_*.json` of the folder `QF_GOLDEN` (default: `golden` of the test data) and prints one line a file. Sizes come from the files; files of a known layout under
//! other names are run too. Tolerances are those of the folder's README.
//!
//! The model computes on `QF_DEVICE` (default: `cpu`). The tolerances are those for 32 bits, and the
//! same on a GPU, where TF32 is off. These tests need nothing but the folder, so their program runs
//! by itself on another machine with libtorch: `QF_GOLDEN=folder QF_DEVICE=cuda all golden`. A folder
//! that is named so may hold some of the files; tests of others are skipped.

/// Networks of the published size.
mod full_size;
/// Files of Hugging Face models.
mod hugging_face;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier, Mutex, OnceLock};

use qf_model::config::{FeaturesConfig, ModelConfig, QformerConfig, VisionConfig};
use qf_model::device::{open_device, DeviceChoice};
use qf_model::loss::itc::Targets;
use qf_model::vision::{interpolate_positions, PositionInterpolation};
use qf_model::weights::{load_into, read_config, read_safetensors, Absent, Part, WeightsFile};
use qf_model::{
    AdamW, AdamWConfig, Blip2Qformer, Collective, ComputeOptions, LoadScope, ModelError,
    NegativeSampling, Rates, Schedule, SingleProcess, StepInput, StepOutput,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::test_data;

const OUTPUT_TOLERANCE: f64 = 1e-5;
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// For gradients that are zero in exact arithmetic, absolute.
const ZERO_GRADIENT_TOLERANCE: f64 = 1e-6;
const FULL_TOLERANCE: f64 = 1e-4;
const FULL_GRADIENT_TOLERANCE: f64 = 1e-3;
const TRAJECTORY_TOLERANCE: f64 = 1e-4;

pub(crate) type Tensors = HashMap<String, Tensor>;

// ---------------------------------------------------------------- files

/// The folder of golden files, or `None` (after a word) where there is none and none is demanded.
#[allow(clippy::disallowed_methods)] // A test's settings come from the environment.
pub(crate) fn folder(test: &str) -> Option<PathBuf> {
    // Before any test of this program uses libtorch.
    let _ = device();
    let Some(named) = std::env::var_os("QF_GOLDEN").map(PathBuf::from) else {
        return test_data::find(test, "golden");
    };
    if named.is_dir() {
        return Some(named);
    }
    test_data::missing(test, &format!("no folder {}", named.display()));
    None
}

/// Where the models of these tests compute.
#[allow(clippy::disallowed_methods)] // As above.
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| match std::env::var("QF_DEVICE") {
        Ok(name) => open_device(name.parse::<DeviceChoice>().unwrap()).unwrap(),
        Err(_) => Device::Cpu,
    })
}

/// Whether the folder need not hold everything: it was named for this run, or is the selection that
/// is part of the repository.
#[allow(clippy::disallowed_methods)] // As above.
fn may_be_partial(folder: &Path) -> bool {
    let is_named = std::env::var_os("QF_GOLDEN").is_some();
    (is_named || folder.starts_with(test_data::committed())) && !test_data::is_required()
}

/// A file or folder of the golden folder; `None` where it is missing and may be.
fn part_of(folder: &Path, name: &str, test: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    if path.exists() || !may_be_partial(folder) {
        return Some(path);
    }
    test_data::skip(test, &format!("no {name} in {}", folder.display()));
    None
}

/// Prints past the test harness, which swallows the output of tests that pass.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) struct Golden {
    pub(crate) name: String,
    folder: PathBuf,
    json: Value,
}

impl Golden {
    pub(crate) fn tensors(&self) -> Tensors {
        read_safetensors(&self.folder.join(format!("{}.safetensors", self.name))).unwrap()
    }

    pub(crate) fn size(&self, key: &str) -> i64 {
        self.json["config"][key]
            .as_i64()
            .unwrap_or_else(|| panic!("{}: no config.{key}", self.name))
    }
}

/// The golden files whose JSON satisfies `is_layout`; at least one, unless the folder may be partial.
pub(crate) fn goldens(
    test: &str,
    folder: &Path,
    is_layout: impl Fn(&Value) -> bool,
) -> Vec<Golden> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        if !is_json || !name.starts_with("golden_") {
            continue;
        }
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if is_layout(&json) {
            found.push(Golden {
                name,
                folder: folder.to_owned(),
                json,
            });
        }
    }
    if found.is_empty() && may_be_partial(folder) {
        test_data::skip(test, &format!("no such file in {}", folder.display()));
        return found;
    }
    assert!(!found.is_empty(), "no such file in {}", folder.display());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// `golden_a`'s layout: one process, parameters, inputs, drawn negatives, outputs and gradients.
fn is_step(json: &Value) -> bool {
    json["neg"]["neg_image_idx"].is_array()
        && json["param_order"].is_array()
        && json["formula"].is_null()
}

fn is_full_size(json: &Value) -> bool {
    json["formula"].is_string()
}

fn is_trajectory(json: &Value) -> bool {
    json["steps"].is_array() && json["hyper"].is_object()
}

pub(crate) fn is_several_ranks(json: &Value) -> bool {
    json["config"]["world"].is_i64()
}

const BERT: Part = Part::Bert {
    fresh_head: false,
    fold_token_types: false,
};

fn is_processing(json: &Value) -> bool {
    json["caption"].is_array()
}

fn model_config(golden: &Golden) -> ModelConfig {
    let width = golden.size("enc_width");
    let number = |key: &str, default: f64| golden.json[key].as_f64().unwrap_or(default);
    ModelConfig {
        vision: VisionConfig::Features(FeaturesConfig { width }),
        qformer: QformerConfig {
            hidden: golden.size("hidden"),
            layers: golden.size("layers"),
            heads: golden.size("heads"),
            intermediate: golden.size("inter"),
            cross_attention_freq: golden.size("cross_freq"),
            num_queries: golden.size("n_query"),
            encoder_width: width,
            vocab_size: golden.size("vocab"),
            max_positions: golden.size("max_pos"),
            dropout: golden.json["config"]["dropout"].as_f64().unwrap(),
            embed_dim: golden.size("embed_dim"),
            eps: number("ln_eps", 1e-12),
            ln_vision_eps: number("ln_vision_eps", 1e-5),
            init_std: 0.02,
            label_smoothing: number("label_smoothing", 0.1),
            dec_token_id: golden.size("dec_id"),
            pad_token_id: golden.size("pad_id"),
            ..ModelConfig::vit_g().qformer
        },
    }
}

/// A model on `device` with the parameters that `tensors` holds under `param.`.
pub(crate) fn load_model(golden: &Golden, tensors: &Tensors, device: Device) -> Blip2Qformer {
    let mut model = Blip2Qformer::new(&model_config(golden), device, 0).unwrap();
    let params = under(tensors, "param.");
    model
        .params_mut()
        .load(&params, &golden.name, LoadScope::All)
        .unwrap();
    model
}

/// The tensors whose name starts with `prefix`, by the rest of the name.
pub(crate) fn under(tensors: &Tensors, prefix: &str) -> Tensors {
    tensors
        .iter()
        .filter_map(|(name, tensor)| {
            let rest = name.strip_prefix(prefix)?;
            Some((rest.to_owned(), tensor.shallow_clone()))
        })
        .collect()
}

// ---------------------------------------------------------------- comparison

/// Collects what one file's comparison found.
pub(crate) struct Line {
    name: String,
    compared: usize,
    worst_output: f64,
    worst_loss: f64,
    worst_gradient: f64,
    problems: Vec<String>,
}

impl Line {
    pub(crate) fn new(name: &str) -> Line {
        Line {
            name: name.to_owned(),
            compared: 0,
            worst_output: 0.0,
            worst_loss: 0.0,
            worst_gradient: 0.0,
            problems: Vec::new(),
        }
    }

    /// Notes one error; a NaN is one too.
    fn note(&mut self, what: &str, error: f64, tolerance: f64) {
        self.compared += 1;
        if error.is_nan() || error > tolerance {
            self.problems
                .push(format!("{what}: {error:.2e} beyond {tolerance:.0e}"));
        }
    }

    fn output(&mut self, what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
        if got.size() != expected.size() {
            let (got, expected) = (got.size(), expected.size());
            self.problems
                .push(format!("{what}: shape {got:?}, not {expected:?}"));
            return;
        }
        if expected.kind() == Kind::Int64 {
            let (got, expected) = (got.to_device(Device::Cpu), expected.to_device(Device::Cpu));
            let differ = got.ne_tensor(&expected).any().int64_value(&[]);
            self.note(what, differ as f64, 0.0);
            return;
        }
        let difference = largest(&(double(got) - double(expected)));
        let error = difference / largest(&double(expected)).max(f64::MIN_POSITIVE);
        self.worst_output = self.worst_output.max(error);
        self.note(what, error, tolerance);
    }

    fn loss(&mut self, what: &str, got: f64, expected: f64, tolerance: f64) {
        let error = (got - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
        self.worst_loss = self.worst_loss.max(error);
        self.note(what, error, tolerance);
    }

    /// `got` is undefined for a parameter that the loss does not reach; `expected` is not there for
    /// one that the reference's loss did not reach.
    pub(crate) fn gradient(&mut self, what: &str, got: &Tensor, expected: Option<&Tensor>) {
        let expected_norm = expected.map_or(0.0, norm);
        if !got.defined() {
            self.note(what, expected_norm, ZERO_GRADIENT_TOLERANCE);
            return;
        }
        match expected {
            // Softmax does not change when all keys move alike.
            Some(expected) if !is_key_bias(what) && expected_norm > 0.0 => {
                let error = norm(&(double(got) - double(expected))) / expected_norm;
                self.worst_gradient = self.worst_gradient.max(error);
                self.note(what, error, GRADIENT_TOLERANCE);
            }
            Some(expected) => {
                let error = largest(&(double(got) - double(expected)));
                self.note(what, error, ZERO_GRADIENT_TOLERANCE);
            }
            None => self.note(what, largest(&double(got)), ZERO_GRADIENT_TOLERANCE),
        }
    }

    pub(crate) fn finish(self) {
        say(&format!(
            "golden {}: {} quantities; worst relative error: outputs {:.1e}, losses {:.1e}, gradients {:.1e}",
            self.name, self.compared, self.worst_output, self.worst_loss, self.worst_gradient
        ));
        let problems = self.problems.join("\n  ");
        assert!(self.problems.is_empty(), "{}:\n  {problems}", self.name);
    }
}

fn is_key_bias(name: &str) -> bool {
    name.ends_with(".self.key.bias")
}

/// In 64 bits on the host, where errors are computed.
fn double(tensor: &Tensor) -> Tensor {
    let host = tensor.detach().to_device(Device::Cpu);
    host.to_kind(Kind::Double)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

fn norm(tensor: &Tensor) -> f64 {
    double(tensor)
        .square()
        .sum(Kind::Double)
        .sqrt()
        .double_value(&[])
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.double_value(&[])
}

fn numbers(json: &Value) -> Tensor {
    let flat: Vec<f64> = match json.as_array() {
        Some(rows) => rows
            .iter()
            .flat_map(|row| Vec::<f64>::try_from(numbers(row).view(-1)).unwrap())
            .collect(),
        None => vec![json.as_f64().unwrap()],
    };
    Tensor::from_slice(&flat)
}

// ---------------------------------------------------------------- steps

/// Inputs of one rank's step.
pub(crate) struct Step {
    pub(crate) vit_output: Tensor,
    token_ids: Tensor,
    attention_mask: Tensor,
    negative_images: Tensor,
    negative_texts: Tensor,
}

impl Step {
    /// On `device`: inputs under `input`, and the names of the negatives.
    pub(crate) fn new(
        tensors: &Tensors,
        input: &str,
        [image_idx, text_idx]: [&str; 2],
        device: Device,
    ) -> Step {
        let tensor = |name: &str| tensors[name].to_device(device);
        Step {
            vit_output: tensor(&format!("{input}vit_output")),
            token_ids: tensor(&format!("{input}input_ids")),
            attention_mask: tensor(&format!("{input}attention_mask")),
            negative_images: tensor(image_idx),
            negative_texts: tensor(text_idx),
        }
    }

    /// The step's output; `images` is `self.vit_output`, or a leaf with its values.
    pub(crate) fn run(
        &self,
        model: &Blip2Qformer,
        images: &Tensor,
        ranks: &dyn Collective,
    ) -> StepResult {
        let image_embeds = model.encode_image(images).unwrap();
        let input = StepInput {
            image_embeds: &image_embeds,
            token_ids: &self.token_ids,
            attention_mask: &self.attention_mask,
            image_ids: None,
        };
        let negatives = NegativeSampling::Given {
            image_idx: &self.negative_images,
            text_idx: &self.negative_texts,
        };
        // Training mode: the goldens have dropout 0.
        let output = model
            .forward_losses(&input, negatives, ranks, true)
            .unwrap();
        let lm_logits = output
            .hidden
            .as_ref()
            .map(|hidden| model.lm_logits(&hidden.itg).unwrap());
        StepResult {
            image_embeds: model.image_embeds(&image_embeds).unwrap(),
            lm_logits,
            output,
        }
    }
}

/// Every golden step is taken twice: with all rows of the reference, and without what no loss
/// depends on. Of the second, these are no outputs.
pub(crate) const COMPUTE: [(&str, ComputeOptions); 2] = [
    ("all rows", ComputeOptions::ALL_ROWS),
    (
        "needed rows",
        ComputeOptions {
            skip_padding: true,
            skip_unread: true,
        },
    ),
];
const OF_ALL_ROWS: [&str; 5] = [
    "hidden_image",
    "hidden_text",
    "hidden_itm",
    "hidden_itg",
    "lm_logits",
];

pub(crate) struct StepResult {
    image_embeds: Tensor,
    /// With all rows computed.
    lm_logits: Option<Tensor>,
    pub(crate) output: StepOutput,
}

impl StepResult {
    /// Compares everything in `expected`, which is named as in the files' `out.*`.
    pub(crate) fn compare(&self, line: &mut Line, expected: &Tensors) {
        let output = &self.output;
        let Targets::Index(targets) = &output.targets else {
            panic!("targets by image without image ids");
        };
        let mut quantities = vec![
            ("image_embeds", &self.image_embeds),
            ("image_feats", &output.image_feats),
            ("text_feat", &output.text_feat),
            ("sim_i2t", &output.sim_i2t),
            ("sim_t2i", &output.sim_t2i),
            ("weights_i2t", &output.weights_i2t),
            ("weights_t2i", &output.weights_t2i),
            ("targets", targets),
            ("itm_logits", &output.itm_logits),
            ("itm_labels", &output.itm_labels),
        ];
        if let (Some(hidden), Some(lm_logits)) = (&output.hidden, &self.lm_logits) {
            quantities.extend([
                ("hidden_image", &hidden.image),
                ("hidden_text", &hidden.text),
                ("hidden_itm", &hidden.itm),
                ("hidden_itg", &hidden.itg),
                ("lm_logits", lm_logits),
            ]);
        }
        let losses = [
            ("loss", &output.loss),
            ("loss_itc", &output.loss_itc),
            ("loss_i2t", &output.loss_i2t),
            ("loss_t2i", &output.loss_t2i),
            ("loss_itm", &output.loss_itm),
            ("loss_lm", &output.loss_lm),
        ];
        for (name, expected) in expected {
            let named = |(known, _): &&(&str, &Tensor)| *known == name.as_str();
            if let Some((_, got)) = quantities.iter().find(named) {
                line.output(name, got, expected, OUTPUT_TOLERANCE);
            } else if let Some((_, got)) = losses.iter().find(named) {
                line.loss(name, scalar(got), scalar(expected), LOSS_TOLERANCE);
            } else if output.hidden.is_some() || !OF_ALL_ROWS.contains(&name.as_str()) {
                line.problems.push(format!("out.{name} is not compared"));
            }
        }
    }
}

fn zero_grad(model: &Blip2Qformer) {
    for param in model.params().named_parameters() {
        param.tensor.shallow_clone().zero_grad();
    }
}

fn check_param_order(model: &Blip2Qformer, json: &Value) {
    let order = model
        .params()
        .named_parameters()
        .iter()
        .map(|p| p.name.as_str());
    let expected = json["param_order"].as_array().unwrap();
    assert!(order.eq(expected.iter().map(|name| name.as_str().unwrap())));
}

#[test]
fn golden_steps() {
    let Some(folder) = folder("golden_steps") else {
        return;
    };
    for golden in goldens("golden_steps", &folder, is_step) {
        let tensors = golden.tensors();
        let mut model = load_model(&golden, &tensors, device());
        check_param_order(&model, &golden.json);
        let negatives = ["neg.image_idx", "neg.text_idx"];
        let step = Step::new(&tensors, "input.", negatives, device());
        let outputs = under(&tensors, "out.");
        assert!(outputs.len() > 15);
        for (label, compute) in COMPUTE {
            model.set_compute(compute);
            let mut line = Line::new(&format!("{} ({label})", golden.name));
            for (prefix, is_total) in [
                ("grad.", true),
                ("grad_itc.", false),
                ("grad_itm.", false),
                ("grad_lm.", false),
            ] {
                // As training does it: a fresh forward pass, gradients from zero, one backward pass.
                zero_grad(&model);
                let images = step.vit_output.copy().set_requires_grad(true);
                let result = step.run(&model, &images, &SingleProcess);
                let loss = match prefix {
                    "grad." => &result.output.loss,
                    "grad_itc." => &result.output.loss_itc,
                    "grad_itm." => &result.output.loss_itm,
                    _ => &result.output.loss_lm,
                };
                loss.backward();
                if is_total {
                    result.compare(&mut line, &outputs);
                    let expected = tensors.get("grad.input.vit_output");
                    line.gradient("grad.input.vit_output", &images.grad(), expected);
                }
                for param in model.params().named_parameters() {
                    let name = format!("{prefix}{}", param.name);
                    line.gradient(&name, &param.tensor.grad(), tensors.get(&name));
                }
            }
            line.finish();
        }
    }
}

// ---------------------------------------------------------------- trajectory

#[test]
fn golden_trajectories() {
    let Some(folder) = folder("golden_trajectories") else {
        return;
    };
    for golden in goldens("golden_trajectories", &folder, is_trajectory) {
        let (json, hyper) = (&golden.json, &golden.json["hyper"]);
        let tensors = golden.tensors();
        // "param.* of FILE"
        let start = json["start"].as_str().unwrap().rsplit(' ').next().unwrap();
        let start = read_safetensors(&folder.join(start)).unwrap();
        let model = load_model(&golden, &start, device());

        let number = |key: &str| hyper[key].as_f64().unwrap();
        let config = AdamWConfig {
            beta1: hyper["betas"][0].as_f64().unwrap(),
            beta2: hyper["betas"][1].as_f64().unwrap(),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(model.params(), &config).unwrap();
        let expected_groups = json["groups"].as_array().unwrap();
        assert_eq!(expected_groups.len(), 2);
        for (group, expected) in optimizer.groups().iter().zip(expected_groups) {
            assert_eq!(
                group.weight_decay,
                expected["weight_decay"].as_f64().unwrap()
            );
            assert_eq!(&group.names, expected["names"].as_array().unwrap());
        }
        let schedule = Schedule::EpochCosine(Rates {
            init_lr: number("init_lr"),
            min_lr: number("min_lr"),
            warmup_lr: number("warmup_lr"),
            warmup_steps: hyper["warmup_steps"].as_u64().unwrap(),
        });
        let steps_per_epoch = hyper["iters_per_epoch"].as_u64().unwrap();
        let total_steps = hyper["max_epoch"].as_u64().unwrap() * steps_per_epoch;

        let mut line = Line::new(&golden.name);
        let mut sum_of_rates = 0.0;
        for (index, expected) in json["steps"].as_array().unwrap().iter().enumerate() {
            let number = |key: &str| expected[key].as_f64().unwrap();
            let lr = schedule.lr(index as u64, total_steps, steps_per_epoch);
            line.loss(&format!("step {index} lr"), lr, number("lr"), 1e-12);
            sum_of_rates += lr;

            let prefix = format!("step{index}.");
            let image_idx = format!("{prefix}neg_image_idx");
            let text_idx = format!("{prefix}neg_text_idx");
            let step = Step::new(&tensors, &prefix, [&image_idx, &text_idx], device());
            let result = step.run(&model, &step.vit_output, &SingleProcess);
            optimizer.zero_grad().unwrap();
            result.output.loss.backward();
            let square = |param: &qf_model::params::Param| norm(&param.tensor.grad()).powi(2);
            let gradient_norm = model.params().trainable().map(square).sum::<f64>().sqrt();
            optimizer.step(lr).unwrap();

            let output = &result.output;
            let temp = &model.params().get("temp").unwrap().tensor;
            for (name, got) in [
                ("loss", scalar(&output.loss)),
                ("loss_itc", scalar(&output.loss_itc)),
                ("loss_itm", scalar(&output.loss_itm)),
                ("loss_lm", scalar(&output.loss_lm)),
                ("grad_norm", gradient_norm),
                ("temp_after", scalar(temp)),
            ] {
                let what = format!("step {index} {name}");
                line.loss(&what, got, number(name), TRAJECTORY_TOLERANCE);
            }
        }
        for param in model.params().named_parameters() {
            let expected = &tensors[&format!("final.{}", param.name)];
            let difference = double(&param.tensor) - double(expected);
            if is_key_bias(&param.name) {
                // Its gradient is round-off, which AdamW scales up to steps of at most about `lr`
                // in either direction: two correct runs differ by that much.
                let error = largest(&difference) / (2.0 * sum_of_rates);
                line.note(&param.name, error, 1.05);
            } else {
                let error = norm(&difference) / norm(expected);
                line.worst_output = line.worst_output.max(error);
                line.note(&param.name, error, TRAJECTORY_TOLERANCE);
            }
        }
        line.finish();
    }
}

// ---------------------------------------------------------------- several ranks

/// Ranks as threads of one process: what is gathered keeps one graph through all of them, so that a
/// backward pass from the sum of their losses sums gradients over ranks as a collective would.
pub(crate) struct ThreadRank {
    pub(crate) rank: usize,
    pub(crate) shared: Arc<Rendezvous>,
}

pub(crate) struct Rendezvous {
    slots: Mutex<Vec<Option<Tensor>>>,
    barrier: Barrier,
}

impl Rendezvous {
    pub(crate) fn new(world: usize) -> Arc<Rendezvous> {
        Arc::new(Rendezvous {
            slots: Mutex::new((0..world).map(|_| None).collect()),
            barrier: Barrier::new(world),
        })
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> i64 {
        self.rank as i64
    }

    fn world_size(&self) -> i64 {
        self.shared.slots.lock().unwrap().len() as i64
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.all_gather_with_grad(tensor)?.detach())
    }

    fn all_gather_with_grad(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        self.shared.slots.lock().unwrap()[self.rank] = Some(tensor.shallow_clone());
        self.shared.barrier.wait();
        let all: Vec<Tensor> = {
            let slots = self.shared.slots.lock().unwrap();
            slots.iter().flatten().map(Tensor::shallow_clone).collect()
        };
        // No rank may put in its next tensor before all have taken this one.
        self.shared.barrier.wait();
        Ok(Tensor::f_cat(&all, 0)?)
    }
}

#[test]
fn golden_several_ranks() {
    let Some(folder) = folder("golden_several_ranks") else {
        return;
    };
    let all = goldens("golden_several_ranks", &folder, is_several_ranks);
    for (golden, (label, compute)) in all.iter().flat_map(|g| COMPUTE.map(|c| (g, c))) {
        let tensors = golden.tensors();
        let world = golden.size("world") as usize;
        let shared = Rendezvous::new(world);
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                let mut model = load_model(golden, &tensors, device());
                model.set_compute(compute);
                let negatives = ["image", "text"].map(|of| format!("r{rank}.neg.{of}_idx"));
                let step = Step::new(
                    &tensors,
                    &format!("r{rank}.input."),
                    [&negatives[0], &negatives[1]],
                    device(),
                );
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let images = step.vit_output.copy().set_requires_grad(true);
                    let result = step.run(&model, &images, &ThreadRank { rank, shared });
                    (model, images, result)
                })
            })
            .collect();
        let ranks: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let losses: Vec<_> = ranks
            .iter()
            .map(|(_, _, result)| &result.output.loss)
            .collect();
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();

        let mut line = Line::new(&format!("{} ({label})", golden.name));
        for (rank, (_, images, result)) in ranks.iter().enumerate() {
            result.compare(&mut line, &under(&tensors, &format!("r{rank}.out.")));
            let name = format!("r{rank}.grad.input.vit_output");
            line.gradient(&name, &images.grad(), Some(&tensors[&name]));
        }
        for param in ranks[0].0.params().named_parameters() {
            let gradients: Vec<_> = ranks
                .iter()
                .map(|(model, _, _)| model.params().get(&param.name).unwrap().tensor.grad())
                .collect();
            let mean = Tensor::stack(&gradients, 0).mean_dim([0i64].as_slice(), false, None);
            let name = format!("grad.{}", param.name);
            line.gradient(&name, &mean, Some(&tensors[&name]));
        }
        line.finish();
    }
}
