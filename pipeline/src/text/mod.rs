//! Captions to token ids: the caption processor, WordPiece, vocabulary training.

mod caption;
mod rows;
mod tokenizer;
mod train;

pub use caption::CaptionProcessor;
pub use rows::TokenRows;
pub use tokenizer::CaptionTokenizer;
pub use train::{train_vocabulary, VocabularyOptions};
