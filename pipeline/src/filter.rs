//! Which good samples a run leaves out.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{PipelineError, SkipReason};
use crate::json::as_f64;
use crate::sample::EncodedSample;

/// Filters of a run; those at their defaults let everything through. What each leaves out is counted
/// under a reason of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filters {
    /// A caption with fewer words, as it lies in the shard, is not used. Default 0.
    pub min_caption_words: usize,
    /// A caption with more words is not used; 0 means any number. Default 0.
    pub max_caption_words: usize,
    /// An image whose shorter side has fewer pixels is left out. Default 0.
    pub min_side: u32,
    /// An image whose longer side has more pixels is left out; 0 means any. Default 0.
    pub max_side: u32,
    /// An image whose longer side is more than this many times the shorter is left out; 0 means any.
    /// Default 0.
    pub max_aspect: f64,
    /// What the sample's `json` member must say. Default nothing.
    pub metadata: Vec<MetadataFilter>,
}

/// Bounds of a number in a sample's `json` member. A sample without the number is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataFilter {
    /// Its name; dots go into objects: `clip.similarity`.
    pub field: String,
    /// The smallest that is let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The largest that is let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl Default for Filters {
    fn default() -> Self {
        Filters {
            min_caption_words: 0,
            max_caption_words: 0,
            min_side: 0,
            max_side: 0,
            max_aspect: 0.0,
            metadata: Vec::new(),
        }
    }
}

/// Why a sample is left out.
type LeftOut = (SkipReason, String);

impl Filters {
    /// Checks that the filters can let anything through.
    ///
    /// # Errors
    /// [`PipelineError::Config`] naming the first that cannot.
    pub fn validate(&self) -> Result<(), PipelineError> {
        let message = if self.max_caption_words != 0
            && self.max_caption_words < self.min_caption_words
        {
            "max_caption_words is below min_caption_words".to_string()
        } else if self.max_side != 0 && self.max_side < self.min_side {
            "max_side is below min_side".to_string()
        } else if self.max_aspect.is_nan() || (self.max_aspect != 0.0 && self.max_aspect < 1.0) {
            "max_aspect must be at least 1 (longer side by shorter), or 0 for any".to_string()
        } else if let Some(filter) = self.metadata.iter().find(|filter| filter.is_pointless()) {
            format!(
                "metadata `{}`: give a field, and min or max, with min <= max",
                filter.field
            )
        } else {
            return Ok(());
        };
        Err(PipelineError::Config {
            setting: "filters",
            message,
        })
    }

    /// Whether a caption is used.
    pub(crate) fn takes_caption(&self, caption: &str) -> bool {
        if self.min_caption_words == 0 && self.max_caption_words == 0 {
            return true;
        }
        let words = caption.split_whitespace().count();
        words >= self.min_caption_words
            && (self.max_caption_words == 0 || words <= self.max_caption_words)
    }

    /// Judges an image by its size in pixels.
    pub(crate) fn image(&self, width: u32, height: u32) -> Result<(), LeftOut> {
        let (short, long) = (width.min(height), width.max(height));
        if short < self.min_side {
            let message = format!("{width}×{height} pixels, min_side is {}", self.min_side);
            return Err((SkipReason::FilteredSize, message));
        }
        if self.max_side != 0 && long > self.max_side {
            let message = format!("{width}×{height} pixels, max_side is {}", self.max_side);
            return Err((SkipReason::FilteredSize, message));
        }
        if self.max_aspect != 0.0 && f64::from(long) > self.max_aspect * f64::from(short) {
            let message = format!("{width}×{height} pixels, max_aspect is {}", self.max_aspect);
            return Err((SkipReason::FilteredAspect, message));
        }
        Ok(())
    }

    /// Judges a sample by its `json` member. One that is no JSON is bad, not filtered.
    pub(crate) fn metadata(&self, sample: &EncodedSample) -> Result<(), LeftOut> {
        if self.metadata.is_empty() {
            return Ok(());
        }
        let left_out = |message: String| (SkipReason::FilteredMetadata, message);
        let member = sample
            .member("json")
            .ok_or_else(|| left_out("it has no member `json`".into()))?;
        let json = member
            .json()
            .map_err(|message| (SkipReason::BadMetadata, message))?;
        for filter in &self.metadata {
            filter.judge(&json).map_err(left_out)?;
        }
        Ok(())
    }
}

impl MetadataFilter {
    fn is_pointless(&self) -> bool {
        let (min, max) = (self.min, self.max);
        let ordered = match (min, max) {
            (None, None) => false,
            (Some(min), Some(max)) => min <= max,
            (Some(bound), None) | (None, Some(bound)) => !bound.is_nan(),
        };
        self.field.is_empty() || !ordered
    }

    fn judge(&self, json: &Value) -> Result<(), String> {
        let field = &self.field;
        let found = json.get(field).or_else(|| {
            let mut parts = field.split('.');
            parts.try_fold(json, |value, part| value.get(part))
        });
        let Some(number) = found.and_then(as_f64) else {
            return Err(format!("its `{field}` is not a number"));
        };
        if let Some(min) = self.min.filter(|min| number < *min) {
            return Err(format!(
                "its `{field}` is {number}, at least {min} is wanted"
            ));
        }
        if let Some(max) = self.max.filter(|max| number > *max) {
            return Err(format!(
                "its `{field}` is {number}, at most {max} is wanted"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::sample::{Member, MemberData, SampleId};

    #[test]
    fn images() {
        let filters = Filters {
            min_side: 64,
            max_side: 4000,
            max_aspect: 3.0,
            ..Filters::default()
        };
        let reason = |width, height| filters.image(width, height).err().map(|(reason, _)| reason);
        assert_eq!(reason(64, 64), None);
        assert_eq!(reason(192, 64), None);
        assert_eq!(reason(63, 640), Some(SkipReason::FilteredSize));
        assert_eq!(reason(4001, 4000), Some(SkipReason::FilteredSize));
        assert_eq!(reason(100, 301), Some(SkipReason::FilteredAspect));
        assert!(Filters::default().image(0, u32::MAX).is_ok());
    }

    #[test]
    fn metadata() {
        let filter = |field: &str, min, max| MetadataFilter {
            field: field.into(),
            min,
            max,
        };
        let judge = |json: &str, metadata: &[MetadataFilter]| {
            let sample = EncodedSample {
                id: SampleId {
                    shard: "s".into(),
                    shard_index: 0,
                    sample_index: 0,
                    key: "k".into(),
                    offset_bytes: 0,
                },
                members: vec![Member::new(
                    "json",
                    MemberData::Bytes(json.as_bytes().to_vec()),
                )],
            };
            let filters = Filters {
                metadata: metadata.to_vec(),
                ..Filters::default()
            };
            filters.validate().unwrap();
            let left_out = filters.metadata(&sample).err()?;
            assert_eq!(left_out.0.is_filter(), !json.starts_with("{{"), "{json}");
            Some(left_out.1)
        };
        let similar = filter("similarity", Some(0.28), None);
        assert_eq!(judge(r#"{"similarity": 0.28}"#, from_ref(&similar)), None);
        let low = judge(r#"{"similarity": 0.27}"#, from_ref(&similar)).unwrap();
        assert!(low.contains("0.27") && low.contains("0.28"), "{low}");
        assert!(judge(r#"{"other": 1}"#, from_ref(&similar)).is_some());
        assert!(judge("{{", from_ref(&similar)).is_some());
        // Python's numbers: NaN is never within bounds, infinity may be.
        let python = r#"{"similarity": 0.3, "punsafe": NaN, "aesthetic": -Infinity}"#;
        assert_eq!(judge(python, from_ref(&similar)), None);
        assert!(judge(r#"{"similarity": NaN}"#, from_ref(&similar)).is_some());
        assert_eq!(
            judge(r#"{"similarity": Infinity}"#, from_ref(&similar)),
            None
        );
        assert!(judge(r#"{"similarity": -Infinity}"#, from_ref(&similar)).is_some());
        let nested = filter("clip.score", None, Some(2.0));
        assert_eq!(judge(r#"{"clip": {"score": 2}}"#, from_ref(&nested)), None);
        assert_eq!(judge(r#"{"clip.score": 1}"#, from_ref(&nested)), None);
        assert!(judge(r#"{"clip": {"score": 3}}"#, from_ref(&nested)).is_some());
        assert!(judge(r#"{"similarity": 1}"#, &[similar, nested]).is_some());
        assert_eq!(judge("[", &[]), None);
    }

    #[test]
    fn filters_that_let_nothing_through_are_refused() {
        let refused = |filters: Filters| filters.validate().is_err();
        let aspect = |max_aspect| Filters {
            max_aspect,
            ..Filters::default()
        };
        assert!(refused(aspect(0.5)) && refused(aspect(f64::NAN)) && !refused(aspect(1.0)));
        let metadata = |field: &str, min, max| Filters {
            metadata: vec![MetadataFilter {
                field: field.into(),
                min,
                max,
            }],
            ..Filters::default()
        };
        assert!(refused(metadata("", Some(1.0), None)));
        assert!(refused(metadata("a", None, None)));
        assert!(refused(metadata("a", Some(2.0), Some(1.0))));
        assert!(refused(metadata("a", Some(f64::NAN), None)));
        assert!(!refused(metadata("a", Some(1.0), Some(1.0))));
        let words = Filters {
            min_caption_words: 5,
            max_caption_words: 4,
            ..Filters::default()
        };
        assert!(refused(words));
    }
}
