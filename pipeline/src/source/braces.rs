//! Brace expansion as bash and Python's `braceexpand` do it: `{0..10}`, `{000..012}`, `{a,b{1..3}}`.
//!
//! The rules are those of bash (`braces.c`), so that a specification in quotes means what it means
//! without them. What bash leaves alone (`{x}`, `{}`, a brace without its partner) is left alone. A
//! backslash before `{`, `}` or `,` makes that an ordinary character.

use crate::error::PipelineError;
use crate::shard_spec::DisplayUrl;

/// More elements than any real data set has shards; a typo such as `{0..9999999999}` stops here.
const MAX_EXPANSIONS: usize = 1_000_000;

/// Braces within braces; nobody writes more than two or three.
const MAX_DEPTH: usize = 32;

/// All strings that `spec` stands for, in order; a string without braces stands for itself.
///
/// # Errors
/// [`PipelineError::Config`] for more than a million results, and for braces that are nested more
/// than 32 deep.
pub(super) fn expand(spec: &str) -> Result<Vec<String>, PipelineError> {
    let expanded = expand_text(spec, 0).map_err(|limit| PipelineError::Config {
        setting: "shards",
        message: match limit {
            Limit::Count => format!(
                "`{}` stands for more than {MAX_EXPANSIONS} shards",
                DisplayUrl::of(spec)
            ),
            Limit::Depth => format!(
                "`{}`: braces are nested more than {MAX_DEPTH} deep",
                DisplayUrl::of(spec)
            ),
        },
    })?;
    Ok(expanded.into_iter().map(unescaped).collect())
}

#[derive(Debug)]
enum Limit {
    Count,
    Depth,
}

fn expand_text(text: &str, depth: usize) -> Result<Vec<String>, Limit> {
    if depth > MAX_DEPTH {
        return Err(Limit::Depth);
    }
    let mut results = vec![String::new()];
    let mut rest = text;
    while let Some((open, close)) = first_group(rest) {
        let inner = &rest[open + 1..close];
        let choices = if has_comma(inner) {
            let mut choices = Vec::new();
            for element in split_at_commas(inner) {
                choices.extend(expand_text(element, depth + 1)?);
                if choices.len() > MAX_EXPANSIONS {
                    return Err(Limit::Count);
                }
            }
            choices
        } else {
            match sequence(inner) {
                Some(sequence) => sequence?,
                // Not a sequence after all: ordinary characters, braces included.
                None => vec![rest[open..=close].to_string()],
            }
        };
        if results.len().saturating_mul(choices.len()) > MAX_EXPANSIONS {
            return Err(Limit::Count);
        }
        let before = &rest[..open];
        let join = |prefix: &String| {
            let choices = choices.iter();
            let joined = choices.map(|choice| format!("{prefix}{before}{choice}"));
            joined.collect::<Vec<_>>()
        };
        results = results.iter().flat_map(join).collect();
        rest = &rest[close + 1..];
    }
    for result in &mut results {
        result.push_str(rest);
    }
    Ok(results)
}

/// Where the first pair of braces is that may stand for several strings.
fn first_group(text: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let open = from + find_unescaped(&text[from..], b'{')?;
        if let Some(close) = closing(&text[open + 1..]) {
            return Some((open, open + 1 + close));
        }
        from = open + 1;
    }
}

/// The bytes of `text` with their positions, without those after a backslash.
fn unescaped_bytes(text: &str) -> impl Iterator<Item = (usize, u8)> + '_ {
    let mut is_escaped = false;
    text.bytes().enumerate().filter(move |(_, byte)| {
        let counts = !is_escaped && *byte != b'\\';
        is_escaped = !is_escaped && *byte == b'\\';
        counts
    })
}

fn find_unescaped(text: &str, wanted: u8) -> Option<usize> {
    let mut bytes = unescaped_bytes(text);
    bytes.find(|(_, byte)| *byte == wanted).map(|(at, _)| at)
}

fn has_comma(text: &str) -> bool {
    find_unescaped(text, b',').is_some()
}

/// The brace that closes a group whose inside begins with `text`: one after a comma or two dots of
/// the group's own.
fn closing(text: &str) -> Option<usize> {
    let (mut level, mut separators) = (0u32, 0u32);
    for (at, byte) in unescaped_bytes(text) {
        match byte {
            b'}' if level == 0 && separators > 0 => return Some(at),
            b'}' => level = level.saturating_sub(1),
            b'{' => level += 1,
            b',' if level == 0 => separators += 1,
            b'.' if level == 0 && text[at..].starts_with("..") => separators += 1,
            _ => {}
        }
    }
    None
}

fn split_at_commas(text: &str) -> Vec<&str> {
    let (mut level, mut start) = (0u32, 0);
    let mut elements = Vec::new();
    for (at, byte) in unescaped_bytes(text) {
        match byte {
            b'{' => level += 1,
            b'}' => level = level.saturating_sub(1),
            b',' if level == 0 => {
                elements.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    elements.push(&text[start..]);
    elements
}

/// `FIRST..LAST` or `FIRST..LAST..STEP` of numbers or letters; none for anything else.
fn sequence(inner: &str) -> Option<Result<Vec<String>, Limit>> {
    let (first, rest) = inner.split_once("..")?;
    let (last, step) = match rest.split_once("..") {
        Some((last, step)) => (last, step.parse::<i64>().ok()?),
        None => (rest, 1),
    };
    let letter = |text: &str| {
        let mut bytes = text.bytes();
        let letter = bytes.next().filter(u8::is_ascii_alphabetic)?;
        bytes.next().is_none().then_some(i64::from(letter))
    };
    if let (Some(first), Some(last)) = (letter(first), letter(last)) {
        let numbers = numbers(first, last, step);
        let name = |code: i64| char::from(u8::try_from(code).unwrap_or(b'?')).to_string();
        return Some(numbers.map(|codes| codes.map(name).collect()));
    }
    let (from, to) = (first.parse::<i64>().ok()?, last.parse::<i64>().ok()?);
    let is_padded = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        digits.len() > 1 && digits.starts_with('0')
    };
    let width = match is_padded(first) || is_padded(last) {
        true => first.len().max(last.len()),
        false => 0,
    };
    let numbers = numbers(from, to, step);
    Some(numbers.map(|numbers| numbers.map(|number| format!("{number:0width$}")).collect()))
}

/// From `first` to `last`, up or down, whatever the sign of `step`; 0 counts as 1.
fn numbers(first: i64, last: i64, step: i64) -> Result<impl Iterator<Item = i64>, Limit> {
    let step = step.unsigned_abs().max(1);
    let count = first.abs_diff(last) / step;
    if count >= MAX_EXPANSIONS as u64 {
        return Err(Limit::Count);
    }
    Ok((0..=count).map(move |number| match first <= last {
        true => first.saturating_add_unsigned(number * step),
        false => first.saturating_sub_unsigned(number * step),
    }))
}

fn unescaped(text: String) -> String {
    if !text.contains('\\') {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match characters.peek() {
            Some('{' | '}' | ',') if character == '\\' => {}
            _ => plain.push(character),
        }
    }
    plain
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
        // A lone 0 is no padding.
        check("{0..2}", &["0", "1", "2"]);
        check(r"a\{b,c\}", &["a{b,c}"]);
        check(r"a\{b,c\}{1,2}", &["a{b,c}1", "a{b,c}2"]);
        for (wrong, hint) in [
            ("{0..99999999999}", "more than"),
            ("{-9223372036854775808..9223372036854775807}", "more than"),
            ("{0..9999}{0..9999}", "more than"),
            (&"{a,".repeat(100), "{a"),
        ] {
            match expand(wrong) {
                Err(error) => assert!(error.to_string().contains(hint), "{error}"),
                Ok(literal) => assert_eq!(literal, [wrong], "unclosed braces are characters"),
            }
        }
        let nested = format!("{}b{}", "{a,".repeat(100), "}".repeat(100));
        assert!(expand(&nested).unwrap_err().to_string().contains("nested"));
    }

    /// What bash makes of the same text.
    fn bash(specs: &[&str]) -> Vec<Vec<String>> {
        // One word a line, an empty line after each specification.
        let script: String = specs
            .iter()
            .map(|spec| format!("printf '%s\\n' x{spec}y; echo\n"))
            .collect();
        let output = std::process::Command::new("bash")
            .args(["-f", "-c", &script])
            .output()
            .expect("bash runs");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let groups = text.trim_end_matches('\n').split("\n\n");
        groups
            .map(|group| group.lines().map(str::to_string).collect())
            .collect()
    }

    #[test]
    fn as_bash_expands() {
        let specs = [
            "{0..10}",
            "{000..012}",
            "{00..5}",
            "{1..010}",
            "{-01..10}",
            "{-3..3}",
            "{-003..3}",
            "{5..3}",
            "{10..0..5}",
            "{0..10..3}",
            "{0..10..-3}",
            "{10..1..-4}",
            "{01..9..4}",
            "{1..3..0}",
            "{+1..3}",
            "{a..e}",
            "{e..a}",
            "{a..z..5}",
            "{Q..T}",
            "{a,b,c}",
            "{a,}",
            "{,a}",
            "{,}",
            "{}",
            "{x}",
            "{x},{y}",
            "{{1..3}}",
            "{a,{b,c}}",
            "{a,b{1..3},c}",
            "{{a,b},{c,d}}",
            "{a{0..1},b{2..3}}{x,y}",
            "{0..1}{00..01}-{p,q}",
            "{1..2,x}",
            "{1..}",
            "{..2}",
            "{1..b}",
            "{1...3}",
            "{1.5..3}",
            "{a..bc}",
            "{1..2..x}",
            "{1..3..}",
            "{x..{1,2}}",
            "{x..{1..2}}z",
            "{1..3}}",
            "{{1..3}",
            "{a,b",
            "{a,b{1,2}",
            "a}b",
            "{a}b,c}",
            "{a,b}}",
            "train/{a,b}/{00000..00002}.tar",
            "ä{ö,ü}",
            "{0..2}.{x,y}",
            "{9..11}{,.gz}",
        ];
        let expected = bash(&specs);
        assert_eq!(expected.len(), specs.len());
        for (spec, expected) in specs.iter().zip(expected) {
            assert_eq!(expand(&format!("x{spec}y")).unwrap(), expected, "{spec}");
        }
    }
}
