//! The BLIP-2 Q-Former on libtorch.
//!
//! ```text
//! pixels [B, 3, S, S] ──vision tower, ln_vision──▶ image features [B, M, E] ─┐
//! token ids, mask [B, T] ──────────────────────────────────────────────────┴─▶ four Q-Former passes ──▶ ITC + ITM + ITG losses
//! ```

pub mod blip2;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod device;
pub mod error;
pub mod eval;
pub mod host;
mod layers;
pub mod loss;
pub mod optim;
pub mod params;
mod qformer;
pub mod run_dir;
pub mod schedule;
pub mod tensor_file;
pub mod train;
pub mod vision;
pub mod weights;

pub use blip2::{Blip2Qformer, NegativeSampling, StepInput, StepOutput};
pub use collective::{Collective, SingleProcess};
pub use config::{ModelConfig, QformerConfig, VisionConfig, VitConfig};
pub use error::ModelError;
pub use optim::{AdamW, AdamWConfig};
pub use params::{LoadScope, ParamStore};
pub use schedule::{Rates, Schedule};
