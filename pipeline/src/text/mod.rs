//! Captions to token ids: the caption processor, WordPiece, vocabulary training.
