//! The arguments of each command.

mod bench;
mod caption;
mod classify;
mod columns;
mod embed;
mod eval;
mod export;
mod model;
mod report;
mod score;
mod search;
mod selfcheck;
mod train;

pub use bench::BenchArgs;
pub use caption::CaptionArgs;
pub use classify::ClassifyArgs;
pub use columns::ColumnArgs;
pub use embed::{EmbedArgs, EmbedFormat};
pub use eval::EvalArgs;
pub use export::{ExportArgs, ExportFormat};
pub use model::{InferenceArgs, ModelArgs, StepChoice};
pub use report::ReportArgs;
pub use score::ScoreArgs;
pub use search::SearchArgs;
pub use selfcheck::SelfCheckArgs;
pub use train::{EventLevel, MetricsAddress, Resume, TimeoutArgs, TrainArgs};
