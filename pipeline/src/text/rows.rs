//! Texts as rows of token ids.

use super::CaptionTokenizer;
use crate::error::PipelineError;

/// N texts as rows of T token ids and mask entries, padding included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRows {
    text_len: usize,
    /// `[N, T]`, row major.
    ids: Vec<i64>,
    /// `[N, T]`, 1 for a token, 0 for padding.
    mask: Vec<i64>,
}

impl TokenRows {
    /// No row yet, for rows of `text_len` entries.
    pub fn new(text_len: usize) -> TokenRows {
        TokenRows::with_capacity(text_len, 0)
    }

    /// The same, with room for `rows` rows.
    pub fn with_capacity(text_len: usize, rows: usize) -> TokenRows {
        TokenRows {
            text_len,
            ids: Vec::with_capacity(rows * text_len),
            mask: Vec::with_capacity(rows * text_len),
        }
    }

    /// Adds the row of a caption that has been through the caption processor:
    /// [`CaptionTokenizer::encode`].
    ///
    /// # Errors
    /// [`PipelineError::Tokenizer`] if the tokenizer fails; no row is added then.
    ///
    /// # Panics
    /// For rows of fewer than 2 entries.
    pub fn push(
        &mut self,
        tokenizer: &CaptionTokenizer,
        caption: &str,
    ) -> Result<(), PipelineError> {
        let start = self.ids.len();
        for entries in [&mut self.ids, &mut self.mask] {
            entries.resize(start + self.text_len, 0);
        }
        let (ids, mask) = (&mut self.ids[start..], &mut self.mask[start..]);
        let encoded = tokenizer.encode(caption, ids, mask);
        if encoded.is_err() {
            self.ids.truncate(start);
            self.mask.truncate(start);
        }
        encoded
    }

    /// Adds the rows of `other` behind its own.
    ///
    /// # Panics
    /// If they are of another length.
    pub fn append(&mut self, other: &TokenRows) {
        assert_eq!(other.text_len, self.text_len, "length of token rows");
        self.ids.extend_from_slice(&other.ids);
        self.mask.extend_from_slice(&other.mask);
    }

    /// Number of rows N.
    pub fn len(&self) -> usize {
        self.ids.len() / self.text_len.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Entries of a row T.
    pub fn text_len(&self) -> usize {
        self.text_len
    }

    /// Token ids `[N, T]`, row major.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// Mask `[N, T]`, row major: 1 for a token, 0 for padding.
    pub fn mask(&self) -> &[i64] {
        &self.mask
    }

    /// Tokens of each row, padding not counted: `[N]`.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        let rows = self.mask.chunks(self.text_len.max(1));
        rows.map(|row| {
            row.iter()
                .rposition(|&mask| mask != 0)
                .map_or(0, |last| last + 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_order() {
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"];
        let tokenizer = CaptionTokenizer::from_vocab(words.map(String::from).to_vec());
        let tokenizer = tokenizer.expect("a vocabulary");
        let mut rows = TokenRows::new(5);
        assert!(rows.is_empty());
        rows.push(&tokenizer, "a dog").expect("encodes");
        let mut more = TokenRows::with_capacity(5, 1);
        more.push(&tokenizer, "dog").expect("encodes");
        rows.append(&more);
        assert_eq!((rows.len(), rows.text_len()), (2, 5));
        assert_eq!(rows.ids(), [2, 5, 6, 3, 0, 2, 6, 3, 0, 0]);
        assert_eq!(rows.mask(), [1, 1, 1, 1, 0, 1, 1, 1, 0, 0]);
        assert!(rows.lengths().eq([4, 3]));
    }
}
