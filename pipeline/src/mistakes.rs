//! What parsers of numbers and settings say, in words for a user: `expected usize` becomes `expected a
//! whole number`.

/// What the standard library and clap say of a value on the command line.
const PHRASES: [(&str, &str); 9] = [
    ("invalid digit found in string", "expected a whole number"),
    (
        "cannot parse integer from empty string",
        "expected a whole number",
    ),
    (
        "number too large to fit in target type",
        "the number is too large",
    ),
    (
        "number too small to fit in target type",
        "the number is too small",
    ),
    (
        "number would be zero for non-zero type",
        "must be at least 1",
    ),
    ("invalid float literal", "expected a number"),
    ("cannot parse float from empty string", "expected a number"),
    (
        "provided string was not `true` or `false`",
        "expected true or false",
    ),
    (
        "invalid UTF-8 was detected in one or more arguments",
        "an argument is not UTF-8",
    ),
];

/// Types as serde names them when it expected one.
const TYPES: [(&str, &str); 24] = [
    ("usize", "a whole number, 0 or more"),
    ("u64", "a whole number, 0 or more"),
    ("u32", "a whole number, 0 or more"),
    ("u16", "a whole number, 0 or more"),
    ("u8", "a whole number, 0 to 255"),
    ("isize", "a whole number"),
    ("i64", "a whole number"),
    ("i32", "a whole number"),
    ("i16", "a whole number"),
    ("i8", "a whole number"),
    ("f64", "a number"),
    ("f32", "a number"),
    ("a nonzero u64", "a whole number, 1 or more"),
    ("a nonzero u32", "a whole number, 1 or more"),
    ("a nonzero usize", "a whole number, 1 or more"),
    ("a boolean", "true or false"),
    ("a sequence", "a list"),
    ("a string", "text in quotes"),
    ("a borrowed string", "text in quotes"),
    ("path string", "a path in quotes"),
    ("a map", "a section of settings"),
    ("a tuple of size 2", "a list of 2 numbers"),
    ("variant identifier", "text in quotes"),
    ("string or table", "text in quotes"),
];

/// An error of a command line, or of reading settings, without Rust's words for things. Lines that show
/// where the error is stay as they are.
pub fn plain(message: &str) -> String {
    let lines: Vec<String> = message.lines().map(plain_line).collect();
    lines.join("\n")
}

fn plain_line(line: &str) -> String {
    if let Some((before, setting)) = cut(line, "unknown field `", "`") {
        return format!("{before}{}", unknown_setting(setting, line));
    }
    if let Some((before, choice)) = cut(line, "unknown variant `", "`") {
        return format!("{before}{}", unknown_choice(choice, line));
    }
    if let Some((before, setting)) = cut(line, "missing field `", "`") {
        return format!("{before}the setting `{setting}` is missing");
    }
    for start in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((before, rest)) = line.split_once(start) {
            if let Some((got, expected)) = rest.rsplit_once(", expected ") {
                // JSON's errors end with the place.
                let (expected, place) = match expected.find(" at line ") {
                    Some(at) => expected.split_at(at),
                    None => (expected, ""),
                };
                return format!(
                    "{before}expected {}, got {}{place}",
                    type_words(expected),
                    value_words(got)
                );
            }
        }
    }
    let mut line = range_words(line);
    for (rust, plain) in PHRASES {
        line = line.replace(rust, plain);
    }
    line
}

/// What stands before `start`, and what between it and `end`.
fn cut<'a>(line: &'a str, start: &str, end: &str) -> Option<(&'a str, &'a str)> {
    let (before, rest) = line.split_once(start)?;
    Some((before, rest.split_once(end)?.0))
}

/// The names that serde would have taken: `` expected one of `a`, `b` ``.
fn candidates(line: &str) -> Vec<&str> {
    let Some((_, list)) = line.split_once(", expected ") else {
        return Vec::new();
    };
    list.split('`').skip(1).step_by(2).collect()
}

fn unknown_setting(setting: &str, line: &str) -> String {
    let known = candidates(line);
    match nearest(setting, &known) {
        Some(near) => format!("there is no setting `{setting}`; did you mean `{near}`?"),
        None => format!(
            "there is no setting `{setting}` here; there are {}",
            known.join(", ")
        ),
    }
}

fn unknown_choice(choice: &str, line: &str) -> String {
    let known = candidates(line);
    let all = known.join(", ");
    match nearest(choice, &known) {
        Some(near) => format!("`{choice}` is not one of {all}; did you mean `{near}`?"),
        None => format!("`{choice}` is not one of {all}"),
    }
}

/// The name that differs least from `given`, if that is little: a third of its letters, or its
/// separators.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let letters = |text: &str| -> Vec<char> {
        let lower = text.to_lowercase();
        lower.chars().filter(|c| c.is_alphanumeric()).collect()
    };
    let given = letters(given);
    let distances = known
        .iter()
        .map(|name| (distance(&given, &letters(name)), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    let longer = given.len().max(name.len());
    (distance <= longer.div_ceil(3).min(4)).then_some(name)
}

/// Insertions, removals, exchanges and swaps of neighbours that make one of the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (above[j] + usize::from(x != y))
                .min(above[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

fn type_words(expected: &str) -> String {
    let expected = expected.trim();
    if let Some((_, plain)) = TYPES.iter().find(|(rust, _)| *rust == expected) {
        return (*plain).to_string();
    }
    if let Some(size) = expected.strip_prefix("a tuple of size ") {
        return format!("a list of {size} values");
    }
    for kind in ["struct ", "internally tagged enum ", "tuple struct "] {
        if expected.starts_with(kind) {
            return "a section of settings".into();
        }
    }
    match expected.strip_prefix("enum ") {
        Some(_) => "text in quotes".into(),
        None => expected.to_string(),
    }
}

fn value_words(got: &str) -> String {
    for kind in ["integer ", "floating point ", "boolean "] {
        if let Some(value) = got.strip_prefix(kind) {
            return value.trim_matches('`').to_string();
        }
    }
    match got {
        "sequence" => "a list".into(),
        "map" => "a section of settings".into(),
        _ => match got.strip_prefix("string ") {
            Some(text) => format!("the text {text}"),
            None => got.to_string(),
        },
    }
}

/// `7 is not in 1..=5` in words.
fn range_words(line: &str) -> String {
    const IS_NOT: &str = " is not in ";
    let Some((before, range)) = line.split_once(IS_NOT) else {
        return line.to_string();
    };
    let Some((low, high)) = range.split_once("..") else {
        return line.to_string();
    };
    // The value is named before.
    let before = match before.rsplit_once(' ') {
        Some((before, _value)) => format!("{before} "),
        None => String::new(),
    };
    let number = |text: &str| text.trim().parse::<i128>().ok();
    let high = match high.strip_prefix('=') {
        Some(last) => number(last),
        None => number(high).map(|end| end - 1),
    };
    // The end of a type is no limit that anybody set.
    let high = high.filter(|high| *high < i128::from(i64::MAX) - 1);
    match (number(low), high) {
        (Some(low), Some(high)) => format!("{before}must be {low} to {high}"),
        (Some(low), None) => format!("{before}must be at least {low}"),
        (None, Some(high)) => format!("{before}must be at most {high}"),
        (None, None) => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested() {
        let known = ["batch_size", "image_size", "text_len", "prefetch_batches"];
        for (given, expected) in [
            ("batchsize", Some("batch_size")),
            ("batch-size", Some("batch_size")),
            ("bacth_size", Some("batch_size")),
            ("imagesize", Some("image_size")),
            ("textlen", Some("text_len")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &known), expected, "{given}");
        }
        assert_eq!(nearest("x", &[]), None);
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, expected) in [("", "abc", 3), ("abc", "acb", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(&chars(a), &chars(b)), expected, "{a} {b}");
        }
    }

    /// Against what the parsers really say.
    #[test]
    fn rust_words_are_replaced() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "snake_case")]
        struct Settings {
            #[serde(rename = "count")]
            _count: usize,
            #[serde(rename = "rate", default)]
            _rate: f64,
            #[serde(rename = "pair", default)]
            _pair: (f64, f64),
            #[serde(rename = "path", default)]
            _path: Option<std::path::PathBuf>,
            #[serde(rename = "list", default)]
            _list: Vec<String>,
            #[serde(rename = "on", default)]
            _on: bool,
            #[serde(rename = "choice", default)]
            _choice: Option<crate::config::OnBad>,
        }
        let says = |json: &str| {
            let error = serde_json::from_str::<Settings>(json).unwrap_err();
            plain(&error.to_string())
        };
        for (json, expected) in [
            (
                r#"{"cuont": 1}"#,
                "there is no setting `cuont`; did you mean `count`?",
            ),
            (
                r#"{"colour": 1}"#,
                "there is no setting `colour` here; there are count, rate",
            ),
            ("{}", "the setting `count` is missing"),
            (
                r#"{"count": "many"}"#,
                "expected a whole number, 0 or more, got the text \"many\"",
            ),
            (
                r#"{"count": -1}"#,
                "expected a whole number, 0 or more, got -1",
            ),
            (
                r#"{"count": 1.5}"#,
                "expected a whole number, 0 or more, got 1.5",
            ),
            (
                r#"{"count": 1, "rate": true}"#,
                "expected a number, got true",
            ),
            (
                r#"{"count": 1, "pair": [1]}"#,
                "expected a list of 2 numbers, got 1",
            ),
            (
                r#"{"count": 1, "pair": 3}"#,
                "expected a list of 2 numbers, got 3",
            ),
            (
                r#"{"count": 1, "path": 3}"#,
                "expected a path in quotes, got 3",
            ),
            (r#"{"count": 1, "list": 3}"#, "expected a list, got 3"),
            (r#"{"count": 1, "on": 3}"#, "expected true or false, got 3"),
            (
                r#"{"count": 1, "choice": "wran"}"#,
                "`wran` is not one of skip, warn, error; did you mean `warn`?",
            ),
            (
                r#"{"count": 1, "choice": "loud"}"#,
                "`loud` is not one of skip, warn, error",
            ),
        ] {
            let said = says(json);
            assert!(said.contains(expected), "{json}: {said}");
        }
    }

    #[test]
    fn numbers_and_ranges_have_plain_words() {
        let number = |text: &str| {
            plain(
                &text
                    .parse::<std::num::NonZeroU64>()
                    .unwrap_err()
                    .to_string(),
            )
        };
        assert_eq!(number("x"), "expected a whole number");
        assert_eq!(number(""), "expected a whole number");
        assert_eq!(number("0"), "must be at least 1");
        assert_eq!(number("99999999999999999999999"), "the number is too large");
        assert_eq!(
            plain(&"x".parse::<f64>().unwrap_err().to_string()),
            "expected a number"
        );
        for (range, expected) in [
            (
                "invalid value '0' for '--nproc <N>': 0 is not in 1..=1024",
                "invalid value '0' for '--nproc <N>': must be 1 to 1024",
            ),
            ("0 is not in 1..", "must be at least 1"),
            ("0 is not in 1..9223372036854775807", "must be at least 1"),
            ("0 is not in 1..=18446744073709551615", "must be at least 1"),
            ("9 is not in ..5", "must be at most 4"),
            ("it is not in the list", "it is not in the list"),
        ] {
            assert_eq!(plain(range), expected);
        }
        // What shows the place stays.
        assert_eq!(
            plain("line 2\n  |\n2 | usize = 4"),
            "line 2\n  |\n2 | usize = 4"
        );
    }
}
