//! LAVIS' `blip_caption` processor.

use crate::error::PipelineError;

/// Cleans captions as LAVIS' `BlipCaptionProcessor` does: lower case, some punctuation removed,
/// at most [`CaptionProcessor::MAX_WORDS`] words, a prompt before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionProcessor {
    max_words: usize,
    prompt: String,
}

impl Default for CaptionProcessor {
    fn default() -> CaptionProcessor {
        CaptionProcessor {
            max_words: CaptionProcessor::MAX_WORDS,
            prompt: String::new(),
        }
    }
}

impl CaptionProcessor {
    /// Words that are kept by default.
    pub const MAX_WORDS: usize = 50;

    /// A processor that keeps `max_words` words and puts `prompt` before them, as it stands.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Config`] for `max_words = 0`.
    pub fn new(max_words: usize, prompt: impl Into<String>) -> Result<Self, PipelineError> {
        if max_words == 0 {
            return Err(PipelineError::Config {
                setting: "max_words",
                message: "0 leaves no caption; 50 is usual".to_owned(),
            });
        }
        Ok(CaptionProcessor {
            max_words,
            prompt: prompt.into(),
        })
    }

    /// The processed caption, prompt included.
    ///
    /// In this order: lower case; each of `.!"()*#:;~` becomes a space; runs of two or more
    /// whitespace characters become one space (a lone tab or newline stays); newlines at the end
    /// and spaces at both ends go; the first words, separated by single spaces, are kept; the
    /// prompt is put before them. Commas, apostrophes, hyphens, `?`, `/`, `&` and digits stay.
    pub fn process(&self, caption: &str) -> String {
        let words = self.words(caption);
        [self.prompt.as_str(), &words].concat()
    }

    /// Whether nothing of the caption is left after cleaning, the prompt apart.
    pub fn is_empty(&self, caption: &str) -> bool {
        // What is kept of one that has another character than those that go holds it.
        let stays = |character| !is_python_space(clean(character));
        !caption.chars().any(stays) && self.words(caption).is_empty()
    }

    fn words(&self, caption: &str) -> String {
        let lower = caption.to_lowercase();
        let mut collapsed = String::with_capacity(lower.len());
        let mut characters = lower.chars().map(clean).peekable();
        while let Some(character) = characters.next() {
            if !is_python_space(character) {
                collapsed.push(character);
                continue;
            }
            let mut lone = true;
            while characters.next_if(|&next| is_python_space(next)).is_some() {
                lone = false;
            }
            collapsed.push(if lone { character } else { ' ' });
        }
        let trimmed = collapsed.trim_end_matches('\n').trim_matches(' ');
        let end = trimmed
            .match_indices(' ')
            .nth(self.max_words - 1)
            .map_or(trimmed.len(), |(at, _)| at);
        trimmed[..end].to_owned()
    }
}

fn clean(character: char) -> char {
    match character {
        '.' | '!' | '"' | '(' | ')' | '*' | '#' | ':' | ';' | '~' => ' ',
        other => other,
    }
}

/// `\s` of Python's `re`: Unicode's white space and four separators that Unicode leaves out.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data;

    #[test]
    fn rules() {
        let processor = CaptionProcessor::default();
        for (caption, expected) in [
            ("A man. Riding!", "a man riding"),
            ("Two  dogs,\t\tplaying\tin", "two dogs, playing\tin"),
            ("ends\n", "ends"),
            ("\nstarts", "\nstarts"),
            ("a\x1c\x1fb c\x1cd", "a b c\x1cd"),
            ("it's a-b/c & d? (e's) #1 ~ok", "it's a-b/c & d? e's 1 ok"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("", ""),
            (" .!\"()*#:;~ ", ""),
        ] {
            assert_eq!(processor.process(caption), expected, "{caption:?}");
            assert_eq!(processor.is_empty(caption), expected.is_empty());
        }
        let two = CaptionProcessor::new(2, "A Photo: ").expect("valid");
        assert_eq!(two.process("One, TWO three"), "A Photo: one, two");
        assert!(two.is_empty("...") && two.process("...") == "A Photo: ");
        assert!(CaptionProcessor::new(0, "").is_err());
    }

    #[test]
    fn golden() {
        let Some(path) = test_data::find("caption golden", "golden/golden_proc.json") else {
            return;
        };
        let text = std::fs::read_to_string(path).expect("reads");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases = json["caption"].as_array().expect("a list");
        assert!(!cases.is_empty());
        for case in cases {
            let input = case["input"].as_str().expect("text");
            for (key, max_words, prompt) in [
                ("default", 50, ""),
                ("prompt_a_photo_of", 50, "a photo of "),
                ("max_words_5", 5, ""),
            ] {
                let processor = CaptionProcessor::new(max_words, prompt).expect("valid");
                assert_eq!(
                    processor.process(input),
                    case[key].as_str().expect("text"),
                    "{input:?}"
                );
            }
        }
    }
}
