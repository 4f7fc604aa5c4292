//! What rank 0 writes while it trains.

use qf_config::run_dir::RunDir;
use qf_pipeline::config::OnBad;

use super::record::MetricsFile;
use super::skip_log::{SkipLog, Warnings};
use super::{TrainConfig, Trainer};
use crate::checkpoint::{CheckpointWriter, Retention, TrainState};
use crate::collective::Ranks;
use crate::error::ModelError;

pub(super) struct Output {
    pub(super) metrics: MetricsFile,
    pub(super) skips: SkipLog,
    pub(super) writer: CheckpointWriter,
}

impl Output {
    /// Opens the files of a run that goes on after `step`.
    pub(super) fn open(
        config: &TrainConfig,
        run_dir: &RunDir,
        step: u64,
    ) -> Result<Output, ModelError> {
        let retention = Retention {
            newest: config.keep_checkpoints,
        };
        let warnings = Warnings {
            of_samples: config.data.on_bad_sample == OnBad::Warn,
            of_shards: config.data.on_bad_shard == OnBad::Warn,
        };
        Ok(Output {
            metrics: MetricsFile::open(&run_dir.metrics(), step)?,
            skips: SkipLog::open(&run_dir.skipped(), step, warnings)?,
            writer: CheckpointWriter::start(run_dir.checkpoints(), retention)?,
        })
    }

    /// Begins to write a checkpoint; see [`CheckpointWriter::save`].
    pub(super) fn save(
        &mut self,
        trainer: &Trainer,
        config: &TrainConfig,
        state: TrainState,
        ranks: &dyn Ranks,
    ) -> Result<(), ModelError> {
        let text = toml::to_string(config).map_err(|error| ModelError::Input {
            what: "configuration",
            message: format!("cannot be written as TOML: {error}"),
        })?;
        let mut logs = vec![self.metrics.handle()?];
        logs.extend(self.skips.handle()?);
        let (model, optimizer) = (&trainer.model, &trainer.optimizer);
        (self.writer).save(model, optimizer, ranks, state, text, logs)
    }
}
