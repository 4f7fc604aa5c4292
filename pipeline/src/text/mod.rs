//! Captions to token ids: the caption processor, WordPiece, vocabulary training.

mod caption;
mod tokenizer;
mod train;

pub use caption::CaptionProcessor;
pub use tokenizer::CaptionTokenizer;
pub use train::{train_vocabulary, VocabularyOptions};
