//! Settings of a Q-Former and of its training, as written in TOML, and what is where in a run's folder.
//!
//! Nothing here needs libtorch, so a program can print, explain and check settings without opening it.
//!
//! ```
//! use qf_config::{ModelConfig, Schedule};
//!
//! let model = ModelConfig::tiny();
//! model.validate()?;
//! let rate = Schedule::default().lr(2000, 10_000, 10_000);
//! assert_eq!(rate, 1e-4);
//! # Ok::<(), qf_config::ConfigError>(())
//! ```

pub mod device;
pub mod error;
pub mod model;
pub mod optimizer;
pub mod run;
pub mod run_dir;
pub mod schedule;

pub use device::{DeviceChoice, Kernels};
pub use error::ConfigError;
pub use model::{ModelConfig, Precision, QformerConfig, VisionConfig, VitConfig};
pub use optimizer::AdamWConfig;
pub use run::TrainConfig;
pub use run_dir::RunDir;
pub use schedule::{Rates, Schedule};
