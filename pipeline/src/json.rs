//! JSON as Python's `json` module writes and reads it.
//!
//! Python writes `NaN`, `Infinity` and `-Infinity`, which JSON does not have, reads numbers beyond
//! the range of a double as infinite, and takes halves of surrogate pairs. Strict JSON is parsed as
//! it is; only what serde_json refuses is looked at again.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What stands for an infinite number, which a [`Value`] cannot hold. Read it with [`as_f64`].
const INFINITE: f64 = 1e308;

/// Parses JSON, a byte order mark before it or not.
///
/// `NaN` becomes null, an infinite number one that [`as_f64`] makes infinite again, and half a
/// surrogate pair U+FFFD. All other numbers are what serde_json makes of them.
///
/// # Errors
/// What serde_json says of bytes that are not JSON in Python's eyes either.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        Err(error) => match strict(bytes) {
            Some(strict) => serde_json::from_slice(&strict),
            None => Err(error),
        },
    }
}

/// A number of a value that [`parse`] made, which may be infinite.
pub fn as_f64(value: &Value) -> Option<f64> {
    let number = value.as_f64()?;
    Some(match number.abs() >= INFINITE {
        true => f64::INFINITY.copysign(number),
        false => number,
    })
}

/// The same JSON without what only Python takes; `None` if there is nothing of the kind.
fn strict(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let mut rest = bytes;
    let mut is_changed = false;
    while let Some(&first) = rest.first() {
        let (len, instead): (usize, Option<&[u8]>) = match first {
            b'"' => {
                let len = string_len(rest);
                is_changed |= copy_string(&rest[..len], &mut out);
                rest = &rest[len..];
                continue;
            }
            b'N' if rest.starts_with(b"NaN") => (3, Some(b"null")),
            b'I' if rest.starts_with(b"Infinity") => (8, Some(b"1e308")),
            b'-' if rest.starts_with(b"-Infinity") => (9, Some(b"-1e308")),
            b'-' | b'0'..=b'9' => {
                let is_number =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let len = rest.iter().take_while(|byte| is_number(byte)).count();
                let text = std::str::from_utf8(&rest[..len]).unwrap_or_default();
                match text.parse::<f64>() {
                    Ok(f64::INFINITY) => (len, Some(b"1e308")),
                    Ok(f64::NEG_INFINITY) => (len, Some(b"-1e308")),
                    _ => (len, None),
                }
            }
            _ => (1, None),
        };
        is_changed |= instead.is_some();
        out.extend_from_slice(instead.unwrap_or(&rest[..len]));
        rest = &rest[len..];
    }
    is_changed.then_some(out)
}

/// Length of the string that `bytes` begins with, both quotes included; all of it, if it has no end.
fn string_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Copies a string, with U+FFFD for each half of a surrogate pair without the other. Whether there
/// was one.
fn copy_string(string: &[u8], out: &mut Vec<u8>) -> bool {
    let unit = |at: usize| {
        let escape = string.get(at..at + 6)?;
        let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut is_changed = false;
    let mut at = 0;
    while let Some(byte) = string.get(at) {
        let len = match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                out.extend_from_slice(b"\\ufffd");
                is_changed = true;
                at += 6;
                continue;
            }
            _ if *byte == b'\\' => 2,
            _ => 1,
        };
        let end = string.len().min(at + len);
        out.extend_from_slice(&string[at..end]);
        at = end;
    }
    is_changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_writes() {
        let check = |text: &str, expected: Value| {
            assert_eq!(parse::<Value>(text.as_bytes()).unwrap(), expected, "{text}");
        };
        check(r#"{"a": NaN, "b": 0.1}"#, json!({"a": null, "b": 0.1}));
        check("\u{feff}[NaN]", json!([null]));
        check(
            r#"["NaN", NaN, "-Infinity \" NaN"]"#,
            json!(["NaN", null, "-Infinity \" NaN"]),
        );
        check(r#"["a\\", NaN]"#, json!(["a\\", null]));
        check(
            r#"["\ud83d\ude00", "\ud83d", "\\ud83d", "\ude00x", NaN]"#,
            json!(["😀", "\u{fffd}", "\\ud83d", "\u{fffd}x", null]),
        );
        // Numbers beside it stay what they are.
        check(
            "[NaN, 9007199254740993, 1e-7]",
            json!([null, 9_007_199_254_740_993u64, 1e-7]),
        );
        for bad in [
            "",
            "{",
            "NaNx",
            "xNaN",
            "[NaN,]",
            "{NaN: 1}",
            "nan",
            "+Infinity",
            "[\"a",
            "\"\\",
            "[NaN, \"\\ud8",
        ] {
            assert!(parse::<Value>(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse::<Value>(b"[NaN, \"\xff\"]").is_err());
    }

    #[test]
    fn infinite_numbers() {
        let number = |text: &str| as_f64(&parse::<Value>(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(number("Infinity"), f64::INFINITY);
        assert_eq!(number("-Infinity"), f64::NEG_INFINITY);
        assert_eq!(number("1e400"), f64::INFINITY);
        assert_eq!(number("-1e400"), f64::NEG_INFINITY);
        assert_eq!(number("1e300"), 1e300);
        assert_eq!(number("-0.25"), -0.25);
    }
}
