//! Brace expansion as WebDataset users write it: `{000..012}` and `{a,b,c}`, any number of them.

use crate::error::PipelineError;

/// More elements than any real data set has shards; a typo such as `{0..9999999999}` stops here.
const MAX_EXPANSIONS: usize = 1_000_000;

/// All strings that `spec` stands for, in order; a string without braces stands for itself.
///
/// # Errors
/// [`PipelineError::Config`] for an unclosed brace, a range that does not parse, or more than a
/// million results.
pub(super) fn expand(spec: &str) -> Result<Vec<String>, PipelineError> {
    let bad = |message: String| PipelineError::Config {
        setting: "shards",
        message,
    };
    let mut results = vec![String::new()];
    let mut rest = spec;
    while let Some(open) = rest.find('{') {
        let close = rest[open..]
            .find('}')
            .map(|at| open + at)
            .ok_or_else(|| bad(format!("`{spec}`: a {{ without its }}")))?;
        let choices = choices(&rest[open + 1..close]).ok_or_else(|| {
            bad(format!(
                "`{spec}`: {{{}}} is neither a range such as {{000..012}} nor a list such as \
                     {{a,b}}",
                &rest[open + 1..close]
            ))
        })?;
        let count = results.len().saturating_mul(choices.len());
        if count > MAX_EXPANSIONS {
            return Err(bad(format!(
                "`{spec}` stands for more than {MAX_EXPANSIONS} shards"
            )));
        }
        let mut expanded = Vec::with_capacity(count);
        for prefix in &results {
            for choice in &choices {
                expanded.push(format!("{prefix}{}{choice}", &rest[..open]));
            }
        }
        results = expanded;
        rest = &rest[close + 1..];
    }
    for result in &mut results {
        result.push_str(rest);
    }
    Ok(results)
}

fn choices(inner: &str) -> Option<Vec<String>> {
    if let Some((first, last)) = inner.split_once("..") {
        let width = if first.starts_with('0') || last.starts_with('0') {
            first.len().max(last.len())
        } else {
            0
        };
        let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !all_digits(first) || !all_digits(last) {
            return None;
        }
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        if first > last || last - first >= MAX_EXPANSIONS as u64 {
            return None;
        }
        return Some((first..=last).map(|n| format!("{n:0width$}")).collect());
    }
    inner
        .contains(',')
        .then(|| inner.split(',').map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansions() {
        let check = |spec: &str, expected: &[&str]| assert_eq!(expand(spec).unwrap(), expected);
        check("plain.tar", &["plain.tar"]);
        check(
            "s-{008..011}.tar",
            &["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"],
        );
        check("s-{8..10}", &["s-8", "s-9", "s-10"]);
        check("{a,b}{0..1}", &["a0", "a1", "b0", "b1"]);
        for wrong in [
            "a{0..",
            "a{5..3}",
            "a{x..y}",
            "a{}",
            "a{1}",
            "{0..99999999999}",
        ] {
            assert!(expand(wrong).is_err(), "{wrong}");
        }
        assert!(expand("{0..9999}{0..9999}").is_err());
    }
}
