//! The data sets of a mixture.

use super::{resolve_shards_with, ShardLocation};
use crate::error::PipelineError;
use crate::remote::RemoteOptions;
use crate::shard_spec::DisplayUrl;

/// A data set of a mixture.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// Name in reports and saved states.
    pub name: String,
    /// Its shards.
    pub shards: Vec<ShardLocation>,
    /// Its share of samples, relative to the other sets' weights.
    pub weight: f64,
}

impl DataSet {
    /// The only data set of a run.
    pub fn only(shards: Vec<ShardLocation>) -> DataSet {
        DataSet {
            name: String::new(),
            shards,
            weight: 1.0,
        }
    }

    /// A [`split_spec`] text with its shards resolved.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for a text of another form, and as [`resolve_shards_with`].
    pub fn from_spec(text: &str, remote: &RemoteOptions) -> Result<DataSet, PipelineError> {
        let (name, weight, spec) = split_spec(text)?;
        Ok(DataSet {
            name: name.to_string(),
            shards: resolve_shards_with(&[spec], remote)?,
            weight,
        })
    }
}

/// Takes `NAME:WEIGHT=SHARDS` apart, e.g. `coco:0.7=coco/{000..117}.tar`.
///
/// # Errors
/// [`PipelineError::Config`] for a text of another form.
pub fn split_spec(text: &str) -> Result<(&str, f64, &str), PipelineError> {
    let bad = |message: String| PipelineError::Config {
        setting: "mix",
        message,
    };
    let usage = || {
        bad(format!(
            "`{}` is not NAME:WEIGHT=SHARDS, e.g. coco:0.7='coco-*.tar'",
            DisplayUrl::of(text)
        ))
    };
    let (head, spec) = text.split_once('=').ok_or_else(usage)?;
    let (name, weight) = head.rsplit_once(':').ok_or_else(usage)?;
    let number = weight
        .parse()
        .map_err(|_| bad(format!("the weight `{weight}` of `{name}` is not a number")))?;
    if name.is_empty() || spec.is_empty() {
        return Err(usage());
    }
    Ok((name, number, spec))
}
