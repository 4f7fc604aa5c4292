//! Captions to token ids: the caption processor, WordPiece, vocabulary training.

mod caption;
mod digest;
mod rows;
mod tokenizer;
mod train;

pub use caption::CaptionProcessor;
pub use digest::{NoDigest, VocabularyDigest};
pub use rows::TokenRows;
pub use tokenizer::CaptionTokenizer;
pub use train::{train_vocabulary, VocabularyOptions};
