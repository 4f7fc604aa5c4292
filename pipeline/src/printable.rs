//! Text that others wrote (keys, headers, column names), as it may be shown.

use std::fmt;

/// Displays text with everything escaped that a terminal would obey, that would break a line in two,
/// or that would show it in another order: ASCII's control characters as `\n`, `\x1b`, and as in JSON,
/// `\u202e`, further ones, the marks of bidirectional text and others without a shape. Letters of all
/// scripts stay.
///
/// ```
/// use qf_pipeline::printable::Printable;
/// assert_eq!(Printable("犬\x1b[2J\r").to_string(), r"犬\x1b[2J\r");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

/// The same for text of several lines: line ends and tabs stay. JSON stays JSON that means the same.
#[derive(Clone, Copy, Debug)]
pub struct PrintableLines<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, is_unprintable)
    }
}

impl fmt::Display for PrintableLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |c| {
            !matches!(c, '\n' | '\t') && is_unprintable(c)
        })
    }
}

fn write_escaped(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    is_escaped: impl Fn(char) -> bool,
) -> fmt::Result {
    let mut rest = text;
    while let Some((at, found)) = rest.char_indices().find(|(_, c)| is_escaped(*c)) {
        f.write_str(&rest[..at])?;
        match found {
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            found if found < ' ' => write!(f, "\\x{:02x}", u32::from(found))?,
            found => {
                for unit in found.encode_utf16(&mut [0; 2]) {
                    write!(f, "\\u{unit:04x}")?;
                }
            }
        }
        rest = &rest[at + found.len_utf8()..];
    }
    f.write_str(rest)
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of bidirectional text.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators, byte order mark, annotations, tags.
            | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for (text, expected) in [
            ("000042", "000042"),
            ("dir/Grüße 犬 👩‍🚀", "dir/Grüße 犬 👩‍🚀"),
            ("a\x1b]0;title\x07", r"a\x1b]0;title\x07"),
            ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
            ("\x7f\u{9b}31m", r"\u007f\u009b31m"),
            ("gpj.\u{202e}exe", r"gpj.\u202eexe"),
            ("a\u{2028}b\u{feff}\u{e0041}", r"a\u2028b\ufeff\udb40\udc41"),
            (r"\xff stays", r"\xff stays"),
            ("", ""),
        ] {
            assert_eq!(Printable(text).to_string(), expected);
        }
        let lines = PrintableLines("a\n\tb\r\x1b[2J").to_string();
        assert_eq!(lines, "a\n\tb\\r\\x1b[2J");
        let key = "a\u{202e}b\x1b\x7f\u{9b}\u{e0041}\n犬";
        let json = serde_json::to_string(&[key]).unwrap();
        let shown = PrintableLines(&json).to_string();
        assert!(!shown.contains(is_unprintable), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [key]);
    }
}
