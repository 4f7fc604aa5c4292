//! What a check works with, and what it finds.

use std::path::PathBuf;

use qf_config::model::Precision;
use serde::Serialize;
use serde_json::{Map, Value};
use tch::{Device, TchError};

use crate::error::ModelError;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    /// Its name.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What it measured, by name.
    pub figures: Map<String, Value>,
    /// How long it took.
    pub seconds: f64,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// As it should.
    Ok,
    /// Not made, for this reason.
    Skipped {
        /// Why.
        reason: String,
    },
    /// Something is wrong.
    Failed(Fault),
}

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// What was compared or tried.
    pub what: String,
    /// What came out.
    pub got: String,
    /// What should have.
    pub expected: String,
    /// What to do.
    pub advice: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault {
            what,
            got,
            expected,
            advice,
        } = self;
        write!(f, "{what}: {got}, expected {expected}; {advice}")
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Fault {
        Fault {
            what: "a call that should succeed".into(),
            // libtorch's messages go on with where it was thrown.
            got: error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_string(),
            expected: "no error".into(),
            advice: ADVICE.into(),
        }
    }
}

impl From<TchError> for Fault {
    fn from(error: TchError) -> Fault {
        ModelError::from(error).into()
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault {
            what: "a temporary file".into(),
            got: error.to_string(),
            expected: "no error".into(),
            advice: "check the disk of TMPDIR".into(),
        }
    }
}

impl From<qf_pipeline::PipelineError> for Fault {
    fn from(error: qf_pipeline::PipelineError) -> Fault {
        ModelError::from(error).into()
    }
}

/// What to do about numbers that are wrong.
pub(super) const ADVICE: &str = "compare with --device cpu: where that passes, the driver, the GPU or libtorch's CUDA \
                      part is at fault (look at nvidia-smi and dmesg); where it fails too, this build of \
                      the program is";

/// What a check works with.
pub(super) struct Bench {
    pub(super) device: Device,
    pub(super) precision: Precision,
    pub(super) golden: Option<PathBuf>,
    pub(super) figures: Map<String, Value>,
}

impl Bench {
    /// Notes a figure for the report.
    pub(super) fn note(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }
}

/// Why a check was not made, or what it found to be wrong.
pub(super) enum NotOk {
    Skipped(String),
    Fault(Fault),
}

impl<E: Into<Fault>> From<E> for NotOk {
    fn from(error: E) -> NotOk {
        NotOk::Fault(error.into())
    }
}
