//! The BLIP-2 Q-Former on libtorch.
//!
//! ```text
//! pixels [B, 3, S, S] ──vision tower, ln_vision──▶ image features [B, M, E] ──┐
//!                                                                            ├──▶ three losses
//! token ids, mask [B, T] ────────────────────────────────────────────────────┘
//! ```
//!
//! One training step:
//!
//! ```no_run
//! use qf_model::{AdamW, AdamWConfig, Blip2Qformer, ModelConfig, NegativeSampling, Schedule};
//! use qf_model::{ModelError, SingleProcess, StepInput};
//! use tch::{Device, Tensor};
//!
//! fn train(batches: &[(Tensor, Tensor, Tensor)]) -> Result<(), ModelError> {
//!     let model = Blip2Qformer::new(&ModelConfig::tiny(), Device::Cpu, 42)?;
//!     let mut optimizer = AdamW::new(model.params(), &AdamWConfig::default())?;
//!     let schedule = Schedule::default();
//!     let steps = batches.len() as u64;
//!     for (step, (pixels, token_ids, attention_mask)) in (0..).zip(batches) {
//!         let image_embeds = model.encode_image(pixels)?;
//!         let input = StepInput {
//!             image_embeds: &image_embeds,
//!             token_ids,
//!             attention_mask,
//!             image_ids: None,
//!         };
//!         let negatives = NegativeSampling::Multinomial;
//!         let output = model.forward_losses(&input, negatives, &SingleProcess, true)?;
//!         optimizer.zero_grad()?;
//!         output.loss.f_backward()?;
//!         optimizer.step(schedule.lr(step, steps, steps))?;
//!     }
//!     Ok(())
//! }
//! ```

pub mod accelerator;
pub mod blip2;
pub mod checkpoint;
pub mod collective;
pub mod context;
mod cuda_library;
pub mod device;
pub mod error;
pub mod eval;
pub mod feed;
pub mod flops;
pub mod generate;
mod graph;
pub mod host;
pub mod host_memory;
pub mod host_threads;
mod layers;
pub mod loss;
mod low;
mod ops;
pub mod optim;
pub mod params;
mod qformer;
pub mod selfcheck;
pub mod tensor_file;
pub mod torch_profiler;
pub mod train;
pub mod vision;
pub mod weights;

pub use blip2::{
    Blip2Qformer, ComputeOptions, FrozenTower, HiddenRows, NegativeSampling, StepInput, StepOutput,
    TrainingImages,
};
pub use collective::{Collective, ProcessGroup, RankConfig, RankTimeouts, Ranks, SingleProcess};
pub use error::ModelError;
pub use optim::{AdamW, AdamWConfig};
pub use params::{LoadScope, ParamStore};
pub use qf_config::{model as config, run_dir, schedule};
pub use qf_config::{
    ModelConfig, Precision, QformerConfig, Rates, Schedule, VisionConfig, VitConfig,
};
