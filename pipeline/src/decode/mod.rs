//! Encoded bytes to upright RGB pixels: pure functions.
