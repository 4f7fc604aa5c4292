//! The three losses of BLIP-2 stage 1 as functions of tensors (arXiv 2301.12597, section 3.2;
//! LAVIS `lavis/models/blip2_models/blip2_qformer.py`).
//!
//! Dimensions: B batch of this rank, N = W · B batch of all ranks, Q queries, d embedding width,
//! T text tokens, V vocabulary.

pub mod itc;
pub mod itg;
pub mod itm;
