//! From a file of any known layout into a model's parameters.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use super::names::{gamma_beta, Layout, Naming, Source};
use super::vocabulary::WORDS;
use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::params::ParamStore;
use crate::tensor_file::vocabulary;
use crate::tensor_file::WeightsFile;
use crate::vision::{interpolate_positions, PositionInterpolation};

const WORD_BIAS: &str = "Qformer.cls.predictions.bias";
const POSITIONS: &str = "Qformer.bert.embeddings.position_embeddings.weight";

/// What a file is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// BERT: the Q-Former's start but for cross attention, queries and projections.
    Bert {
        /// Whether it may lack the language-model head, as a `BertModel` does.
        fresh_head: bool,
        /// Whether the embedding of token type 0, which BERT adds to every token of a text, becomes
        /// part of the position embeddings: text rows are then those of the BERT. LAVIS leaves it
        /// out.
        fold_token_types: bool,
    },
    /// A vision tower.
    Vision,
    /// The whole model.
    Model(Absent),
}

/// What a file of the whole model may lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// All of the vision tower: LAVIS's checkpoints leave a frozen one out.
    pub tower: bool,
    /// The temperature and the language-model head, which `Blip2ForImageTextRetrieval` has not.
    /// Image-text matching and retrieval need neither; training goes on from what the model holds.
    pub head: bool,
}

/// What was done with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// What the file was taken for.
    pub layout: Layout,
    /// Parameters that took its values.
    pub loaded: usize,
    /// Tensors that were not used, each with the reason.
    pub left_out: Vec<(String, &'static str)>,
    /// Parameters that the file could have held and does not; they keep their values.
    pub kept: Vec<String>,
    /// Patches along a side in the file and in the model, where positions were resampled.
    pub resampled: Option<(i64, i64)>,
}

/// Overwrites the model's parameters that `part` covers with the values of a file, converted to each
/// parameter's kind and device.
///
/// Word embeddings have to be of the model's vocabulary, where the file says which they are of. What
/// the file is, the names of its tensors say. Position embeddings of another grid are
/// resampled by the tower's rule. Of a vocabulary without `[DEC]` that entry stays as it is. What
/// is left out is on a fixed list (BERT's pooler and next-sentence head, a tower's last block, ...),
/// reported and logged; second copies of tied tensors are checked to be equal.
///
/// Nothing is changed unless everything fits.
///
/// # Errors
/// [`ModelError::Vocabulary`] for word embeddings of another vocabulary;
/// [`ModelError::Mismatch`] listing every missing, unexpected, misshaped or non-float tensor;
/// [`ModelError::TensorFile`] for a file of no known layout, or of another than `part` asks for;
/// [`ModelError::Io`] for one that cannot be read any more, in which case parameters before the
/// named tensor have changed.
pub fn load_into(
    model: &mut Blip2Qformer,
    file: &WeightsFile,
    part: Part,
) -> Result<LoadReport, ModelError> {
    if part != Part::Vision {
        vocabulary::check(file, &model.config().qformer)?;
    }
    load_params(model.params_mut(), file, part)
}

/// [`load_into`], but for the vocabulary.
fn load_params(
    params: &mut ParamStore,
    file: &WeightsFile,
    part: Part,
) -> Result<LoadReport, ModelError> {
    let naming = naming(file, part)?;
    let mut plan = Plan::new(params, file, naming, part);
    plan.find_sources()?;
    plan.account_for_the_rest()?;
    if !plan.problems.is_empty() {
        return Err(ModelError::Mismatch {
            origin: format!("{} (taken for {})", file.path().display(), naming.layout),
            problems: plan.problems,
        });
    }
    let report = LoadReport {
        layout: naming.layout,
        loaded: plan.copies.len(),
        left_out: plan.left_out,
        kept: plan.kept,
        resampled: plan.resampled,
    };
    for copy in plan.copies {
        tch::no_grad(|| copy.run(file, params))?;
    }
    log_report(file, &report);
    Ok(report)
}

fn log_report(file: &WeightsFile, report: &LoadReport) {
    let path = file.path().display();
    log::info!("{path}: {}, {} parameters", report.layout, report.loaded);
    for part in file.taken_off() {
        log::info!("{path}: `{part}` was taken off the names of its tensors");
    }
    for (name, reason) in &report.left_out {
        log::info!("{path}: `{name}` is not used: {reason}");
    }
    for name in &report.kept {
        log::info!("{path}: no `{name}`; it keeps its start value");
    }
    if let Some((from, to)) = report.resampled {
        log::info!("{path}: positions resampled from {from} x {from} to {to} x {to} patches");
    }
}

/// What the file is, if that is what `part` asks for.
fn naming(file: &WeightsFile, part: Part) -> Result<Naming, ModelError> {
    let unusable = |message: String| ModelError::TensorFile {
        path: file.path().to_owned(),
        message,
    };
    let names: Vec<&str> = file.names().collect();
    let Some(naming) = Naming::detect(&names) else {
        let first = &names[..names.len().min(3)];
        return Err(unusable(format!(
            "its names ({}, ...) are of no known model: BERT, EVA-CLIP, CLIP, LAVIS BLIP-2 or \
             Blip2ForImageTextRetrieval",
            first.join(", ")
        )));
    };
    let (fits, wanted) = match (part, naming.layout) {
        (Part::Bert { .. }, layout) => (layout == Layout::Bert, "a BERT"),
        (Part::Vision, layout) => (
            matches!(layout, Layout::Eva | Layout::Clip | Layout::HuggingFaceClip),
            "a vision tower",
        ),
        (Part::Model(_), layout) => (
            matches!(layout, Layout::Lavis | Layout::HuggingFace),
            "a whole BLIP-2 model",
        ),
    };
    if fits {
        return Ok(naming);
    }
    let layout = naming.layout;
    Err(unusable(format!(
        "holds {layout} where {wanted} is expected"
    )))
}

/// A parameter and where its values come from.
struct Copy {
    param: String,
    /// The parameter's last dimension.
    width: Option<i64>,
    source: Source,
    /// Grid and rule, where positions are resampled.
    resample: Option<(i64, PositionInterpolation)>,
    /// A tensor whose first row is added to every row.
    added_row: Option<String>,
}

impl Copy {
    fn run(self, file: &WeightsFile, params: &mut ParamStore) -> Result<(), ModelError> {
        let values = match &self.source {
            Source::Whole(name) => file.tensor(name)?,
            Source::Third(name, index) => {
                let tensor = file.tensor(name)?;
                let rows = tensor.size()[0] / 3;
                tensor.f_narrow(0, index * rows, rows)?
            }
            Source::Stacked(names) => {
                let parts = names.iter().map(|name| file.tensor(name));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)?
            }
        };
        let values = match self.resample {
            // In 32 bits, whatever the file has.
            Some((grid, rule)) => {
                interpolate_positions(&values.f_to_kind(Kind::Float)?, grid, rule)?
            }
            None => values,
        };
        let values = match &self.added_row {
            Some(name) => {
                let row = file.tensor(name)?.f_get(0)?.f_to_kind(Kind::Float)?;
                values.f_to_kind(Kind::Float)?.f_add(&row)?
            }
            None => values,
        };
        // Of a vocabulary of fewer entries the first rows; see `Plan::checked`.
        params.set(&self.param, &values)
    }
}

/// Which optional parts the file holds at least something of.
#[derive(Clone, Copy)]
struct Has {
    tower: bool,
    head: bool,
}

/// What will be done, and what stands against it.
struct Plan<'a> {
    params: &'a ParamStore,
    file: &'a WeightsFile,
    naming: Naming,
    part: Part,
    copies: Vec<Copy>,
    used: BTreeSet<String>,
    left_out: Vec<(String, &'static str)>,
    kept: Vec<String>,
    resampled: Option<(i64, i64)>,
    problems: Vec<String>,
}

impl<'a> Plan<'a> {
    fn new(params: &'a ParamStore, file: &'a WeightsFile, naming: Naming, part: Part) -> Self {
        Plan {
            params,
            file,
            naming,
            part,
            copies: Vec::new(),
            used: BTreeSet::new(),
            left_out: Vec::new(),
            kept: Vec::new(),
            resampled: None,
            problems: Vec::new(),
        }
    }

    /// Whether a file of this part has to give the parameter.
    fn is_covered(&self, param: &str) -> bool {
        match self.part {
            Part::Bert { .. } => {
                param.starts_with("Qformer.") && !param.contains(".crossattention.")
            }
            Part::Vision => param.starts_with("visual_encoder."),
            Part::Model(_) => true,
        }
    }

    /// Whether a parameter that the file lacks may keep its value.
    fn may_lack(&self, param: &str, has: Has) -> bool {
        let is_tower = param.starts_with("visual_encoder.");
        let is_head = param.starts_with("Qformer.cls.");
        match self.part {
            Part::Bert { fresh_head, .. } => fresh_head && is_head && !has.head,
            Part::Vision => false,
            Part::Model(absent) => {
                let is_of_hugging_face = self.naming.layout == Layout::HuggingFace;
                (absent.tower && is_tower && !has.tower)
                    || (absent.head && is_of_hugging_face && (is_head || param == "temp"))
            }
        }
    }

    fn find_sources(&mut self) -> Result<(), ModelError> {
        let any = |starts: [&str; 2]| {
            let is = |name: &str| starts.iter().any(|start| name.starts_with(start));
            self.file.names().any(is)
        };
        let has = Has {
            tower: any(["visual_encoder.", "vision_model.enc"]),
            head: any(["cls.predictions.", "Qformer.cls.predictions."]),
        };
        let is_bert = matches!(self.part, Part::Bert { .. });
        let is_headless = |param: &str| is_bert && !has.head && param.starts_with("Qformer.cls.");
        let (mut absent_tower, mut absent_head) = (false, false);
        for param in self.params.named_parameters() {
            if !self.is_covered(&param.name) {
                continue;
            }
            let source = self
                .naming
                .source(&param.name)
                .map(|source| self.spelled(source));
            let names = source.as_ref().map_or(Vec::new(), source_names);
            let missing: Vec<&String> = names
                .iter()
                .copied()
                .filter(|name| !self.file.contains(name))
                .collect();
            if missing.len() == names.len() && self.may_lack(&param.name, has) {
                self.kept.push(param.name.clone());
                continue;
            }
            let Some(source) = &source else {
                absent_head = true;
                let layout = self.naming.layout;
                self.problems
                    .push(format!("`{}` has no counterpart in {layout}", param.name));
                continue;
            };
            if !missing.is_empty() && is_headless(&param.name) {
                absent_head = true;
                continue;
            }
            if !missing.is_empty() {
                absent_tower |= param.name.starts_with("visual_encoder.");
                let missing = missing
                    .iter()
                    .map(|name| format!("`{name}` is missing{}", self.other_word(name)));
                let missing: Vec<String> = missing.collect();
                self.problems.extend(missing);
                continue;
            }
            let source = source.clone();
            self.used.extend(source_names(&source).into_iter().cloned());
            if let Some(mut copy) = self.checked(&param.name, &param.tensor, source) {
                copy.added_row = self.token_types(&param.name, &copy);
                self.copies.push(copy);
            }
        }
        if absent_tower && !has.tower && matches!(self.part, Part::Model(_)) {
            self.problems.push(
                "it holds no vision tower at all; give one beside it (weights.vision)".to_owned(),
            );
        }
        if absent_head {
            self.problems.push(match self.part {
                Part::Bert { .. } => "it has no language-model head (cls.predictions.*), as a \
                                      BertModel; to start with a fresh one, say so \
                                      (weights.fresh_head = true)"
                    .to_owned(),
                _ => "to go on with the model's own temperature and language-model head, say so \
                      (weights.fresh_head = true)"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// A word on what stands under `name` if it is no tensor.
    fn other_word(&self, name: &str) -> String {
        let other = self.file.others().find(|(other, _)| *other == name);
        other.map_or(String::new(), |(_, what)| format!(": it is {what}"))
    }

    /// The source under the older names of layer norms, where the file has those.
    fn spelled(&self, source: Source) -> Source {
        match (self.naming.layout, source) {
            (Layout::Bert, Source::Whole(name)) if !self.file.contains(&name) => {
                let older = gamma_beta(&name).filter(|older| self.file.contains(older));
                Source::Whole(older.unwrap_or(name))
            }
            (_, source) => source,
        }
    }

    /// The copy of a source that is there, unless something stands against it.
    fn checked(&mut self, param: &str, own: &Tensor, source: Source) -> Option<Copy> {
        let expected = own.size();
        let names = source_names(&source);
        let infos: Vec<(&[i64], Kind)> = names
            .iter()
            .filter_map(|name| self.file.info(name))
            .collect();
        let name = names.first().map_or(param, |name| name.as_str()).to_owned();
        let not_float = infos.iter().find(|(_, kind)| !is_float(*kind));
        if let Some((_, kind)) = not_float {
            self.problems.push(format!(
                "`{name}` holds {kind:?} where floating-point numbers are expected"
            ));
            return None;
        }
        let (shape, _) = *infos.first()?;
        // The parameter's shape as this source should have it: rows of the file per own row.
        let (file_rows, own_rows) = match &source {
            Source::Whole(_) => (1, 1),
            Source::Third(..) => (3, 1),
            Source::Stacked(_) => (1, 3),
        };
        let mut wanted = expected.clone();
        if let Some(rows) = wanted.first_mut() {
            *rows = *rows * file_rows / own_rows;
        }
        let mut resample = None;
        if infos.iter().any(|(shape, _)| *shape != wanted) {
            resample = self.resampling(param, shape, &expected);
            let is_shorter_vocabulary = match (param, shape.split_first(), expected.split_first()) {
                (WORDS | WORD_BIAS, Some((rows, width)), Some((own_rows, own_width)))
                    if width == own_width =>
                {
                    // Every vocabulary but LAVIS's and ours lacks `[DEC]`.
                    let is_bert = matches!(self.part, Part::Bert { .. });
                    if !is_bert || *rows + 1 != *own_rows {
                        self.problems.push(format!(
                            "`{name}` has {rows} words where the tokenizer has {own_rows}; take \
                             the tokenizer of these weights (its vocab.txt or tokenizer.json)"
                        ));
                        return None;
                    }
                    true
                }
                _ => false,
            };
            if resample.is_none() && !is_shorter_vocabulary {
                self.problems.push(format!(
                    "`{name}` has shape {shape:?} where {wanted:?} is expected"
                ));
                return None;
            }
        }
        if let Source::Third(name, _) = &source {
            if !self.key_bias_is_zero(name) {
                self.problems.push(format!(
                    "`{name}` has a bias for K, which the EVA tower has not"
                ));
                return None;
            }
        }
        Some(Copy {
            param: param.to_owned(),
            width: expected.last().copied(),
            source,
            resample,
            added_row: None,
        })
    }

    /// The token types that are to be added to this parameter, if they are.
    fn token_types(&mut self, param: &str, positions: &Copy) -> Option<String> {
        let fold = matches!(
            self.part,
            Part::Bert {
                fold_token_types: true,
                ..
            }
        );
        if !fold || param != POSITIONS {
            return None;
        }
        let name = positions.source.first_name();
        let name = name.replace("position_embeddings", "token_type_embeddings");
        let width = positions.width;
        match self.file.info(&name) {
            Some(([types, own_width], kind))
                if *types > 0 && Some(*own_width) == width && is_float(kind) =>
            {
                self.used.insert(name.clone());
                Some(name)
            }
            found => {
                let found = match found {
                    Some((shape, kind)) => format!("holds {kind:?} of shape {shape:?}"),
                    None => "is missing".to_owned(),
                };
                self.problems.push(format!(
                    "`{name}` {found}; to do without token types, as LAVIS, leave out \
                     weights.fold_token_types"
                ));
                None
            }
        }
    }

    /// Grid and rule, where `shape` is a table of positions of another grid.
    fn resampling(
        &mut self,
        param: &str,
        shape: &[i64],
        expected: &[i64],
    ) -> Option<(i64, PositionInterpolation)> {
        let rule = match param {
            "visual_encoder.pos_embed" => PositionInterpolation::Eva,
            "visual_encoder.positional_embedding" => PositionInterpolation::Clip,
            _ => return None,
        };
        let [.., tokens, width] = *shape else {
            return None;
        };
        let [.., own_tokens, own_width] = *expected else {
            return None;
        };
        let (from, to) = (grid(tokens)?, grid(own_tokens)?);
        if width != own_width || shape.len() != expected.len() {
            return None;
        }
        self.resampled = Some((from, to));
        Some((to, rule))
    }

    fn key_bias_is_zero(&self, name: &str) -> bool {
        let Ok(bias) = self.file.tensor(name) else {
            return true; // Reading it again will say what is wrong.
        };
        let third = bias.size().first().map_or(0, |rows| rows / 3);
        let zero = bias
            .f_narrow(0, third, third)
            .and_then(|key| key.f_count_nonzero(None::<i64>));
        zero.is_ok_and(|count| count.int64_value(&[]) == 0)
    }

    /// Sorts what no parameter took into left out, second copies and unexpected.
    fn account_for_the_rest(&mut self) -> Result<(), ModelError> {
        // The first block that the model's tower does not have.
        let depth = self.params.named_parameters().iter().filter_map(|param| {
            let (_, rest) = param
                .name
                .strip_prefix("visual_encoder.")?
                .split_once("blocks.")?;
            rest.split_once('.')?.0.parse::<i64>().ok()
        });
        let depth = depth.max().map_or(0, |last| last + 1);
        for name in self.file.names() {
            if self.used.contains(name) {
                continue;
            }
            if let Some(original) = self.naming.alias_of(name) {
                if !self.file.contains(&original) {
                    self.problems.push(format!(
                        "`{name}` is a copy of `{original}`, which is missing"
                    ));
                } else if self.file.tensor(name)? == self.file.tensor(&original)? {
                    self.left_out
                        .push((name.to_owned(), "a second copy of a tied tensor"));
                } else {
                    self.problems.push(format!(
                        "`{name}` differs from `{original}`, to which it is tied in this model"
                    ));
                }
            } else if let Some(reason) = self.naming.left_out(name, depth) {
                self.left_out.push((name.to_owned(), reason));
            } else {
                self.problems.push(format!("`{name}` is unexpected"));
            }
        }
        for (name, what) in self.file.others() {
            if self.naming.left_out(name, depth).is_none()
                && !self.problems.iter().any(|problem| problem.contains(name))
            {
                self.problems.push(format!("`{name}` is {what}, no tensor"));
            }
        }
        Ok(())
    }
}

fn source_names(source: &Source) -> Vec<&String> {
    match source {
        Source::Whole(name) | Source::Third(name, _) => vec![name],
        Source::Stacked(names) => names.iter().collect(),
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double
    )
}

/// Patches along a side, of a square grid with a class token.
fn grid(tokens: i64) -> Option<i64> {
    let grid = ((tokens - 1).max(0) as f64).sqrt().round() as i64;
    (grid >= 1 && grid.checked_mul(grid)? + 1 == tokens).then_some(grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Init;
    use tch::Device;

    const BERT: Part = Part::Bert {
        fresh_head: false,
        fold_token_types: false,
    };

    /// A store of the given parameters, each filled with 7.
    fn store(params: &[(&str, &[i64])]) -> ParamStore {
        let mut store = ParamStore::new(Device::Cpu, 0);
        for (name, shape) in params {
            let _ = store
                .declare(name, shape, Init::Constant(7.0), true)
                .unwrap();
        }
        store
    }

    fn file(tensors: &[(&str, Tensor)]) -> (tempfile::TempDir, WeightsFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        Tensor::write_safetensors(tensors, path).unwrap();
        let file = WeightsFile::open(dir.path()).unwrap();
        (dir, file)
    }

    fn ramp(shape: &[i64]) -> Tensor {
        let count: i64 = shape.iter().product();
        Tensor::arange(count, (Kind::Float, Device::Cpu)).reshape(shape)
    }

    fn values(store: &ParamStore, name: &str) -> Vec<f32> {
        Vec::try_from(store.get(name).unwrap().tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn bert_grows_by_one_word_and_the_query_network_is_copied() {
        let words = "bert.embeddings.word_embeddings.weight";
        let query = "bert.encoder.layer.0.attention.self.query.weight";
        let text = "bert.encoder.layer.0.output.LayerNorm";
        let mut store = store(&[
            ("Qformer.bert.embeddings.word_embeddings.weight", &[3, 2]),
            (
                "Qformer.bert.encoder.layer.0.attention.self.query.weight",
                &[2],
            ),
            ("Qformer.bert.encoder.layer.0.output.LayerNorm.weight", &[2]),
            (
                "Qformer.bert.encoder.layer.0.output_query.LayerNorm.weight",
                &[2],
            ),
            (
                "Qformer.bert.encoder.layer.0.crossattention.self.key.bias",
                &[2],
            ),
            ("itm_head.bias", &[2]),
        ]);
        let (_dir, good) = file(&[
            (words, ramp(&[2, 2])),
            (query, ramp(&[2])),
            (&format!("{text}.gamma"), ramp(&[2])),
            ("bert.pooler.dense.bias", ramp(&[2])),
        ]);
        let report = load_params(&mut store, &good, BERT).unwrap();
        assert_eq!((report.layout, report.loaded), (Layout::Bert, 4));
        assert_eq!(report.left_out.len(), 1);
        let check = |name: &str, expected: &[f32]| assert_eq!(values(&store, name), expected);
        check(
            "Qformer.bert.embeddings.word_embeddings.weight",
            &[0.0, 1.0, 2.0, 3.0, 7.0, 7.0],
        );
        check(
            "Qformer.bert.encoder.layer.0.output.LayerNorm.weight",
            &[0.0, 1.0],
        );
        check(
            "Qformer.bert.encoder.layer.0.output_query.LayerNorm.weight",
            &[0.0, 1.0],
        );
        check(
            "Qformer.bert.encoder.layer.0.crossattention.self.key.bias",
            &[7.0, 7.0],
        );
        // Everything that is wrong is said at once, and nothing changed.
        let (_dir, bad) = file(&[
            (words, ramp(&[9, 2])),
            (query, ramp(&[3])),
            ("bert.encoder.layer.1.x", ramp(&[3])),
        ]);
        let error = load_params(&mut store, &bad, BERT).unwrap_err().to_string();
        for part in [
            "has 9 words where the tokenizer has 3",
            "query.weight` has shape [3] where [2] is expected",
            "`bert.encoder.layer.0.output.LayerNorm.weight` is missing",
            "`bert.encoder.layer.1.x` is unexpected",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(values(&store, "itm_head.bias"), [7.0, 7.0]);
        let error = load_params(&mut store, &good, Part::Vision)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("holds a BERT where a vision tower"),
            "{error}"
        );
    }

    #[test]
    fn a_bert_without_a_head_only_where_that_is_said() {
        let query = "encoder.layer.0.attention.self.query.weight";
        let bias = "cls.predictions.bias";
        let mut store = store(&[
            (&format!("Qformer.bert.{query}"), &[2]),
            ("Qformer.cls.predictions.bias", &[2]),
            ("Qformer.cls.predictions.transform.dense.bias", &[2]),
        ]);
        let fresh = Part::Bert {
            fresh_head: true,
            fold_token_types: false,
        };
        let (_dir, headless) = file(&[(query, ramp(&[2])), ("pooler.dense.bias", ramp(&[2]))]);
        let error = load_params(&mut store, &headless, BERT)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no language-model head"), "{error}");
        assert!(error.contains("fresh_head = true"), "{error}");
        assert!(!error.contains("is missing"), "{error}");
        let report = load_params(&mut store, &headless, fresh).unwrap();
        assert_eq!((report.loaded, report.kept.len()), (1, 2));
        assert_eq!(values(&store, "Qformer.cls.predictions.bias"), [7.0, 7.0]);
        // Half a head is none that was left out on purpose.
        let (_dir, half) = file(&[(&format!("bert.{query}"), ramp(&[2])), (bias, ramp(&[2]))]);
        let error = load_params(&mut store, &half, fresh)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("transform.dense.bias` is missing"),
            "{error}"
        );
    }

    #[test]
    fn token_types_are_left_out_or_folded_into_positions() {
        let positions = "embeddings.position_embeddings.weight";
        let types = "embeddings.token_type_embeddings.weight";
        let query = "encoder.layer.0.attention.self.query.weight";
        let fold = Part::Bert {
            fresh_head: false,
            fold_token_types: true,
        };
        let mut store = store(&[
            (POSITIONS, &[2, 2]),
            (&format!("Qformer.bert.{query}"), &[2]),
        ]);
        let of_types = Tensor::from_slice2(&[[10.0f32, 20.0], [5.0, 6.0]]);
        let (_dir, good) = file(&[
            (query, ramp(&[2])),
            (positions, ramp(&[2, 2]).to_kind(Kind::Half)),
            (types, of_types.to_kind(Kind::Half)),
        ]);
        let report = load_params(&mut store, &good, BERT).unwrap();
        assert_eq!(report.left_out, [(types.to_owned(), "BERT's token types")]);
        assert_eq!(values(&store, POSITIONS), [0.0, 1.0, 2.0, 3.0]);
        let report = load_params(&mut store, &good, fold).unwrap();
        assert!(report.left_out.is_empty());
        assert_eq!(values(&store, POSITIONS), [10.0, 21.0, 12.0, 23.0]);
        let rest = [(query, ramp(&[2])), (positions, ramp(&[2, 2]))];
        for (types_of_file, words) in [(None, "is missing"), (Some(ramp(&[2, 3])), "shape [2, 3]")]
        {
            let types_of_file = types_of_file.map(|tensor| (types, tensor));
            let rest = rest
                .iter()
                .map(|(name, tensor)| (*name, tensor.shallow_clone()));
            let tensors: Vec<_> = rest.chain(types_of_file).collect();
            let (_dir, bad) = file(&tensors);
            let error = load_params(&mut store, &bad, fold).unwrap_err().to_string();
            assert!(error.contains(types) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_tower_with_one_block_more_and_another_grid() {
        let mut store = store(&[
            ("visual_encoder.pos_embed", &[1, 10, 2]),
            ("visual_encoder.blocks.0.attn.qkv.weight", &[6, 2]),
            ("ln_vision.weight", &[2]),
        ]);
        let half = |shape: &[i64]| ramp(shape).to_kind(Kind::Half);
        let (_dir, good) = file(&[
            ("pos_embed", half(&[1, 5, 2])),
            ("blocks.0.attn.qkv.weight", half(&[6, 2])),
            ("blocks.1.attn.qkv.weight", half(&[6, 2])),
            ("norm.weight", half(&[2])),
        ]);
        let report = load_params(&mut store, &good, Part::Vision).unwrap();
        assert_eq!(report.resampled, Some((2, 3)));
        assert_eq!(report.left_out.len(), 2);
        assert_eq!(values(&store, "ln_vision.weight"), [7.0, 7.0]);
        let expected =
            interpolate_positions(&ramp(&[1, 5, 2]), 3, PositionInterpolation::Eva).unwrap();
        let got = &store
            .get("visual_encoder.pos_embed")
            .unwrap()
            .tensor
            .detach();
        assert_eq!(*got, expected);
        let (_dir, deep) = file(&[
            ("pos_embed", half(&[1, 6, 2])),
            ("blocks.0.attn.qkv.weight", half(&[6, 2])),
            ("blocks.2.attn.qkv.weight", half(&[6, 2])),
        ]);
        let error = load_params(&mut store, &deep, Part::Vision)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`blocks.2.attn.qkv.weight` is unexpected"),
            "{error}"
        );
        assert!(error.contains("`pos_embed` has shape [1, 6, 2]"), "{error}");
    }

    #[test]
    fn a_whole_model_without_tower_or_head() {
        let layer = "encoder.layer.0.attention.output.dense.bias";
        let mut store = store(&[
            ("temp", &[]),
            ("visual_encoder.blocks.0.attn.q_bias", &[2]),
            (&format!("Qformer.bert.{layer}"), &[2]),
            ("Qformer.cls.predictions.bias", &[2]),
        ]);
        let lavis: Vec<(String, Tensor)> = [
            ("temp".to_owned(), Tensor::from(0.1f32)),
            (format!("Qformer.bert.{layer}"), ramp(&[2])),
            ("Qformer.cls.predictions.bias".to_owned(), ramp(&[2])),
            (
                "Qformer.cls.predictions.decoder.bias".to_owned(),
                ramp(&[2]),
            ),
        ]
        .into();
        let named: Vec<(&str, Tensor)> = lavis
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shallow_clone()))
            .collect();
        let (_dir, lavis) = file(&named);
        let whole = Part::Model(Absent::default());
        let error = load_params(&mut store, &lavis, whole)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no vision tower at all"), "{error}");
        let absent = Absent {
            tower: true,
            head: false,
        };
        let report = load_params(&mut store, &lavis, Part::Model(absent)).unwrap();
        assert_eq!(report.kept, ["visual_encoder.blocks.0.attn.q_bias"]);
        let mut untied = named;
        untied[3].1 = Tensor::from_slice(&[5.0f32, 5.0]);
        let (_dir, untied) = file(&untied);
        let error = load_params(&mut store, &untied, Part::Model(absent))
            .unwrap_err()
            .to_string();
        assert!(error.contains("decoder.bias` differs from"), "{error}");

        let qkv = "vision_model.encoder.layers.0.self_attn.qkv.bias";
        let qformer = format!("qformer.{}", layer);
        let bias = Tensor::from_slice(&[1.0f32, 2.0, 0.0, 0.0, 5.0, 6.0]);
        let (_dir, hugging_face) = file(&[(qkv, bias), (&qformer, ramp(&[2]))]);
        let error = load_params(&mut store, &hugging_face, whole)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`temp` has no counterpart") && error.contains("fresh_head"),
            "{error}"
        );
        let absent = Absent {
            tower: false,
            head: true,
        };
        let report = load_params(&mut store, &hugging_face, Part::Model(absent)).unwrap();
        assert_eq!(report.kept, ["temp", "Qformer.cls.predictions.bias"]);
        assert_eq!(
            values(&store, "visual_encoder.blocks.0.attn.q_bias"),
            [1.0, 2.0]
        );
        let (_dir, key_bias) = file(&[(qkv, ramp(&[6])), (&qformer, ramp(&[2]))]);
        let error = load_params(&mut store, &key_bias, Part::Model(absent))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a bias for K"), "{error}");
    }
}
