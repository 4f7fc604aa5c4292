//! What is counted of a data set.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use qf_pipeline::LoaderConfig;
use unicode_script::{Script, UnicodeScript};

use super::spread::Spread;
use crate::inspect::Facts;

/// Tokens that are counted of one caption.
const MAX_TOKENS: usize = 4096;

/// Counts samples as they come.
pub(crate) struct Tally {
    processor: CaptionProcessor,
    tokenizer: Option<Arc<CaptionTokenizer>>,
    text_len: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
    pub(crate) samples: u64,
    pub(crate) bad_samples: u64,
    /// Samples with an error, by its code; the first of each counts.
    pub(crate) bad: BTreeMap<&'static str, u64>,
    pub(crate) formats: BTreeMap<&'static str, u64>,
    pub(crate) traits: BTreeMap<&'static str, u64>,
    pub(crate) width: Spread,
    pub(crate) height: Spread,
    pub(crate) shorter_side: Spread,
    /// Width / height in thousandths.
    pub(crate) aspect: Spread,
    /// In thousands.
    pub(crate) pixels: Spread,
    pub(crate) image_bytes: Spread,
    pub(crate) total_image_bytes: u64,
    pub(crate) captions_per_sample: Spread,
    pub(crate) words: Spread,
    pub(crate) characters: Spread,
    /// Special tokens included; empty without a tokenizer.
    pub(crate) tokens: Spread,
    /// Captions of which `text_len` cuts something off.
    pub(crate) cut_captions: u64,
    /// Captions by the script of most of their letters.
    pub(crate) scripts: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Captions are cleaned as `config` says, and counted in tokens if there is a vocabulary: `text_len` of
    /// each are kept.
    ///
    /// # Errors
    /// A vocabulary that cannot be read.
    pub(crate) fn open(
        config: &LoaderConfig,
        vocabulary: Option<&Path>,
        text_len: usize,
    ) -> anyhow::Result<Tally> {
        let tokenizer = match vocabulary {
            Some(path) => Some(Arc::new(CaptionTokenizer::from_file(path)?)),
            None => None,
        };
        let processor = CaptionProcessor::new(config.max_words, config.prompt.as_str())?;
        Ok(Tally::new(processor, tokenizer, text_len))
    }

    fn new(
        processor: CaptionProcessor,
        tokenizer: Option<Arc<CaptionTokenizer>>,
        text_len: usize,
    ) -> Tally {
        Tally {
            processor,
            tokenizer,
            text_len,
            ids: vec![0; MAX_TOKENS],
            mask: vec![0; MAX_TOKENS],
            samples: 0,
            bad_samples: 0,
            bad: BTreeMap::new(),
            formats: BTreeMap::new(),
            traits: BTreeMap::new(),
            width: Spread::default(),
            height: Spread::default(),
            shorter_side: Spread::default(),
            aspect: Spread::default(),
            pixels: Spread::default(),
            image_bytes: Spread::default(),
            total_image_bytes: 0,
            captions_per_sample: Spread::default(),
            words: Spread::default(),
            characters: Spread::default(),
            tokens: Spread::default(),
            cut_captions: 0,
            scripts: BTreeMap::new(),
        }
    }

    /// Takes in a sample.
    pub(crate) fn add(&mut self, facts: &Facts) -> anyhow::Result<()> {
        self.samples += 1;
        if facts.is_bad() {
            self.bad_samples += 1;
            let mut findings = facts.findings.iter();
            let error =
                findings.find(|finding| finding.severity == crate::inspect::codes::Severity::Error);
            if let Some(error) = error {
                *self.bad.entry(error.code.id).or_default() += 1;
            }
        }
        if let Some(picture) = &facts.picture {
            let (width, height) = (u64::from(picture.width), u64::from(picture.height));
            self.width.add(width);
            self.height.add(height);
            self.shorter_side.add(width.min(height));
            self.aspect.add(width * 1000 / height.max(1));
            self.pixels.add(width * height / 1000);
            self.image_bytes.add(picture.bytes);
            self.total_image_bytes += picture.bytes;
            *self.formats.entry(picture.format.name()).or_default() += 1;
            let traits = picture.traits;
            let named = [
                ("animated", traits.animated),
                ("alpha", traits.alpha),
                ("cmyk", traits.cmyk),
                ("grey", traits.grey),
                ("deep", traits.deep),
                ("other_profile", traits.other_profile),
            ];
            for (name, _) in named.iter().filter(|(_, holds)| *holds) {
                *self.traits.entry(name).or_default() += 1;
            }
        }
        if !facts.captions.is_empty() {
            self.captions_per_sample.add(facts.captions.len() as u64);
        }
        facts
            .captions
            .iter()
            .try_for_each(|caption| self.caption(caption))
    }

    fn caption(&mut self, caption: &str) -> anyhow::Result<()> {
        self.words.add(caption.split_whitespace().count() as u64);
        self.characters.add(caption.chars().count() as u64);
        *self.scripts.entry(script_of(caption)).or_default() += 1;
        if let Some(tokens) = self.count_tokens(caption)? {
            self.tokens.add(tokens as u64);
            self.cut_captions += u64::from(tokens > self.text_len);
        }
        Ok(())
    }

    /// Tokens of a caption after the caption processor, `[CLS]` and `[SEP]` included, if there is a tokenizer.
    pub(crate) fn count_tokens(&mut self, caption: &str) -> anyhow::Result<Option<usize>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(None);
        };
        let text = self.processor.process(caption);
        tokenizer.encode(&text, &mut self.ids, &mut self.mask)?;
        Ok(Some(self.mask.iter().filter(|&&mask| mask != 0).count()))
    }
}

/// The script of most letters; `none` for a caption without a letter.
fn script_of(caption: &str) -> &'static str {
    let mut counts: Vec<(Script, usize)> = Vec::new();
    for character in caption.chars() {
        let script = character.script();
        if matches!(script, Script::Common | Script::Inherited | Script::Unknown) {
            continue;
        }
        match counts.iter_mut().find(|(known, _)| *known == script) {
            Some((_, count)) => *count += 1,
            None => counts.push((script, 1)),
        }
    }
    // Of equally many the first counts.
    let most = counts.iter().rev().max_by_key(|(_, count)| *count);
    most.map_or("none", |(script, _)| script.full_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_captions() {
        for (caption, script) in [
            ("a dog", "Latin"),
            ("собака 1 dog", "Cyrillic"),
            ("犬が走る", "Han"),
            ("走るいぬ", "Hiragana"),
            ("개", "Hangul"),
            ("كلب", "Arabic"),
            ("12 !?", "none"),
            ("", "none"),
        ] {
            assert_eq!(script_of(caption), script, "{caption}");
        }
    }
}
