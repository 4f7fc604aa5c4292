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
        self.words(caption).is_empty()
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
