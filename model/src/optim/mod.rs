//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) as `torch.optim.AdamW` computes it, with the
//! reference's two parameter groups.

mod owners;
mod shard;

use std::collections::{HashMap, HashSet};

use tch::{Device, Kind, Tensor};

use crate::collective::{Ranks, SingleProcess};
use crate::error::ModelError;
use crate::ops::{self, AdamWStep, AdamWTensors, Rate};
use crate::params::{misfit, unexpected, Param, ParamStore};
pub use qf_config::optimizer::AdamWConfig;

/// Parameters that share a weight decay.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// What [`AdamWConfig::weight_decay`] means for them.
    pub weight_decay: f64,
    /// Their names, in order of declaration.
    pub names: Vec<String>,
}

/// The optimiser and its moments.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    entries: Vec<Entry>,
    /// Whether other ranks keep some of the state.
    is_sharded: bool,
}

#[derive(Debug)]
struct Entry {
    param: Param,
    decays: bool,
    /// Factor of the learning rate.
    rate: f64,
    /// The rank that makes this parameter's step.
    owner: i64,
    /// None where the owner is another rank.
    moments: Option<Moments>,
}

/// What the optimiser remembers of a parameter.
#[derive(Debug)]
struct Moments {
    /// f32 scalar: steps in which the parameter had a gradient.
    step: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Moving average of the values.
    ema: Option<Tensor>,
}

/// Names of a parameter's moments; the last only where averages are kept.
const MOMENTS: [&str; 3] = ["exp_avg", "exp_avg_sq", "ema"];

impl Moments {
    fn new(values: &Tensor, keeps_average: bool) -> Result<Moments, ModelError> {
        let average = keeps_average.then(|| values.f_detach_copy());
        Ok(Moments {
            step: Tensor::f_zeros([], (Kind::Float, values.device()))?,
            exp_avg: values.f_zeros_like()?,
            exp_avg_sq: values.f_zeros_like()?,
            ema: average.transpose()?,
        })
    }

    /// In the order of [`MOMENTS`].
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.exp_avg, &self.exp_avg_sq]
            .into_iter()
            .chain(&self.ema)
    }
}

/// A tensor of the optimiser's state as a checkpoint holds it.
#[derive(Debug)]
pub(crate) struct StatePart {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) kind: Kind,
    /// The rank that keeps it.
    pub(crate) owner: i64,
    /// Its values, where that is this one.
    pub(crate) value: Option<Tensor>,
}

/// Whether weight decay acts on a parameter: not on vectors nor biases. A scalar is neither, so
/// that the temperature decays, as in the reference, unless it is not to.
fn decays(param: &Param, config: &AdamWConfig) -> bool {
    let spared = !config.decay_temperature && param.tensor.dim() == 0;
    param.tensor.dim() != 1 && !param.name.ends_with(".bias") && !spared
}

/// The block of the vision tower that a parameter belongs to; none outside of the tower, `Some(None)`
/// for what comes before the blocks.
fn tower_block(name: &str) -> Option<Option<i32>> {
    let inside = name.strip_prefix("visual_encoder.")?;
    let block = ["blocks.", "transformer.resblocks."]
        .iter()
        .find_map(|prefix| inside.strip_prefix(prefix))
        .and_then(|rest| rest.split('.').next()?.parse().ok());
    Some(block)
}

/// The factor of a parameter's learning rate in a tower of `depth` blocks.
fn rate(name: &str, depth: i32, layer_decay: f64) -> f64 {
    match tower_block(name) {
        Some(Some(block)) => layer_decay.powi(depth - block),
        Some(None) => layer_decay.powi(depth + 1),
        None => 1.0,
    }
}

impl AdamW {
    /// An optimiser of all trainable parameters of `params`, moments zero.
    ///
    /// # Errors
    /// [`ModelError::Config`] for settings out of range.
    pub fn new(params: &ParamStore, config: &AdamWConfig) -> Result<AdamW, ModelError> {
        AdamW::for_rank(params, config, &SingleProcess)
    }

    /// The same for one of several ranks, which all have parameters of these names and shapes. With
    /// [`AdamWConfig::shard_state`] it keeps the state of its share of them, moves these alone, and
    /// [`share_parameters`](Self::share_parameters) is to follow every step.
    ///
    /// # Errors
    /// As [`AdamW::new`].
    pub fn for_rank(
        params: &ParamStore,
        config: &AdamWConfig,
        ranks: &dyn Ranks,
    ) -> Result<AdamW, ModelError> {
        config.validate()?;
        let blocks = params
            .named_parameters()
            .iter()
            .filter_map(|p| tower_block(&p.name)?);
        let depth = blocks.max().map_or(0, |last| last + 1);
        let (rank, world_size) = (ranks.rank(), ranks.world_size());
        let is_sharded = config.shard_state && world_size > 1;
        let sizes: Vec<usize> = params.trainable().map(|p| p.tensor.numel()).collect();
        let owners = match is_sharded {
            true => owners::owners(&sizes, world_size),
            false => vec![rank; sizes.len()],
        };
        let entry = |(param, owner): (&Param, i64)| {
            let values = param.tensor.f_detach()?;
            let moments =
                (owner == rank).then(|| Moments::new(&values, config.ema_decay.is_some()));
            Ok(Entry {
                param: Param {
                    name: param.name.clone(),
                    tensor: param.tensor.shallow_clone(),
                    trainable: true,
                },
                decays: decays(param, config),
                rate: rate(&param.name, depth, config.layer_decay),
                owner,
                moments: moments.transpose()?,
            })
        };
        Ok(AdamW {
            config: config.clone(),
            entries: params
                .trainable()
                .zip(owners)
                .map(entry)
                .collect::<Result<_, ModelError>>()?,
            is_sharded,
        })
    }

    /// The two groups: with weight decay and without.
    pub fn groups(&self) -> [ParamGroup; 2] {
        let group = |decays: bool, weight_decay: f64| ParamGroup {
            weight_decay,
            names: self
                .entries
                .iter()
                .filter(|entry| entry.decays == decays)
                .map(|entry| entry.param.name.clone())
                .collect(),
        };
        [group(true, self.config.weight_decay), group(false, 0.0)]
    }

    /// Removes all gradients: the next backward pass writes them instead of adding to zeros.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn zero_grad(&mut self) -> Result<(), ModelError> {
        let params: Vec<&Tensor> = self.entries.iter().map(|e| &e.param.tensor).collect();
        ops::clear_gradients(&params)
    }

    /// The 2-norm of all gradients together, a scalar f32 on the device; zero if there are none.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn gradient_norm(&self) -> Result<Tensor, ModelError> {
        let gradients = self.gradients()?;
        let present: Vec<&Tensor> = gradients.iter().filter(|grad| grad.defined()).collect();
        match (present.is_empty(), self.entries.first()) {
            (true, Some(entry)) => {
                let device = entry.param.tensor.device();
                Ok(Tensor::f_zeros([], (Kind::Float, device))?)
            }
            (true, None) => Ok(Tensor::from(0f32)),
            _ => ops::global_norm(&present),
        }
    }

    /// Moves every parameter that has a gradient, in place, at rate `lr`; of a sharded optimiser, every
    /// one of this rank's share.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a rate that is negative or not finite, [`ModelError::Torch`] where
    /// libtorch fails.
    pub fn step(&mut self, lr: f64) -> Result<(), ModelError> {
        self.step_scaled(lr, None, None)
    }

    /// [`AdamW::step`] with gradients divided by `divisor`, and without effect if `skip` is 1; both
    /// f32 scalars on the device, so that nobody waits for their values.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_scaled(
        &mut self,
        lr: f64,
        divisor: Option<&Tensor>,
        skip: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(ModelError::Input {
                what: "learning rate",
                message: format!("{lr} is out of range; take 0 or more"),
            });
        }
        self.step_at(Rate::Number(lr), divisor, skip)
    }

    /// [`AdamW::step_scaled`] at a rate that may be on the device, 0 or more.
    pub(crate) fn step_at(
        &mut self,
        lr: Rate<'_>,
        divisor: Option<&Tensor>,
        skip: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        let config = &self.config;
        let gradients = self.gradients()?;
        let mut groups: Vec<(bool, f64)> = Vec::new();
        for entry in &self.entries {
            if !groups.contains(&(entry.decays, entry.rate)) {
                groups.push((entry.decays, entry.rate));
            }
        }
        for (decays, rate) in groups {
            let mut tensors = AdamWTensors::default();
            for (entry, gradient) in self.entries.iter().zip(&gradients) {
                let Some(moments) = &entry.moments else {
                    continue;
                };
                if entry.decays == decays && entry.rate == rate && gradient.defined() {
                    tensors.params.push(&entry.param.tensor);
                    tensors.gradients.push(gradient);
                    tensors.exp_avgs.push(&moments.exp_avg);
                    tensors.exp_avg_sqs.push(&moments.exp_avg_sq);
                    tensors.steps.push(&moments.step);
                }
            }
            let scaled;
            let lr = match lr {
                Rate::Number(lr) => Rate::Number(lr * rate),
                Rate::OnDevice(lr) => {
                    scaled = lr.f_mul_scalar(rate)?;
                    Rate::OnDevice(&scaled)
                }
            };
            let step = AdamWStep {
                lr,
                beta1: config.beta1,
                beta2: config.beta2,
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                eps: config.eps,
                divisor,
                skip,
            };
            ops::fused_adamw(&tensors, &step)?;
        }
        let Some(decay) = config.ema_decay else {
            return Ok(());
        };
        let (mut averages, mut params) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            if let Some(ema) = entry.moments.as_ref().and_then(|m| m.ema.as_ref()) {
                averages.push(ema);
                params.push(&entry.param.tensor);
            }
        }
        ops::lerp(&averages, &params, 1.0 - decay)
    }

    /// The divisor that brings gradients of norm `norm` (a scalar on the device) down to
    /// `max_grad_norm`: at least 1. None without clipping.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn clip_divisor(&self, norm: &Tensor) -> Result<Option<Tensor>, ModelError> {
        match self.config.max_grad_norm {
            Some(max) => Ok(Some(norm.f_divide_scalar(max)?.f_clamp_min(1.0)?)),
            None => Ok(None),
        }
    }

    fn gradients(&self) -> Result<Vec<Tensor>, ModelError> {
        let gradients = self.entries.iter().map(|entry| entry.param.tensor.f_grad());
        Ok(gradients.collect::<Result<_, _>>()?)
    }

    /// The state by name: `NAME.exp_avg`, `NAME.exp_avg_sq`, `NAME.ema` if averages are kept, and
    /// `NAME.step` (a scalar i64) of every parameter whose state this rank keeps. The moments share
    /// storage with the optimiser: a later step changes them.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let parts = self.state_parts()?.into_iter();
        let values = parts.filter_map(|part| Some((part.name, part.value?)));
        Ok(values.collect())
    }

    /// The counters of steps, scalars i64 on the host, in the order of the entries that have one: read
    /// from the device in one transfer.
    fn step_counters(&self) -> Result<Vec<Tensor>, ModelError> {
        let kept = self.entries.iter().filter_map(|e| e.moments.as_ref());
        let steps: Vec<&Tensor> = kept.map(|moments| &moments.step).collect();
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let steps = Tensor::f_stack(&steps, 0)?.f_to_device(Device::Cpu)?;
        Ok(steps.f_to_kind(Kind::Int64)?.f_unbind(0)?)
    }

    /// The state of all ranks, with the values of this one's.
    pub(crate) fn state_parts(&self) -> Result<Vec<StatePart>, ModelError> {
        let names = self.moment_names();
        let mut steps = self.step_counters()?.into_iter();
        let mut parts = Vec::with_capacity(self.entries.len() * (names.len() + 1));
        for entry in &self.entries {
            let Param { name, tensor, .. } = &entry.param;
            let mut values = entry.moments.iter().flat_map(Moments::tensors);
            for moment in names {
                parts.push(StatePart {
                    name: format!("{name}.{moment}"),
                    shape: tensor.size(),
                    kind: tensor.kind(),
                    owner: entry.owner,
                    value: values.next().map(Tensor::shallow_clone),
                });
            }
            let step = entry.moments.as_ref().and_then(|_| steps.next());
            parts.push(StatePart {
                name: format!("{name}.step"),
                shape: Vec::new(),
                kind: Kind::Int64,
                owner: entry.owner,
                value: step,
            });
        }
        Ok(parts)
    }

    fn moment_names(&self) -> &'static [&'static str] {
        match self.config.ema_decay {
            Some(_) => &MOMENTS,
            None => &MOMENTS[..2],
        }
    }

    /// Takes over a state of [`AdamW::state`], of all parameters; a sharded optimiser takes its part.
    /// Nothing is changed unless everything fits; `origin` names the source in the error.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] listing every missing, unexpected or unfitting tensor.
    pub fn load_state(
        &mut self,
        state: &HashMap<String, Tensor>,
        origin: &str,
    ) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        let mut known = HashSet::new();
        for entry in &self.entries {
            let name = &entry.param.name;
            for moment in self.moment_names() {
                let name = format!("{name}.{moment}");
                match state.get(&name) {
                    Some(tensor) => problems.extend(misfit(&name, &entry.param.tensor, tensor)),
                    None => problems.push(format!("`{name}` is missing")),
                }
                known.insert(name);
            }
            let name = format!("{name}.step");
            match state.get(&name) {
                Some(step) if step.dim() == 0 && step.kind() == Kind::Int64 => {}
                Some(_) => problems.push(format!("`{name}` is no scalar 64-bit integer")),
                None => problems.push(format!("`{name}` is missing")),
            }
            known.insert(name);
        }
        problems.extend(unexpected(state, |name| known.contains(name)));
        if !problems.is_empty() {
            return Err(ModelError::Mismatch {
                origin: origin.to_owned(),
                problems,
            });
        }
        self.take(state)
    }

    /// Copies from a state that fits what this rank keeps.
    fn take(&mut self, state: &HashMap<String, Tensor>) -> Result<(), ModelError> {
        for entry in &mut self.entries {
            let Some(moments) = &mut entry.moments else {
                continue;
            };
            let name = &entry.param.name;
            for (moment, own) in MOMENTS.iter().zip(moments.tensors()) {
                if let Some(tensor) = state.get(&format!("{name}.{moment}")) {
                    own.shallow_clone().f_copy_(tensor)?;
                }
            }
            if let Some(step) = state.get(&format!("{name}.step")) {
                let step = step.f_int64_value(&[])?.max(0);
                let _ = moments.step.f_fill_(step)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Init;

    const CONFIG: AdamWConfig = AdamWConfig {
        beta1: 0.8,
        beta2: 0.9,
        eps: 1e-3,
        weight_decay: 0.1,
        decay_temperature: true,
        max_grad_norm: None,
        layer_decay: 1.0,
        ema_decay: None,
        shard_state: false,
    };

    fn store(values: &[(&str, &[i64], f64)]) -> ParamStore {
        let mut store = ParamStore::new(Device::Cpu, 0);
        for (name, shape, value) in values {
            let _ = store
                .declare(name, shape, Init::Constant(*value), true)
                .unwrap();
        }
        store
    }

    fn value(store: &ParamStore, name: &str) -> f64 {
        store
            .get(name)
            .unwrap()
            .tensor
            .mean(Kind::Double)
            .double_value(&[])
    }

    /// One scalar parameter after gradients `gradients`, in 64 bits, the textbook way.
    fn by_hand(start: f64, gradients: &[f64], lr: f64, weight_decay: f64) -> f64 {
        let (mut x, mut m, mut v) = (start, 0.0, 0.0);
        for (index, g) in gradients.iter().enumerate() {
            let t = index as i32 + 1;
            x *= 1.0 - lr * weight_decay;
            m = CONFIG.beta1 * m + (1.0 - CONFIG.beta1) * g;
            v = CONFIG.beta2 * v + (1.0 - CONFIG.beta2) * g * g;
            let m_hat = m / (1.0 - CONFIG.beta1.powi(t));
            let v_hat: f64 = v / (1.0 - CONFIG.beta2.powi(t));
            x -= lr * m_hat / (v_hat.sqrt() + CONFIG.eps);
        }
        x
    }

    /// Copies of parameters in 16 bits are made anew where a parameter's version says so.
    #[test]
    fn a_step_is_seen_by_the_version_of_every_parameter() {
        let store = store(&[("a", &[2, 3], 1.0), ("b.bias", &[3], 1.0)]);
        let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
        let versions = || -> Vec<i64> {
            let params = store.named_parameters().iter();
            params
                .map(|param| param.tensor.internal_version())
                .collect()
        };
        for _ in 0..2 {
            let before = versions();
            for param in store.named_parameters() {
                param.tensor.square().sum(Kind::Float).backward();
            }
            optimizer.step(1e-3).unwrap();
            assert!(versions()
                .iter()
                .zip(&before)
                .all(|(now, before)| now > before));
        }
    }

    #[test]
    fn steps_equal_a_hand_computation() {
        let store = store(&[
            ("a.weight", &[2, 2], 0.5),
            ("a.bias", &[2], 0.5),
            ("temp", &[], 0.5),
        ]);
        let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
        let gradients = [0.3, -0.2, 0.0005, 0.0];
        for gradient in gradients {
            optimizer.zero_grad().unwrap();
            let loss = store
                .trainable()
                .map(|param| param.tensor.sum(Kind::Float) * gradient)
                .reduce(|a, b| a + b);
            loss.unwrap().backward();
            optimizer.step(0.01).unwrap();
        }
        let close = |name: &str, weight_decay: f64| {
            let expected = by_hand(0.5, &gradients, 0.01, weight_decay);
            let got = value(&store, name);
            assert!((got - expected).abs() < 1e-6, "{name}: {got} {expected}");
        };
        close("a.weight", CONFIG.weight_decay);
        close("a.bias", 0.0);
        close("temp", CONFIG.weight_decay);
        // Rate 0 moves nothing.
        let before = value(&store, "a.weight");
        optimizer.step(0.0).unwrap();
        assert_eq!(value(&store, "a.weight"), before);
        assert!(optimizer.step(-1.0).is_err() && optimizer.step(f64::NAN).is_err());
    }

    #[test]
    fn groups_by_dimension_and_name() {
        let mut store = store(&[
            ("w.weight", &[2, 2], 0.0),
            ("norm.weight", &[2], 0.0),
            ("odd.bias", &[2, 2], 0.0),
            ("temp", &[], 0.0),
            ("q_bias", &[2], 0.0),
        ]);
        let _ = store
            .declare("frozen", &[2, 2], Init::Constant(0.0), false)
            .unwrap();
        let [with, without] = AdamW::new(&store, &CONFIG).unwrap().groups();
        assert_eq!((with.weight_decay, without.weight_decay), (0.1, 0.0));
        assert_eq!(with.names, ["w.weight", "temp"]);
        assert_eq!(without.names, ["norm.weight", "odd.bias", "q_bias"]);
    }

    #[test]
    fn a_parameter_without_gradient_stays() {
        let store = store(&[("a", &[2, 2], 0.5), ("b", &[2, 2], 0.5)]);
        let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
        store.get("a").unwrap().tensor.sum(Kind::Float).backward();
        optimizer.step(0.1).unwrap();
        assert!(value(&store, "a") < 0.41);
        assert_eq!(value(&store, "b"), 0.5);
    }

    #[test]
    fn a_restored_optimizer_goes_on_identically() {
        let run = |split: bool| {
            let store = store(&[("a", &[2, 2], 0.5)]);
            let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
            for step in 0..4 {
                if split && step == 2 {
                    let state: HashMap<_, _> = optimizer
                        .state()
                        .unwrap()
                        .into_iter()
                        .map(|(name, tensor)| (name, tensor.copy()))
                        .collect();
                    optimizer = AdamW::new(&store, &CONFIG).unwrap();
                    optimizer.load_state(&state, "x").unwrap();
                }
                optimizer.zero_grad().unwrap();
                store
                    .get("a")
                    .unwrap()
                    .tensor
                    .square()
                    .sum(Kind::Float)
                    .backward();
                optimizer.step(0.1).unwrap();
            }
            value(&store, "a")
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let store = store(&[("a", &[2, 2], 0.5)]);
        let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
        let state = HashMap::from([
            (
                "a.exp_avg".to_owned(),
                Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)),
            ),
            ("a.step".to_owned(), Tensor::from(1.0f32)),
            ("b.step".to_owned(), Tensor::from(1i64)),
        ]);
        let error = optimizer.load_state(&state, "x").unwrap_err().to_string();
        for problem in [
            "`a.exp_avg` has shape [2, 3] where [2, 2] is expected",
            "`a.exp_avg_sq` is missing",
            "`a.step` is no scalar",
            "`b.step` is unexpected",
        ] {
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (config, setting) in [
            (
                AdamWConfig {
                    beta2: 1.0,
                    ..CONFIG
                },
                "beta2",
            ),
            (AdamWConfig { eps: 0.0, ..CONFIG }, "eps"),
            (
                AdamWConfig {
                    weight_decay: -1.0,
                    ..CONFIG
                },
                "weight_decay",
            ),
        ] {
            let error = AdamW::new(&store(&[]), &config).unwrap_err().to_string();
            assert!(error.contains(&format!("`optimizer.{setting}`")), "{error}");
        }
    }

    #[test]
    fn scaled_and_skipped_steps() {
        let run = |divisor: Option<f64>, skip: Option<f64>, gradient: f64| {
            let store = store(&[("a", &[2, 2], 0.5)]);
            let mut optimizer = AdamW::new(&store, &CONFIG).unwrap();
            let scalar = |value: f64| Tensor::from(value as f32);
            for _ in 0..2 {
                optimizer.zero_grad().unwrap();
                (store.get("a").unwrap().tensor.sum(Kind::Float) * gradient).backward();
                let (divisor, skip) = (divisor.map(scalar), skip.map(scalar));
                optimizer
                    .step_scaled(0.01, divisor.as_ref(), skip.as_ref())
                    .unwrap();
            }
            let state: HashMap<_, _> = optimizer.state().unwrap().into_iter().collect();
            (value(&store, "a"), state["a.step"].int64_value(&[]))
        };
        assert_eq!(run(Some(8.0), None, 2.0), run(None, None, 0.25));
        assert_eq!(run(None, Some(0.0), 2.0), run(None, None, 2.0));
        assert_eq!(run(None, Some(1.0), 2.0), (0.5, 0));
    }

    #[test]
    fn norm_and_clipping() {
        let store = store(&[("a", &[3], 0.0), ("b", &[1, 1], 0.0), ("c", &[2], 0.0)]);
        let config = AdamWConfig {
            max_grad_norm: Some(2.0),
            ..CONFIG
        };
        let optimizer = AdamW::new(&store, &config).unwrap();
        assert_eq!(optimizer.gradient_norm().unwrap().double_value(&[]), 0.0);
        let sum = |name: &str| store.get(name).unwrap().tensor.sum(Kind::Float);
        (sum("a") * 2.0 + sum("b") * 2.0).backward();
        let norm = optimizer.gradient_norm().unwrap();
        assert_eq!(norm.double_value(&[]), 4.0);
        let divisor = |norm: f64| {
            let divisor = optimizer.clip_divisor(&Tensor::from(norm as f32)).unwrap();
            divisor.unwrap().double_value(&[])
        };
        assert_eq!((divisor(4.0), divisor(1.0)), (2.0, 1.0));
        let free = AdamW::new(&store, &CONFIG).unwrap();
        assert!(free.clip_divisor(&norm).unwrap().is_none());
        let empty = AdamW::new(&ParamStore::new(Device::Cpu, 0), &config).unwrap();
        assert_eq!(empty.gradient_norm().unwrap().double_value(&[]), 0.0);
    }

    /// A single process has nobody to share with: it keeps all state, whatever the setting.
    #[test]
    fn one_rank_keeps_the_state_of_all() {
        let store = store(&[("a", &[2, 2], 0.5), ("b", &[3], 0.5)]);
        let config = AdamWConfig {
            shard_state: true,
            ..CONFIG
        };
        let optimizer = AdamW::new(&store, &config).unwrap();
        assert!(!optimizer.is_sharded());
        optimizer.share_parameters(&SingleProcess).unwrap();
        optimizer.send_state(&SingleProcess).unwrap();
        assert_eq!(optimizer.state().unwrap().len(), 6);
        // Two moments of four and of three f32, and two counters.
        assert_eq!(optimizer.state_bytes(), 4 * (2 * (4 + 3) + 2));
    }

    #[test]
    fn averages_follow_and_are_part_of_the_state() {
        let store = store(&[("a", &[2, 2], 1.0)]);
        let config = AdamWConfig {
            ema_decay: Some(0.75),
            ..CONFIG
        };
        let mut optimizer = AdamW::new(&store, &config).unwrap();
        let mut expected = 1.0;
        for _ in 0..3 {
            optimizer.zero_grad().unwrap();
            store.get("a").unwrap().tensor.sum(Kind::Float).backward();
            optimizer.step(0.1).unwrap();
            expected = 0.75 * expected + 0.25 * value(&store, "a");
        }
        let state: HashMap<_, _> = optimizer.state().unwrap().into_iter().collect();
        let average = state["a.ema"].mean(Kind::Double).double_value(&[]);
        assert!((average - expected).abs() < 1e-6, "{average} {expected}");
        // A checkpoint without averages does not fit an optimiser that keeps them.
        let plain: HashMap<_, _> = AdamW::new(&store, &CONFIG)
            .unwrap()
            .state()
            .unwrap()
            .into_iter()
            .collect();
        let error = optimizer.load_state(&plain, "x").unwrap_err().to_string();
        assert!(error.contains("`a.ema` is missing"), "{error}");
    }

    #[test]
    fn rates_by_layer_and_the_temperature() {
        for (name, power) in [
            ("visual_encoder.pos_embed", 5),
            ("visual_encoder.patch_embed.proj.weight", 5),
            ("visual_encoder.blocks.0.attn.qkv.weight", 4),
            ("visual_encoder.blocks.3.mlp.fc1.bias", 1),
            ("visual_encoder.transformer.resblocks.3.ln_1.weight", 1),
            ("ln_vision.weight", 0),
            ("Qformer.bert.encoder.layer.0.output.dense.weight", 0),
        ] {
            assert_eq!(rate(name, 4, 0.5), 0.5f64.powi(power), "{name}");
        }
        let store = store(&[
            ("visual_encoder.blocks.0.w", &[2, 2], 0.0),
            ("visual_encoder.blocks.1.w", &[2, 2], 0.0),
            ("temp", &[], 0.5),
        ]);
        let config = AdamWConfig {
            layer_decay: 0.5,
            decay_temperature: false,
            ..CONFIG
        };
        let mut optimizer = AdamW::new(&store, &config).unwrap();
        assert_eq!(optimizer.groups()[1].names, ["temp"]);
        let sum = store
            .trainable()
            .map(|param| param.tensor.sum(Kind::Float))
            .reduce(|a, b| a + b);
        sum.unwrap().backward();
        optimizer.step(0.01).unwrap();
        let moved = |name: &str| -value(&store, name);
        let (first, second) = (
            moved("visual_encoder.blocks.0.w"),
            moved("visual_encoder.blocks.1.w"),
        );
        assert!((second / first - 2.0).abs() < 1e-4, "{first} {second}");
    }
}
