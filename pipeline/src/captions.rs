//! The raw captions of a sample, from whichever member carries them.

use std::borrow::Cow;

use crate::error::SkipReason;
use crate::sample::{EncodedSample, MemberData};
use crate::shard::captions::{captions_from_json, captions_from_text};

/// Extensions that carry captions in a tar shard, in order of preference.
///
/// `txt` and `caption` hold one caption a line; `json` is read by [`captions_from_json`].
pub const CAPTION_EXTENSIONS: [&str; 3] = ["txt", "caption", "json"];

/// Whether a tar member of this extension may carry captions.
pub fn is_caption_member(extension: &str) -> bool {
    CAPTION_EXTENSIONS.contains(&extension)
}

/// All non-empty captions of a sample, in stored order.
///
/// The column `caption_column` of an Arrow shard comes first, then [`CAPTION_EXTENSIONS`].
///
/// # Errors
/// The skip reason and a message: no caption member, bytes that are not UTF-8, JSON without
/// captions, or nothing but white space.
pub fn raw_captions<'a>(
    sample: &'a EncodedSample,
    caption_column: &str,
) -> Result<Vec<Cow<'a, str>>, (SkipReason, String)> {
    let names = std::iter::once(caption_column).chain(CAPTION_EXTENSIONS);
    let member = names
        .filter_map(|name| sample.member(name))
        .next()
        .ok_or_else(|| {
            let message = format!("no caption: no member {}", CAPTION_EXTENSIONS.join(", "));
            (SkipReason::NoCaption, message)
        })?;
    let captions = match &member.data {
        MemberData::Text(texts) => texts
            .iter()
            .filter(|text| !text.trim().is_empty())
            .map(|text| Cow::Borrowed(text.as_str()))
            .collect(),
        MemberData::Bytes(bytes) => if member.name == "json" {
            captions_from_json(bytes).map(|captions| captions.into_iter().map(Cow::Owned).collect())
        } else {
            captions_from_text(bytes)
        }
        .map_err(|error| {
            (
                SkipReason::BadCaption,
                format!("member `{}`: {error}", member.name),
            )
        })?,
    };
    if captions.is_empty() {
        return Err((
            SkipReason::EmptyCaption,
            format!("member `{}` is empty", member.name),
        ));
    }
    Ok(captions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Member, SampleId};

    fn captions_of(name: &str, data: &[u8]) -> Result<Vec<String>, SkipReason> {
        let id = SampleId {
            shard: "s".into(),
            shard_index: 0,
            sample_index: 0,
            key: "k".into(),
            offset_bytes: 0,
        };
        let member = Member::new(name, MemberData::Bytes(data.to_vec()));
        let sample = EncodedSample {
            id,
            members: vec![member],
        };
        let captions = raw_captions(&sample, "caption").map_err(|(reason, _)| reason)?;
        Ok(captions.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn members_that_carry_captions() {
        let check = |name: &str, data: &str, expected: &[&str]| {
            assert_eq!(
                captions_of(name, data.as_bytes()).unwrap(),
                expected,
                "{name} {data}"
            );
        };
        check("txt", "a cat\r\n\na dog\n", &["a cat", "a dog"]);
        check("json", r#""a cat""#, &["a cat"]);
        check("json", r#"["a", "b"]"#, &["a", "b"]);
        check("json", r#"{"url": 1, "caption": "a"}"#, &["a"]);
        check("json", r#"{"captions": ["a", " ", "b"]}"#, &["a", "b"]);
        let fails = |name: &str, data: &[u8], reason| {
            assert_eq!(captions_of(name, data), Err(reason), "{name}");
        };
        fails("txt", b" \n\n", SkipReason::EmptyCaption);
        fails("txt", b"\xff\xfe", SkipReason::BadCaption);
        fails("cls", b"3", SkipReason::NoCaption);
        fails("json", b"{", SkipReason::BadCaption);
        fails("json", b"{}", SkipReason::BadCaption);
        fails("json", br#"{"caption": 3}"#, SkipReason::BadCaption);
        fails("json", br#"[""]"#, SkipReason::EmptyCaption);
    }
}
