//! What a `.txt` or `.json` member (or file) says: its captions, in order.
//!
//! | input | captions |
//! |---|---|
//! | text | every line that is not blank |
//! | JSON string | that string |
//! | JSON list | its strings |
//! | JSON object | the string or list under `caption`, else under `captions` |
//!
//! Captions come trimmed and on one line; blank ones are left out. An empty list therefore means
//! "there is a caption, and it is empty".

use std::borrow::Cow;

use serde_json::Value;

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
    /// JSON without a caption where one is looked for.
    #[error("JSON holds no caption: expected a string, a list of strings, or an object with `caption` or `captions`, got {got}")]
    NoCaption {
        /// What there is instead.
        got: String,
    },
}

/// The captions of a text member: one a line.
///
/// # Errors
/// [`CaptionError::NotUtf8`].
pub fn captions_from_text(bytes: &[u8]) -> Result<Vec<Cow<'_, str>>, CaptionError> {
    let text = std::str::from_utf8(bytes).map_err(|error| CaptionError::NotUtf8 {
        offset_bytes: error.valid_up_to(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Ok(text.lines().filter_map(one_line).collect())
}

/// The captions of a JSON member.
///
/// # Errors
/// [`CaptionError`], each of its variants.
pub fn captions_from_json(bytes: &[u8]) -> Result<Vec<String>, CaptionError> {
    let text = std::str::from_utf8(bytes).map_err(|error| CaptionError::NotUtf8 {
        offset_bytes: error.valid_up_to(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = serde_json::from_str(text).map_err(|e| CaptionError::NotJson(e.to_string()))?;
    captions_from_value(&value)
}

/// The captions of a parsed JSON value.
///
/// # Errors
/// [`CaptionError::NoCaption`].
pub fn captions_from_value(value: &Value) -> Result<Vec<String>, CaptionError> {
    let value = match value {
        Value::Object(fields) => {
            let field = |name| fields.get(name).filter(|field| !field.is_null());
            field("caption")
                .or_else(|| field("captions"))
                .ok_or_else(|| {
                    let names: Vec<_> = fields
                        .keys()
                        .take(8)
                        .map(|name| format!("`{name}`"))
                        .collect();
                    CaptionError::NoCaption {
                        got: format!("an object with [{}]", names.join(", ")),
                    }
                })?
        }
        other => other,
    };
    match value {
        Value::String(text) => Ok(one_line(text).into_iter().map(Cow::into_owned).collect()),
        Value::Array(items) => {
            let mut captions = Vec::new();
            for item in items {
                let Value::String(text) = item else {
                    return Err(CaptionError::NoCaption {
                        got: format!("a list with {}", kind_of(item)),
                    });
                };
                captions.extend(one_line(text).map(Cow::into_owned));
            }
            Ok(captions)
        }
        other => Err(CaptionError::NoCaption {
            got: kind_of(other).to_owned(),
        }),
    }
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

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let check = |input: &[u8], expected: &[&str]| {
            assert_eq!(captions_from_text(input).unwrap(), expected);
        };
        check(b"a dog", &["a dog"]);
        check(
            b" a dog \r\n\r\n\tthe dog runs\n",
            &["a dog", "the dog runs"],
        );
        check("\u{feff}ein Hund\n犬".as_bytes(), &["ein Hund", "犬"]);
        check(b"", &[]);
        check(b" \n\n", &[]);
        assert_eq!(
            captions_from_text(b"a d\xf6g"),
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
        for bad in [
            "",
            "{",
            "{\"w\": 3}",
            "3",
            "null",
            "[1]",
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
