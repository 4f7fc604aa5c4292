//! Crop, resize, flip, normalise: pure functions of pixels and a seeded generator.
