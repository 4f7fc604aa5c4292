//! Which image a sample shows, where several samples may show the same: several captions of an image, each a
//! sample of its own, as LAVIS has COCO.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::SkipReason;
use crate::json::as_f64;
use crate::sample::{EncodedSample, Member, MemberData};

/// The field of a sample's `json` member, or its member or column, that names its image.
pub const FIELD: &str = "image_id";

/// Where image ids come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageIds {
    /// Nowhere: every sample counts as an image of its own.
    #[default]
    None,
    /// From the field `image_id` of the sample's `json` member, a whole number or a text, or from a member
    /// (tar) or text column (Arrow) of this name. A sample without is bad.
    Field,
    /// From the SHA-256 of the image as it is stored: its first 8 bytes.
    Digest,
}

impl ImageIds {
    /// The members that ids are read from.
    pub(crate) fn members(self) -> &'static [&'static str] {
        match self {
            ImageIds::Field => &["json", FIELD],
            ImageIds::None | ImageIds::Digest => &[],
        }
    }

    /// The id of a sample's image, whose file is `image`; `None` where there are none.
    pub(crate) fn of(
        self,
        sample: &EncodedSample,
        image: &[u8],
    ) -> Result<Option<i64>, (SkipReason, String)> {
        match self {
            ImageIds::None => Ok(None),
            ImageIds::Digest => Ok(Some(of_bytes(image))),
            ImageIds::Field => match of_fields(sample) {
                Ok(id) => Ok(Some(id)),
                Err(message) => Err((SkipReason::BadMetadata, message)),
            },
        }
    }
}

fn of_fields(sample: &EncodedSample) -> Result<i64, String> {
    if let Some(member) = sample.member(FIELD) {
        return of_member(member);
    }
    let Some(member) = sample.member("json") else {
        return Err(format!(
            "it has neither `{FIELD}` nor a member `json` with it; data.image_ids = \"digest\" tells images apart \
             by their bytes"
        ));
    };
    let json = member.json()?;
    match json.get(FIELD) {
        None => Err(format!("its `json` has no `{FIELD}`")),
        Some(Value::String(text)) => Ok(of_text(text)),
        Some(value) => of_number(value)
            .ok_or_else(|| format!("its `{FIELD}` is neither a whole number nor a text")),
    }
}

fn of_member(member: &Member) -> Result<i64, String> {
    match &member.data {
        MemberData::Bytes(bytes) => Ok(of_text(&String::from_utf8_lossy(bytes))),
        MemberData::Text(texts) => match texts.as_slice() {
            [text] => Ok(of_text(text)),
            texts => Err(format!("its `{FIELD}` holds {} texts", texts.len())),
        },
    }
}

/// A whole number, also one that was written as `12.0`.
fn of_number(value: &Value) -> Option<i64> {
    /// Whole numbers up to here are exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = as_f64(value)?;
        let is_whole = number.fract() == 0.0 && number.abs() <= EXACT;
        is_whole.then_some(number as i64)
    })
}

/// A whole number as one, any other text by its digest.
fn of_text(text: &str) -> i64 {
    let text = text.trim();
    text.parse().unwrap_or_else(|_| of_bytes(text.as_bytes()))
}

fn of_bytes(bytes: &[u8]) -> i64 {
    let digest = Sha256::digest(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SampleId;

    fn sample(members: &[(&str, &str)]) -> EncodedSample {
        let members = members.iter();
        EncodedSample {
            id: SampleId {
                shard: "s".into(),
                shard_index: 0,
                sample_index: 0,
                key: "k".into(),
                offset_bytes: 0,
            },
            members: members
                .map(|(name, text)| Member::new(*name, MemberData::Bytes(text.as_bytes().to_vec())))
                .collect(),
        }
    }

    fn field(members: &[(&str, &str)]) -> Result<i64, String> {
        let id = ImageIds::Field.of(&sample(members), b"");
        id.map(Option::unwrap).map_err(|(reason, message)| {
            assert_eq!(reason, SkipReason::BadMetadata);
            message
        })
    }

    #[test]
    fn ids_are_numbers_texts_or_digests() {
        assert_eq!(field(&[("json", r#"{"image_id": 391895}"#)]), Ok(391_895));
        assert_eq!(
            field(&[("json", r#"{"image_id": -7.0, "x": NaN}"#)]),
            Ok(-7)
        );
        assert_eq!(field(&[("json", r#"{"image_id": " 42 "}"#)]), Ok(42));
        assert_eq!(field(&[("image_id", "42\n"), ("json", "no")]), Ok(42));
        let names = ["a.jpg", "b.jpg", "a.jpg"].map(|name| {
            let json = format!(r#"{{"image_id": "{name}"}}"#);
            field(&[("json", &json)]).unwrap()
        });
        assert_eq!(names[0], names[2]);
        assert_ne!(names[0], names[1]);
        // As `printf abc | sha256sum` has it.
        let digest = ImageIds::Digest.of(&sample(&[]), b"abc").unwrap();
        assert_eq!(digest, Some(0xba78_16bf_8f01_cfea_u64 as i64));
        assert_eq!(ImageIds::None.of(&sample(&[]), b"abc").unwrap(), None);
    }

    #[test]
    fn a_sample_without_an_id_is_bad() {
        for (members, part) in [
            (&[][..], "neither `image_id` nor"),
            (&[("json", "{}")], "no `image_id`"),
            (&[("json", "[1]")], "no `image_id`"),
            (&[("json", "{")], "not JSON"),
            (&[("json", r#"{"image_id": 1.5}"#)], "whole number"),
            (&[("json", r#"{"image_id": null}"#)], "whole number"),
            (&[("json", r#"{"image_id": 1e300}"#)], "whole number"),
        ] {
            let message = field(members).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
