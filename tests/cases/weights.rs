//! See `tests/cases/mod.rs`.
