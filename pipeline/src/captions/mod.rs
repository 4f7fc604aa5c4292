//! The raw captions of a sample, from whichever member carries them.

pub mod names;
mod parse;
mod source;

use std::borrow::Cow;

use crate::error::SkipReason;
use crate::image_format::is_image_extension;
use crate::sample::{EncodedSample, Member, MemberData};
use names::CAPTION_MEMBER;

pub use parse::{
    captions_from_json, captions_from_json_field, captions_from_text, captions_from_value,
    one_line, CaptionError,
};
pub use source::{CaptionLines, CaptionSource};

/// Whether a tar member of this extension may carry captions.
pub fn is_caption_member(extension: &str) -> bool {
    extension == JSON || names::caption_rank(extension).is_some()
}

/// A member whose fields are looked at where no other member carries captions.
const JSON: &str = "json";

/// All non-empty captions of a sample, in stored order.
///
/// Of an Arrow shard, those of its caption column. Of a tar shard, those of the member that
/// [`names::choose`] prefers, else those in the `json` member; where a column is named, of the member
/// with that extension, else of that field of `json`.
///
/// # Errors
/// The skip reason and a message: no caption member, bytes that are not UTF-8, JSON without
/// captions, or nothing but white space.
pub fn raw_captions<'a>(
    sample: &'a EncodedSample,
    source: CaptionSource<'_>,
) -> Result<Vec<Cow<'a, str>>, (SkipReason, String)> {
    let carriers = caption_members(sample, source);
    let Some(first) = carriers.first() else {
        return Err((SkipReason::NoCaption, no_caption(sample, source)));
    };
    let mut captions = Vec::new();
    for member in &carriers {
        let found = captions_of(member, source)
            .map_err(|(reason, error)| (reason, format!("member `{}`: {error}", member.name)))?;
        if captions.is_empty() {
            captions = found;
        } else {
            captions.extend(found);
        }
    }
    if captions.is_empty() {
        let message = format!("member `{}` is empty", first.name);
        return Err((SkipReason::EmptyCaption, message));
    }
    Ok(captions)
}

/// The members that carry the captions of a sample; several, where their names are numbered.
pub(crate) fn caption_members<'a>(
    sample: &'a EncodedSample,
    source: CaptionSource<'_>,
) -> Vec<&'a Member> {
    let is_column = |member: &&Member| {
        member.name == CAPTION_MEMBER && matches!(member.data, MemberData::Text(_))
    };
    if let Some(column) = sample.members.iter().find(is_column) {
        return vec![column];
    }
    let json = || sample.member(JSON).into_iter().collect();
    match source.column {
        Some(column) => {
            let mut members = sample.members.iter();
            match members.find(|member| member.name.eq_ignore_ascii_case(column)) {
                Some(member) => vec![member],
                None => json(),
            }
        }
        None => {
            let members = sample.members.iter();
            let chosen = names::choose(members.map(|member| (member.name.as_str(), member)));
            match chosen.is_empty() {
                true => json(),
                false => chosen,
            }
        }
    }
}

fn captions_of<'a>(
    member: &'a Member,
    source: CaptionSource<'_>,
) -> Result<Vec<Cow<'a, str>>, (SkipReason, CaptionError)> {
    let bytes = match &member.data {
        MemberData::Text(texts) => {
            let texts = texts.iter().filter(|text| !text.trim().is_empty());
            return Ok(texts.map(|text| Cow::Borrowed(text.as_str())).collect());
        }
        MemberData::Bytes(bytes) => bytes,
    };
    let found = if member.name != JSON {
        captions_from_text(bytes, source.lines)
    } else {
        let found = match source.column {
            Some(field) if field != JSON => captions_from_json_field(bytes, field),
            _ => captions_from_json(bytes),
        };
        found.map(|captions| captions.into_iter().map(Cow::Owned).collect())
    };
    found.map_err(|error| (SkipReason::BadCaption, error))
}

/// What there is instead of a caption, and what may be wrong.
fn no_caption(sample: &EncodedSample, source: CaptionSource<'_>) -> String {
    let members = || sample.members.iter().map(|member| member.name.as_str());
    let held: Vec<_> = members().take(8).collect();
    let wanted = match source.column {
        Some(column) => format!("no member and no JSON field `{column}`"),
        None => "no member txt, caption, text, json, ...".to_string(),
    };
    let held = match held.is_empty() {
        true => "nothing that is read".to_string(),
        false => held.join(", "),
    };
    let mut images = members().filter(|name| is_image_extension(name)).peekable();
    let is_dotted = images.peek().is_some() && images.all(|name| name.contains('.'));
    let hint = match is_dotted {
        true => {
            "; a key ends at the first dot of the name, so that what follows is the extension: name \
             files without further dots, or pack them with `qfdata shard`"
        }
        false => "",
    };
    format!("no caption: {wanted} (it holds {held}){hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SampleId;

    fn sample(members: &[(&str, &[u8])]) -> EncodedSample {
        let id = SampleId {
            shard: "s".into(),
            shard_index: 0,
            sample_index: 0,
            key: "k".into(),
            offset_bytes: 0,
        };
        let members = members.iter();
        let member =
            |(name, data): &(&str, &[u8])| Member::new(*name, MemberData::Bytes(data.to_vec()));
        EncodedSample {
            id,
            members: members.map(member).collect(),
        }
    }

    fn captions_of(
        members: &[(&str, &[u8])],
        source: CaptionSource<'_>,
    ) -> Result<Vec<String>, (SkipReason, String)> {
        let sample = sample(members);
        let captions = raw_captions(&sample, source)?;
        Ok(captions.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn members_that_carry_captions() {
        let check = |members: &[(&str, &str)], expected: &[&str]| {
            let bytes: Vec<_> = members
                .iter()
                .map(|(name, text)| (*name, text.as_bytes()))
                .collect();
            let found = captions_of(&bytes, CaptionSource::default());
            assert_eq!(found.unwrap(), expected, "{members:?}");
        };
        check(&[("txt", "a cat\r\n\na dog\n")], &["a cat", "a dog"]);
        check(&[("json", r#""a cat""#)], &["a cat"]);
        check(&[("json", r#"["a", "b"]"#)], &["a", "b"]);
        check(&[("json", r#"{"url": 1, "caption": "a"}"#)], &["a"]);
        check(&[("json", r#"{"captions": ["a", " ", "b"]}"#)], &["a", "b"]);
        check(&[("json", r#"{"TEXT": "a", "NSFW": NaN}"#)], &["a"]);
        check(&[("text", "a")], &["a"]);
        check(&[("json", r#"{"caption": "j"}"#), ("alt", "a")], &["a"]);
        check(&[("caption", "c"), ("txt", "t")], &["t"]);
        check(
            &[("caption_1", "b"), ("jpg", ""), ("caption_0", "a")],
            &["a", "b"],
        );
        let fails = |name: &str, data: &[u8], reason| {
            let found = captions_of(&[(name, data)], CaptionSource::default());
            assert_eq!(found.unwrap_err().0, reason, "{name}");
        };
        fails("txt", b" \n\n", SkipReason::EmptyCaption);
        fails("txt", b"\xff\xfe", SkipReason::BadCaption);
        fails("cls", b"3", SkipReason::NoCaption);
        fails("json", b"{", SkipReason::BadCaption);
        fails("json", b"{}", SkipReason::BadCaption);
        fails("json", br#"{"caption": 3}"#, SkipReason::BadCaption);
        fails("json", br#"[""]"#, SkipReason::EmptyCaption);
    }

    #[test]
    fn a_named_column_is_taken_and_no_other() {
        let source = |column| CaptionSource {
            column: Some(column),
            ..CaptionSource::default()
        };
        let members: [(&str, &[u8]); 3] = [
            ("txt", b"t"),
            ("alt", b"a"),
            ("json", br#"{"caption": "c", "blip": {"large": "b"}}"#),
        ];
        let found = |column| captions_of(&members, source(column));
        assert_eq!(found("alt").unwrap(), ["a"]);
        assert_eq!(found("caption").unwrap(), ["c"]);
        assert_eq!(found("blip.large").unwrap(), ["b"]);
        let (reason, message) = found("recaption").unwrap_err();
        assert_eq!(reason, SkipReason::BadCaption);
        assert!(
            message.contains("`recaption`") && message.contains("`blip`"),
            "{message}"
        );
        let without_json = captions_of(&members[..2], source("recaption"));
        let (reason, message) = without_json.unwrap_err();
        assert_eq!(reason, SkipReason::NoCaption);
        assert!(
            message.contains("`recaption`") && message.contains("txt, alt"),
            "{message}"
        );
    }

    #[test]
    fn a_text_is_one_caption_or_one_a_line() {
        let found = |lines| {
            let source = CaptionSource {
                column: None,
                lines,
            };
            captions_of(&[("txt", b" a red bus \r\n\n on a road\n")], source).unwrap()
        };
        assert_eq!(found(CaptionLines::Each), ["a red bus", "on a road"]);
        assert_eq!(found(CaptionLines::One), ["a red bus on a road"]);
    }

    #[test]
    fn names_with_dots_are_explained() {
        let source = CaptionSource::default();
        let (_, message) = captions_of(&[("v2.jpg", b"")], source).unwrap_err();
        assert!(
            message.contains("first dot") && message.contains("v2.jpg"),
            "{message}"
        );
        let (_, message) = captions_of(&[("jpg", b""), ("seg.png", b"")], source).unwrap_err();
        assert!(
            !message.contains("dot") && message.contains("jpg, seg.png"),
            "{message}"
        );
    }
}
