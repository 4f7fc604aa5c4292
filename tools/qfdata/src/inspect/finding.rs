//! Something that was found, and where.

use std::sync::Arc;

use serde::Serialize;

use super::codes::{self, Code};

/// Something that was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) code: &'static Code,
    pub(crate) severity: codes::Severity,
    #[serde(serialize_with = "as_text")]
    pub(crate) shard: Arc<str>,
    /// Of the sample, or the path of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// In the uncompressed shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset_bytes: Option<u64>,
    pub(crate) message: String,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Finding {
    pub(crate) fn of_shard(code: &'static Code, shard: &Arc<str>, message: String) -> Finding {
        Finding {
            code,
            severity: code.severity,
            shard: shard.clone(),
            key: None,
            offset_bytes: None,
            message,
        }
    }

    pub(crate) fn at(mut self, key: &str, offset_bytes: u64) -> Finding {
        self.key = Some(key.to_string());
        self.offset_bytes = Some(offset_bytes);
        self
    }
}
