//! Pages to look at: one HTML file each that needs no network and runs no script.
//!
//! Colours follow the system's light or dark mode, and the layout fits a telephone. What pages have in
//! common is in `page.css`: variables for colours (`--ink`, `--muted`, `--word`, `--alarm`, …), headings,
//! `.facts`, `.grid` of `article`s, `table`s (in a `.scroll`), and `.bad` for problems.

use std::fmt::{self, Display, Write};

use qf_pipeline::printable::PrintableLines;

const STYLE: &str = include_str!("page.css");

/// What images a page may show, beside `data:` URLs. Nothing else is loaded from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// None: the page is a file.
    Embedded,
    /// Those of the server that the page comes from, which takes its forms, too.
    SameOrigin,
}

/// A page that is being written. Formatting into it does not fail.
#[derive(Debug)]
pub struct Page {
    html: String,
}

impl Page {
    /// A page with a heading, a line below it, and `facts`: pairs of a name and a value. `style` is CSS
    /// that it needs beside that of all pages.
    pub fn new(
        (title, heading): (&str, &str),
        lede: &str,
        facts: &[(&str, String)],
        style: &str,
        images: Images,
    ) -> Page {
        let sources = match images {
            Images::Embedded => "img-src data:",
            Images::SameOrigin => "img-src data: 'self'; form-action 'self'",
        };
        let mut html =
            String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
        // Nothing is loaded, whatever a caption may say.
        html += &format!(
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" \
             content=\"default-src 'none'; {sources}; style-src 'unsafe-inline'\">\n\
             <title>{}</title>\n<style>\n{STYLE}{style}</style>\n<header>\n<h1>{}</h1>\n\
             <p class=\"lede\"><bdi>{}</bdi></p>\n",
            Text(title),
            Text(heading),
            Text(lede)
        );
        if !facts.is_empty() {
            html += "<dl class=\"facts\">\n";
            for (name, value) in facts {
                let (name, value) = (Text(name), Text(value));
                html += &format!("<div><dt>{name}</dt><dd><bdi>{value}</bdi></dd></div>\n");
            }
            html += "</dl>\n";
        }
        html += "</header>\n";
        Page { html }
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        self.html += "</html>\n";
        self.html
    }
}

impl Write for Page {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.html.push_str(text);
        Ok(())
    }
}

/// A text between tags or in a quoted attribute. Characters that could not be seen, or that reorder what
/// follows them, are written as their escapes.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in PrintableLines(self.0).to_string().chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Bytes in base64 (RFC 4648), as `data:` URLs hold them.
#[derive(Clone, Copy, Debug)]
pub struct Base64<'a>(pub &'a [u8]);

impl Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for group in self.0.chunks(3) {
            let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for index in 0..4 {
                let digit = ALPHABET[(bits >> (18 - 6 * index) & 63) as usize];
                f.write_char(if index <= group.len() {
                    char::from(digit)
                } else {
                    '='
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10, and bytes of every value.
    #[test]
    fn base64_as_the_rfc_has_it() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(Base64(bytes.as_bytes()).to_string(), expected);
        }
        assert_eq!(Base64(&[0xfb, 0xff, 0xbf]).to_string(), "+/+/");
    }

    #[test]
    fn nothing_of_a_text_is_markup() {
        let text = Text("<img src=x onerror='a(\"b\")'>&\u{1b}[31m\u{202e}\u{0}é");
        assert_eq!(
            text.to_string(),
            "&lt;img src=x onerror=&#39;a(&quot;b&quot;)&#39;&gt;&amp;\\x1b[31m\\u202e\\x00é"
        );
    }

    #[test]
    fn a_page_loads_nothing() {
        let facts = [("seed", "<b>".to_string())];
        let mut page = Page::new(
            ("t", "h"),
            "l",
            &facts,
            "p { color: red }",
            Images::Embedded,
        );
        write!(page, "<main></main>").unwrap();
        let html = page.finish();
        assert!(
            html.contains("default-src 'none'; img-src data:; style-src"),
            "{html}"
        );
        assert!(html.contains("<bdi>&lt;b&gt;</bdi>") && html.contains("p { color: red }"));
        assert!(
            !html.contains("http://") && !html.contains("https://") && !html.contains("<script")
        );
    }
}
