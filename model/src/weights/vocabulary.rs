//! Which vocabulary weights belong to: an id is a row of their word embeddings.

use std::collections::BTreeMap;

use qf_pipeline::text::{CaptionTokenizer, VocabularyDigest};

use super::names::Naming;
use super::WeightsFile;
use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::tensor_file::Metadata;

/// The model's word embeddings.
pub(super) const WORDS: &str = "Qformer.bert.embeddings.word_embeddings.weight";

/// Under this key the metadata of a safetensors file names the vocabulary.
const KEY: &str = "vocabulary_sha256";

/// The metadata of a file with the weights of such a model.
pub(crate) fn metadata(config: &QformerConfig) -> Metadata {
    let digest = config.vocabulary_sha256;
    digest
        .map(|digest| (KEY, digest.to_string()))
        .into_iter()
        .collect()
}

/// Refuses weights of another vocabulary than the model's. Where one of the two is not known there is
/// nothing to compare.
///
/// # Errors
/// [`ModelError::Vocabulary`] naming the file and both; [`ModelError::TensorFile`] for a file whose
/// metadata cannot be read.
pub(crate) fn check(file: &WeightsFile, config: &QformerConfig) -> Result<(), ModelError> {
    match (file.vocabulary()?, config.vocabulary_sha256) {
        (Some(of_file), Some(of_tokenizer)) if of_file != of_tokenizer => {
            Err(ModelError::Vocabulary {
                path: file.path().to_owned(),
                of_weights: of_file,
                of_tokenizer,
            })
        }
        _ => Ok(()),
    }
}

/// Adds what one more shard of a model says of itself; what is there already stays. Shards of several
/// vocabularies are an error, as text.
pub(super) fn join(
    all: &mut BTreeMap<String, String>,
    shard: BTreeMap<String, String>,
) -> Result<(), String> {
    if let (Some(first), Some(other)) = (all.get(KEY), shard.get(KEY)) {
        if first != other {
            return Err(format!(
                "its metadata `{KEY}` is {other}, that of an earlier shard {first}; fetch all shards \
                 again"
            ));
        }
    }
    for (key, value) in shard {
        all.entry(key).or_insert(value);
    }
    Ok(())
}

impl WeightsFile {
    /// Which vocabulary the word embeddings are of, where the file says so: checkpoints and exports of
    /// ours do.
    ///
    /// # Errors
    /// [`ModelError::TensorFile`] for an entry that is no digest.
    pub fn vocabulary(&self) -> Result<Option<VocabularyDigest>, ModelError> {
        let digest = self.metadata().get(KEY);
        let digest = digest.map(|text| text.parse::<VocabularyDigest>());
        digest.transpose().map_err(|error| ModelError::TensorFile {
            path: self.path().to_owned(),
            message: format!("its metadata `{KEY}` cannot be read: {error}"),
        })
    }

    /// Rows of the word embeddings; `None` if the file is of no known layout or has none.
    pub fn word_rows(&self) -> Option<usize> {
        let names: Vec<&str> = self.names().collect();
        let source = Naming::detect(&names)?.source(WORDS)?;
        let (shape, _) = self.info(source.first_name())?;
        shape.first().and_then(|&rows| usize::try_from(rows).ok())
    }
}

/// The first row of the file's word embeddings to which two tokenizers give different entries: its id,
/// and the entry of each (empty where it has none). Ids beyond the file's rows, as `[DEC]`'s in a BERT,
/// do not count.
pub fn first_difference<'a>(
    file: &WeightsFile,
    one: &'a CaptionTokenizer,
    other: &'a CaptionTokenizer,
) -> Option<(usize, &'a str, &'a str)> {
    let longest = one.vocab_size().max(other.vocab_size());
    let rows = file.word_rows().unwrap_or(longest).min(longest);
    let entries = |tokenizer: &'a CaptionTokenizer| {
        tokenizer.entries().map(Some).chain(std::iter::repeat(None))
    };
    let mut pairs = entries(one).zip(entries(other)).take(rows).enumerate();
    let (id, (one, other)) = pairs.find(|(_, (one, other))| one != other)?;
    Some((id, one.unwrap_or_default(), other.unwrap_or_default()))
}
