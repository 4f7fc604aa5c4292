//! Which vocabulary weights belong to, as a file's metadata says.

use qf_config::model::QformerConfig;
use qf_pipeline::text::VocabularyDigest;

use super::contents::VOCABULARY_KEY as KEY;
use super::file::WeightsFile;
use super::write::Metadata;
use crate::error::ModelError;

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
}
