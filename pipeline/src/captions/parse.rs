//! What a `.txt` or `.json` member (or file) says: its captions, in order.
//!
//! | input | captions |
//! |---|---|
//! | text | every line that is not blank, or all of it as one: [`CaptionLines`] |
//! | JSON string | that string |
//! | JSON list | its strings, and of an object in it the string that `raw` or a [name of captions](names) has; nulls are left out |
//! | JSON object | the string, list or object under the field that [`names::choose`] prefers |
//!
//! Captions come trimmed and on one line; blank ones are left out. An empty list therefore means
//! "there is a caption, and it is empty".

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::names;
use super::CaptionLines;
use crate::json;

/// Why no captions could be taken from a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptionError {
    /// The bytes are not UTF-8 text.
    #[error("caption is not UTF-8: bad byte at offset {offset_bytes}")]
    NotUtf8 {
        /// Where the first bad byte is.
        offset_bytes: usize,
    },
    /// The bytes are not JSON.
    #[error("caption is not JSON: {0}")]
    NotJson(String),
    /// JSON without the field that was named.
    #[error("JSON has no field `{field}`: got {got}")]
    NoField {
        /// The field that was asked for.
        field: String,
        /// What there is instead.
        got: String,
    },
    /// JSON without a caption where one is looked for.
    #[error("JSON holds no caption: expected a string, a list of strings, or an object with `caption`, `text` or the like, got {got}")]
    NoCaption {
        /// What there is instead.
        got: String,
    },
}

/// The captions of a text member.
///
/// # Errors
/// [`CaptionError::NotUtf8`].
pub fn captions_from_text(
    bytes: &[u8],
    lines: CaptionLines,
) -> Result<Vec<Cow<'_, str>>, CaptionError> {
    let text = utf8(bytes)?;
    Ok(match lines {
        CaptionLines::Each => text.lines().filter_map(one_line).collect(),
        CaptionLines::One => one_line(text).into_iter().collect(),
    })
}

/// The captions of a JSON member.
///
/// # Errors
/// [`CaptionError`], each of its variants but [`CaptionError::NoField`].
pub fn captions_from_json(bytes: &[u8]) -> Result<Vec<String>, CaptionError> {
    captions_from_value(&parse(bytes)?)
}

/// The captions under one field of a JSON member; dots go into objects: `blip.large`.
///
/// # Errors
/// [`CaptionError`], each of its variants.
pub fn captions_from_json_field(bytes: &[u8], field: &str) -> Result<Vec<String>, CaptionError> {
    let value = parse(bytes)?;
    let found = value.get(field).or_else(|| {
        let mut parts = field.split('.');
        parts.try_fold(&value, |value, part| value.get(part))
    });
    match found {
        Some(found) => captions_from_value(found),
        None => Err(CaptionError::NoField {
            field: field.to_owned(),
            got: description(&value),
        }),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, CaptionError> {
    let text = std::str::from_utf8(bytes).map_err(|error| CaptionError::NotUtf8 {
        offset_bytes: error.valid_up_to(),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn parse(bytes: &[u8]) -> Result<Value, CaptionError> {
    let text = utf8(bytes)?;
    json::parse(text.as_bytes()).map_err(|e| CaptionError::NotJson(e.to_string()))
}

/// The captions of a parsed JSON value.
///
/// # Errors
/// [`CaptionError::NoCaption`].
pub fn captions_from_value(value: &Value) -> Result<Vec<String>, CaptionError> {
    let no_caption = |value: &Value| CaptionError::NoCaption {
        got: description(value),
    };
    let Value::Object(fields) = value else {
        return match value {
            Value::String(_) | Value::Array(_) => texts(value),
            other => Err(no_caption(other)),
        };
    };
    let held = fields.iter().filter(|(_, field)| !field.is_null());
    let chosen = names::choose(held.map(|(name, field)| (name.as_str(), field)));
    if chosen.is_empty() {
        return Err(no_caption(value));
    }
    let mut captions = Vec::new();
    for field in chosen {
        captions.append(&mut texts(field)?);
    }
    Ok(captions)
}

/// A string, a list of strings and sentences, or a sentence.
fn texts(value: &Value) -> Result<Vec<String>, CaptionError> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let is_list = matches!(value, Value::Array(_));
    let mut captions = Vec::new();
    for item in items {
        let text = match item {
            Value::String(text) => Some(text.as_str()),
            Value::Object(fields) => sentence(fields),
            Value::Null if is_list => continue,
            _ => None,
        };
        let Some(text) = text else {
            let kind = description(item);
            return Err(CaptionError::NoCaption {
                got: match is_list {
                    true => format!("a list with {kind}"),
                    false => kind,
                },
            });
        };
        captions.extend(one_line(text).map(Cow::into_owned));
    }
    Ok(captions)
}

/// The text of a sentence as in Karpathy's files, `{"raw": ..., "tokens": ..., "sentid": ...}`.
fn sentence(fields: &Map<String, Value>) -> Option<&str> {
    let texts = fields.iter().filter_map(|(name, field)| {
        let text = field.as_str()?;
        Some((names::field_rank(name)?, text))
    });
    texts.min_by_key(|(rank, _)| *rank).map(|(_, text)| text)
}

/// The caption on one line, trimmed: a `.txt` member has one caption a line. `None` if blank.
pub fn one_line(caption: &str) -> Option<Cow<'_, str>> {
    let caption = caption.trim();
    if caption.is_empty() {
        return None;
    }
    if !caption.contains(['\n', '\r']) {
        return Some(Cow::Borrowed(caption));
    }
    let lines: Vec<_> = caption
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Some(Cow::Owned(lines.join(" ")))
}

fn description(value: &Value) -> String {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(fields) => {
            let names = fields.keys().take(8).map(|name| format!("`{name}`"));
            let names: Vec<_> = names.collect();
            return format!("an object with [{}]", names.join(", "));
        }
    };
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let check = |input: &[u8], expected: &[&str]| {
            let found = captions_from_text(input, CaptionLines::Each);
            assert_eq!(found.unwrap(), expected);
        };
        check(b"a dog", &["a dog"]);
        check(
            b" a dog \r\n\r\n\tthe dog runs\n",
            &["a dog", "the dog runs"],
        );
        check("\u{feff}ein Hund\n犬".as_bytes(), &["ein Hund", "犬"]);
        check(b"", &[]);
        check(b" \n\n", &[]);
        let one = captions_from_text(b" a dog\r\n\r\nruns \n", CaptionLines::One);
        assert_eq!(one.unwrap(), ["a dog runs"]);
        let blank = captions_from_text(b" \n", CaptionLines::One);
        assert_eq!(blank.unwrap(), [""; 0]);
        assert_eq!(
            captions_from_text(b"a d\xf6g", CaptionLines::Each),
            Err(CaptionError::NotUtf8 { offset_bytes: 3 })
        );
    }

    #[test]
    fn json() {
        let check = |input: &str, expected: &[&str]| {
            assert_eq!(captions_from_json(input.as_bytes()).unwrap(), expected);
        };
        check(r#""a dog""#, &["a dog"]);
        check("\u{feff}\"a dog\"", &["a dog"]);
        check(r#"["a dog", "", "the dog"]"#, &["a dog", "the dog"]);
        check(r#"{"caption": "a dog\nruns", "w": 3}"#, &["a dog runs"]);
        check(r#"{"captions": ["a", "b"]}"#, &["a", "b"]);
        check(r#"{"caption": ["a", "b"], "captions": ["c"]}"#, &["a", "b"]);
        check(r#"{"caption": null, "captions": "c"}"#, &["c"]);
        check(r#""""#, &[]);
        check("[]", &[]);
        check(r#"["a", null]"#, &["a"]);
        check(r#"{"url": "u", "TEXT": "a", "NSFW": NaN}"#, &["a"]);
        check(r#"{"caption": NaN, "text": "a"}"#, &["a"]);
        check(
            r#"{"caption_1": "b", "caption_0": "a", "w": 3}"#,
            &["a", "b"],
        );
        check(
            r#"{"sentences": [{"tokens": ["a"], "raw": "A.", "sentid": 1}, {"raw": "B."}]}"#,
            &["A.", "B."],
        );
        check(r#"{"sentences": {"raw": "A.", "tokens": ["a"]}}"#, &["A."]);
        for bad in [
            "",
            "{",
            "{\"w\": 3}",
            "3",
            "null",
            "[1]",
            "[[\"a\"]]",
            "{\"sentences\": [{\"tokens\": [\"a\"]}]}",
            "{\"caption\": {}}",
        ] {
            let message = captions_from_json(bad.as_bytes()).unwrap_err().to_string();
            assert!(message.contains("JSON"), "{bad}: {message}");
        }
        let deep = "[".repeat(100_000);
        assert!(captions_from_json(deep.as_bytes()).is_err());
        assert_eq!(
            captions_from_json(b"\"\xff\""),
            Err(CaptionError::NotUtf8 { offset_bytes: 1 })
        );
    }
}
