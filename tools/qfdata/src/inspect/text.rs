//! What is odd about the text of a caption.

use std::collections::HashSet;

use super::codes::{self, Code};

/// What is odd about the captions of a sample: the kind of it, and which caption shows it.
pub(crate) fn oddities(captions: &[String], max_words: usize) -> Vec<(&'static Code, String)> {
    let mut found: Vec<(&'static Code, String)> = Vec::new();
    let mut seen = HashSet::new();
    for caption in captions {
        let checks: [(bool, &'static Code); 7] = [
            (caption.contains('\u{fffd}'), &codes::REPLACEMENT_CHARACTER),
            (is_mojibake(caption), &codes::MOJIBAKE),
            (has_controls(caption), &codes::CONTROL_IN_CAPTION),
            (has_markup(caption), &codes::MARKUP),
            (is_address(caption), &codes::URL_CAPTION),
            (!seen.insert(caption), &codes::REPEATED_CAPTION),
            (
                caption.split_whitespace().nth(max_words).is_some(),
                &codes::LONG_CAPTION,
            ),
        ];
        for (holds, code) in checks {
            let is_known = found.iter().any(|(known, _)| *known == code);
            if holds && !is_known {
                found.push((code, excerpt(caption)));
            }
        }
    }
    found
}

/// Enough of a caption to know it by.
fn excerpt(caption: &str) -> String {
    const CHARACTERS: usize = 60;
    match caption.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}…", &caption[..end]),
        None => caption.to_string(),
    }
}

/// Whether bytes of UTF-8 were taken for Latin-1 or Windows-1252: a letter of C2 or C3 is followed by one that
/// only a continuation byte makes, or the beginning of a typographic mark is there.
fn is_mojibake(caption: &str) -> bool {
    let characters: Vec<char> = caption.chars().collect();
    characters.windows(2).any(|pair| match pair {
        ['Ã' | 'Â', second] => matches!(
            second,
            '\u{80}'..='\u{bf}' | '€' | '™' | 'œ' | 'Œ' | 'š' | 'ž'
        ),
        ['â', second] => matches!(second, '€' | '\u{80}'),
        _ => false,
    })
}

fn has_controls(caption: &str) -> bool {
    let is_control = |c: char| (c.is_control() && !c.is_whitespace()) || c == '\u{feff}';
    caption.chars().any(is_control)
}

/// Whether there is a tag, an end tag or an entity of HTML.
fn has_markup(caption: &str) -> bool {
    let tags = caption.match_indices('<').any(|(at, _)| {
        let rest = &caption[at + 1..];
        let name = rest.strip_prefix('/').unwrap_or(rest);
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && rest.contains('>')
    });
    let entities = caption.match_indices('&').any(|(at, _)| {
        let rest = &caption[at + 1..];
        let Some(end) = rest.find(';').filter(|end| (2..=8).contains(end)) else {
            return false;
        };
        let name = &rest[..end];
        match name.strip_prefix('#') {
            Some(number) => number
                .trim_start_matches(['x', 'X'])
                .chars()
                .all(|c| c.is_ascii_hexdigit()),
            None => name.chars().all(|c| c.is_ascii_alphabetic()),
        }
    });
    tags || entities
}

/// Whether the whole caption is one word that is a URL or the name of an image file.
fn is_address(caption: &str) -> bool {
    let word = caption.trim();
    if word.contains(char::is_whitespace) {
        return false;
    }
    let lower = word.to_lowercase();
    let is_file = lower.rsplit_once('.').is_some_and(|(stem, extension)| {
        !stem.is_empty() && qf_pipeline::decode::is_image_extension(extension)
    });
    lower.starts_with("http://")
        || lower.starts_with("https://")
        || lower.starts_with("www.")
        || is_file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(captions: &[&str]) -> Vec<&'static str> {
        let captions: Vec<String> = captions.iter().map(ToString::to_string).collect();
        let found = oddities(&captions, 50);
        found.into_iter().map(|(code, _)| code.id).collect()
    }

    #[test]
    fn good_captions_have_none() {
        for caption in [
            "a dog on a beach",
            "R&D at AT&T; a café",
            "Äpfel & Öl, 5 < 6 > 4",
            "ÃO is a surname", // no continuation follows
            "犬が走る",
            "château â la carte",
            "see example.com/page now",
            "heart <3 you",
        ] {
            assert_eq!(of(&[caption]), [""; 0], "{caption}");
        }
    }

    #[test]
    fn what_is_odd_is_found_once() {
        let long = vec!["word"; 51].join(" ");
        for (caption, id) in [
            ("a caf\u{fffd}", "QF-C04"),
            ("a cafÃ©", "QF-C05"),
            ("itâ€™s", "QF-C05"),
            ("Â©2020", "QF-C05"),
            ("a\u{0}b", "QF-C06"),
            ("<b>dog</b>", "QF-C07"),
            ("salt &amp; pepper", "QF-C07"),
            ("it&#39;s", "QF-C07"),
            ("https://example.com/a", "QF-C08"),
            ("IMG_2041.JPG", "QF-C08"),
            (&long, "QF-C10"),
        ] {
            assert_eq!(of(&[caption]), [id], "{caption}");
        }
        assert_eq!(of(&["a dog", "a cat", "a dog", "a dog"]), ["QF-C09"]);
    }
}
