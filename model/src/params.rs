//! The parameters of a model by name, in a fixed order.
//!
//! `tch::nn::VarStore` renames a duplicate silently and keeps no order; checkpoints, optimiser
//! state and parameter groups need exact names in a stable order, so this store refuses duplicates
//! and remembers the order of declaration.

use std::collections::{BTreeSet, HashMap, HashSet};

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

mod start;

use start::{Distribution, Filler, Start, Stream};

/// One named tensor of a model.
#[derive(Debug)]
pub struct Param {
    /// The name, as in LAVIS checkpoints.
    pub name: String,
    /// The values; shares storage and gradient with the network's own handle.
    pub tensor: Tensor,
    /// Whether it takes part in training.
    pub trainable: bool,
}

/// Which parameters a set of tensors has to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadScope {
    /// Every parameter.
    All,
    /// Every trainable parameter; frozen ones may be there or not.
    Trainable,
}

/// All parameters of a model, in order of declaration.
#[derive(Debug)]
pub struct ParamStore {
    params: Vec<Param>,
    index: HashMap<String, usize>,
    /// What each parameter starts from, in order of declaration.
    starts: Vec<Start>,
    /// Parameters that hold no values yet. They get their start values in [`ParamStore::fill`].
    unfilled: BTreeSet<usize>,
    /// Whether start values are left to [`ParamStore::fill`].
    is_deferred: bool,
    device: Device,
    seed: u64,
}

impl ParamStore {
    /// An empty store; parameters will live on `device` and start from numbers drawn with `seed`.
    pub fn new(device: Device, seed: u64) -> ParamStore {
        ParamStore {
            params: Vec::new(),
            index: HashMap::new(),
            starts: Vec::new(),
            unfilled: BTreeSet::new(),
            is_deferred: false,
            device,
            seed,
        }
    }

    /// A store that leaves start values to [`ParamStore::fill`], so that none are drawn for
    /// parameters whose values are loaded before.
    pub(crate) fn deferred(device: Device, seed: u64) -> ParamStore {
        ParamStore {
            is_deferred: true,
            ..ParamStore::new(device, seed)
        }
    }

    /// A view into the store under no prefix, for declaring parameters.
    pub(crate) fn root(&mut self) -> Scope<'_> {
        Scope {
            store: self,
            prefix: String::new(),
            trainable: true,
        }
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The parameters, in order of declaration.
    pub fn named_parameters(&self) -> &[Param] {
        &self.params
    }

    /// The trainable parameters, in order of declaration.
    pub fn trainable(&self) -> impl Iterator<Item = &Param> {
        self.params.iter().filter(|param| param.trainable)
    }

    /// Takes the trainable parameters whose names match a pattern (`*` for anything) out of
    /// training. To be called before the optimiser is made.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a pattern that is none, or that no trainable parameter matches.
    pub fn freeze(&mut self, patterns: &[String]) -> Result<(), ModelError> {
        let wrong = |pattern: &str, problem: String| ModelError::Config {
            setting: "freeze",
            message: format!("`{pattern}` {problem}"),
        };
        let before = self.trainable().count();
        let mut frozen: Vec<usize> = Vec::new();
        for text in patterns {
            let pattern = glob::Pattern::new(text)
                .map_err(|error| wrong(text, format!("is no pattern: {error}")))?;
            let matching = self.params.iter().enumerate();
            let matching: Vec<usize> = matching
                .filter(|(_, param)| param.trainable && pattern.matches(&param.name))
                .map(|(index, _)| index)
                .collect();
            if matching.is_empty() {
                let example = self.trainable().next().map_or("", |param| &param.name);
                let problem =
                    format!("matches none of the {before} trainable parameters, e.g. `{example}`");
                return Err(wrong(text, problem));
            }
            frozen.extend(matching);
        }
        for index in frozen {
            if let Some(param) = self.params.get_mut(index) {
                param.trainable = false;
                param.tensor = param.tensor.f_set_requires_grad(false)?;
            }
        }
        if self.trainable().next().is_none() {
            return Err(wrong(
                &patterns.join("`, `"),
                "leave nothing to train".into(),
            ));
        }
        Ok(())
    }

    /// Converts the frozen parameters of two and more dimensions under `prefix` to `kind`, positions
    /// and class token left out.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub(crate) fn convert_frozen_matrices(
        &mut self,
        prefix: &str,
        kind: Kind,
    ) -> Result<(), ModelError> {
        for param in self.params.iter_mut().filter(|param| !param.trainable) {
            let is_weight = param.name.ends_with("weight") && param.tensor.dim() >= 2;
            if is_weight && param.name.starts_with(prefix) {
                let converted = param.tensor.f_to_kind(kind)?;
                param.tensor.f_set_data(&converted)?;
            }
        }
        Ok(())
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.index.get(name).map(|&index| &self.params[index])
    }

    /// Declares a parameter and fills it.
    ///
    /// The numbers depend on the store's seed, the name and the shape alone: neither the order of
    /// declaration nor the device changes them.
    ///
    /// # Errors
    /// [`ModelError::DuplicateParameter`] for a name that is taken; [`ModelError::Torch`] where
    /// libtorch cannot make the tensor.
    pub fn declare(
        &mut self,
        name: &str,
        shape: &[i64],
        init: Init<'_>,
        trainable: bool,
    ) -> Result<Tensor, ModelError> {
        if self.index.contains_key(name) {
            return Err(ModelError::DuplicateParameter(name.to_owned()));
        }
        let start = match init {
            Init::Constant(value) => Start::Constant(value),
            Init::Normal { std } => {
                Start::Drawn(Stream::new(self.seed, name, Distribution::Normal { std }))
            }
            Init::Uniform { bound } => Start::Drawn(Stream::new(
                self.seed,
                name,
                Distribution::Uniform { bound },
            )),
            Init::CopyOf(other) => self.start_of(other, name)?,
        };
        let tensor = Tensor::f_empty(shape, (Kind::Float, self.device))?;
        let index = self.params.len();
        if self.is_deferred {
            self.unfilled.insert(index);
        } else {
            Filler::new().fill(&tensor, start)?;
        }
        let tensor = tensor.f_set_requires_grad(trainable)?;
        self.index.insert(name.to_owned(), index);
        self.starts.push(start);
        self.params.push(Param {
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
            trainable,
        });
        Ok(tensor)
    }

    /// What this parameter starts from; `name` is the one that is to start alike.
    fn start_of(&self, other: &Tensor, name: &str) -> Result<Start, ModelError> {
        let data = other.data_ptr();
        let is_it = |param: &Param| param.tensor.data_ptr() == data;
        match self.params.iter().position(is_it) {
            Some(index) => Ok(self.starts[index]),
            None => Err(ModelError::Input {
                what: "start values",
                message: format!("`{name}` copies a tensor that is no parameter of this model"),
            }),
        }
    }

    /// Gives every parameter that holds no values yet its start values.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub(crate) fn fill(&mut self) -> Result<(), ModelError> {
        let mut filler = Filler::new();
        while let Some(&index) = self.unfilled.first() {
            filler.fill(&self.params[index].tensor, self.starts[index])?;
            self.unfilled.remove(&index);
        }
        Ok(())
    }

    /// Does without start values, for a caller that overwrites every parameter: a rank that is about
    /// to receive the first rank's.
    pub fn skip_start_values(&mut self) {
        self.unfilled.clear();
    }

    /// Overwrites the parameter `name`, converting `values` to its kind and device. Values of fewer
    /// rows go to its first rows; the others keep what they have.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a name that is none; [`ModelError::Torch`] for values that do not
    /// fit.
    pub(crate) fn set(&mut self, name: &str, values: &Tensor) -> Result<(), ModelError> {
        let Some(&index) = self.index.get(name) else {
            return Err(ModelError::Input {
                what: "parameter",
                message: format!("the model has no `{name}`"),
            });
        };
        let mut tensor = self.params[index].tensor.f_detach()?;
        match (values.size().first(), tensor.size().first()) {
            (Some(rows), Some(own_rows)) if rows < own_rows => {
                if self.unfilled.contains(&index) {
                    Filler::new().fill(&tensor, self.starts[index])?;
                }
                tensor.f_narrow(0, 0, *rows)?.f_copy_(values)?;
            }
            _ => tensor.f_copy_(values)?,
        }
        self.unfilled.remove(&index);
        Ok(())
    }

    /// Overwrites the parameters with `tensors`, converted to each parameter's kind and device.
    ///
    /// Nothing is changed unless everything fits. `origin` names the source in the error.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] listing every missing, unexpected, misshaped or non-float tensor.
    pub fn load(
        &mut self,
        tensors: &HashMap<String, Tensor>,
        origin: &str,
        scope: LoadScope,
    ) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for param in &self.params {
            match tensors.get(&param.name) {
                Some(tensor) => problems.extend(misfit(&param.name, &param.tensor, tensor)),
                None if scope == LoadScope::All || param.trainable => {
                    problems.push(format!("`{}` is missing", param.name));
                }
                None => {}
            }
        }
        let known: HashSet<&str> = self.params.iter().map(|p| p.name.as_str()).collect();
        problems.extend(unexpected(tensors, |name| known.contains(name)));
        if !problems.is_empty() {
            return Err(ModelError::Mismatch {
                origin: origin.to_owned(),
                problems,
            });
        }
        for (name, values) in tensors {
            self.set(name, values)?;
        }
        Ok(())
    }
}

/// What to say of tensors that nothing asks for, by name.
pub(crate) fn unexpected(
    tensors: &HashMap<String, Tensor>,
    is_known: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut names: Vec<_> = tensors.keys().filter(|name| !is_known(name)).collect();
    names.sort();
    let problem = |name: &String| format!("`{name}` is unexpected");
    names.into_iter().map(problem).collect()
}

/// What keeps `tensor` from replacing the values of `own`, if anything.
pub(crate) fn misfit(name: &str, own: &Tensor, tensor: &Tensor) -> Option<String> {
    let (expected, got) = (own.size(), tensor.size());
    if expected != got {
        return Some(format!(
            "`{name}` has shape {got:?} where {expected:?} is expected"
        ));
    }
    if !tensor.is_floating_point() {
        return Some(format!(
            "`{name}` holds {:?} where floating-point numbers are expected",
            tensor.kind()
        ));
    }
    None
}

/// A prefix of parameter names within a store.
pub(crate) struct Scope<'a> {
    store: &'a mut ParamStore,
    prefix: String,
    trainable: bool,
}

impl Scope<'_> {
    /// The scope `name` below this one; dots make several levels.
    pub(crate) fn sub(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        Scope {
            prefix: format!("{}{name}.", self.prefix),
            trainable: self.trainable,
            store: self.store,
        }
    }

    /// The same scope with its parameters trainable or frozen.
    pub(crate) fn trainable(self, trainable: bool) -> Self {
        Scope { trainable, ..self }
    }

    /// Declares `name` within this scope.
    pub(crate) fn param(
        &mut self,
        name: &str,
        shape: &[i64],
        init: Init<'_>,
    ) -> Result<Tensor, ModelError> {
        let full_name = format!("{}{name}", self.prefix);
        self.store.declare(&full_name, shape, init, self.trainable)
    }
}

/// How a fresh parameter is filled.
#[derive(Clone, Copy, Debug)]
pub enum Init<'a> {
    /// One value throughout.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width.
        bound: f64,
    },
    /// What another parameter of the model starts from.
    CopyOf(&'a Tensor),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        let mut store = ParamStore::new(Device::Cpu, 7);
        let mut root = store.root();
        let _ = root.param("a", &[2, 3], Init::Normal { std: 1.0 }).unwrap();
        let mut frozen = root.sub("b").trainable(false);
        let _ = frozen.param("weight", &[4], Init::Constant(1.5)).unwrap();
        store
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn names_order_and_flags_are_kept() {
        let store = store();
        let names: Vec<_> = store
            .named_parameters()
            .iter()
            .map(|p| (p.name.as_str(), p.trainable, p.tensor.requires_grad()))
            .collect();
        assert_eq!(names, [("a", true, true), ("b.weight", false, false)]);
        assert_eq!(store.trainable().count(), 1);
        assert!(store.get("b.weight").is_some() && store.get("b").is_none());
    }

    #[test]
    fn duplicates_are_refused() {
        let mut store = store();
        let error = store
            .root()
            .param("a", &[1], Init::Constant(0.0))
            .unwrap_err();
        assert_eq!(error.to_string(), "parameter `a` is declared twice");
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_only() {
        let draw = |seed, name: &str, before: bool| {
            let mut store = ParamStore::new(Device::Cpu, seed);
            if before {
                let _ = store
                    .root()
                    .param("z", &[3], Init::Uniform { bound: 1.0 })
                    .unwrap();
            }
            values(
                &store
                    .root()
                    .param(name, &[9], Init::Normal { std: 1.0 })
                    .unwrap(),
            )
        };
        assert_eq!(draw(1, "a", false), draw(1, "a", true));
        assert_ne!(draw(1, "a", false), draw(2, "a", false));
        assert_ne!(draw(1, "a", false), draw(1, "b", false));
    }

    /// A query layer that starts as a copy of a text layer, as in the Q-Former.
    fn layers(mut store: ParamStore) -> ParamStore {
        let mut root = store.root();
        let normal = Init::Normal { std: 1.0 };
        let text = root.param("text", &[70, 3], normal).unwrap();
        let _ = root.param("query", &[70, 3], Init::CopyOf(&text)).unwrap();
        let _ = root.param("gain", &[5], Init::Constant(1.5)).unwrap();
        store
    }

    #[test]
    fn what_is_not_loaded_starts_as_if_nothing_were() {
        let fresh = layers(ParamStore::new(Device::Cpu, 7));
        let start = |name: &str| values(&fresh.get(name).unwrap().tensor);
        assert_eq!(start("query"), start("text"));
        assert_eq!(start("gain"), [1.5; 5]);
        // All, and again: what is there is not drawn anew.
        let mut store = layers(ParamStore::deferred(Device::Cpu, 7));
        store.fill().unwrap();
        store
            .set("gain", &Tensor::zeros([5], (Kind::Float, Device::Cpu)))
            .unwrap();
        store.fill().unwrap();
        for name in ["text", "query"] {
            assert_eq!(values(&store.get(name).unwrap().tensor), start(name));
        }
        assert_eq!(values(&store.get("gain").unwrap().tensor), [0.0; 5]);
        // The text layer is loaded, its copy not; of the gain the first rows alone are.
        let mut store = layers(ParamStore::deferred(Device::Cpu, 7));
        store
            .set("text", &Tensor::ones([70, 3], (Kind::Double, Device::Cpu)))
            .unwrap();
        store
            .set("gain", &Tensor::ones([2], (Kind::Float, Device::Cpu)))
            .unwrap();
        store.fill().unwrap();
        let now = |name: &str| values(&store.get(name).unwrap().tensor);
        assert_eq!(now("text"), [1.0; 210]);
        assert_eq!(now("query"), start("query"));
        assert_eq!(now("gain"), [1.0, 1.0, 1.5, 1.5, 1.5]);
        assert!(store
            .named_parameters()
            .iter()
            .all(|p| p.tensor.requires_grad()));
    }

    #[test]
    fn only_parameters_of_the_model_are_copied() {
        let mut store = store();
        let other = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let error = store
            .root()
            .param("c", &[3], Init::CopyOf(&other))
            .unwrap_err();
        assert!(error.to_string().contains("`c` copies a tensor"), "{error}");
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut store = ParamStore::new(Device::Cpu, 3);
        let mut root = store.root();
        let normal = root
            .param("n", &[40_001], Init::Normal { std: 0.5 })
            .unwrap();
        let uniform = root
            .param("u", &[40_001], Init::Uniform { bound: 0.3 })
            .unwrap();
        let moments = |t: &Tensor| {
            (
                t.mean(Kind::Float).double_value(&[]),
                t.std(true).double_value(&[]),
            )
        };
        let (mean, std) = moments(&normal);
        assert!(
            mean.abs() < 0.01 && (std - 0.5).abs() < 0.01,
            "{mean} {std}"
        );
        let (mean, std) = moments(&uniform);
        assert!(
            mean.abs() < 0.01 && (std - 0.3 / 3f64.sqrt()).abs() < 0.01,
            "{mean} {std}"
        );
        assert!(uniform.abs().max().double_value(&[]) <= 0.3);
    }

    #[test]
    fn load_lists_every_problem_and_changes_nothing() {
        let mut store = store();
        let before = values(&store.get("a").unwrap().tensor);
        let tensors = HashMap::from([
            (
                "a".to_owned(),
                Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)),
            ),
            ("c".to_owned(), Tensor::from(1.0f32)),
        ]);
        let error = store
            .load(&tensors, "x.safetensors", LoadScope::All)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "x.safetensors does not fit this model: `b.weight` is missing; `c` is unexpected; \
             use the configuration it was written with"
        );
        assert_eq!(values(&store.get("a").unwrap().tensor), before);

        let tensors = HashMap::from([
            (
                "a".to_owned(),
                Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)),
            ),
            (
                "b.weight".to_owned(),
                Tensor::zeros([4], (Kind::Int64, Device::Cpu)),
            ),
        ]);
        let error = store
            .load(&tensors, "x", LoadScope::All)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`a` has shape [3, 2] where [2, 3] is expected"),
            "{error}"
        );
        assert!(error.contains("`b.weight` holds Int64"), "{error}");
    }

    #[test]
    fn load_converts_and_may_leave_frozen_parameters_out() {
        let mut store = store();
        let a = Tensor::ones([2, 3], (Kind::Double, Device::Cpu));
        let tensors = HashMap::from([("a".to_owned(), a)]);
        assert!(store.load(&tensors, "x", LoadScope::All).is_err());
        store.load(&tensors, "x", LoadScope::Trainable).unwrap();
        let a = &store.get("a").unwrap().tensor;
        assert_eq!(a.kind(), Kind::Float);
        assert_eq!(values(a), [1.0; 6]);
        assert_eq!(values(&store.get("b.weight").unwrap().tensor), [1.5; 4]);
    }

    #[test]
    fn patterns_take_parameters_out_of_training() {
        let pattern = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        let mut all = store();
        let trainable = |store: &ParamStore| store.trainable().count();
        let before = trainable(&all);
        all.freeze(&[]).unwrap();
        assert_eq!(trainable(&all), before);
        let error = all
            .freeze(&pattern(&["nothing.*"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`nothing.*` matches none"), "{error}");
        assert!(all.freeze(&pattern(&["a["])).is_err());
        let _ = all.declare("c", &[1], Init::Constant(0.0), true).unwrap();
        let before = before + 1;
        all.freeze(&pattern(&["a"])).unwrap();
        assert_eq!(trainable(&all), before - 1);
        assert!(!all.get("a").unwrap().tensor.requires_grad());
        let mut all = store();
        let error = all.freeze(&pattern(&["*"])).unwrap_err().to_string();
        assert!(error.contains("nothing to train"), "{error}");
    }
}
