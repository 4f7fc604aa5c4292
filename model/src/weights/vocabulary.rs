//! Which vocabulary weights belong to: an id is a row of their word embeddings.

use qf_pipeline::text::CaptionTokenizer;

use super::names::Naming;
use crate::tensor_file::WeightsFile;

/// The model's word embeddings.
pub(super) const WORDS: &str = "Qformer.bert.embeddings.word_embeddings.weight";

impl WeightsFile {
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
