//! BERT's uncased WordPiece tokenizer with a `[DEC]` token.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde_json::{json, Value};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

use super::digest::VocabularyDigest;
use crate::error::PipelineError;

/// Padding, id 0 in BERT's vocabulary.
pub(super) const PAD: &str = "[PAD]";
/// A word the vocabulary cannot spell.
pub(super) const UNK: &str = "[UNK]";
/// Start of every caption.
pub(super) const CLS: &str = "[CLS]";
/// End of every caption.
pub(super) const SEP: &str = "[SEP]";
/// BERT's masking token; unused by the Q-Former.
pub(super) const MASK: &str = "[MASK]";
/// Start of a caption that is to be generated.
const DEC: &str = "[DEC]";

/// Tokens that stand for no text.
const SPECIAL: [&str; 6] = [PAD, UNK, CLS, SEP, MASK, DEC];

/// What continues a word.
pub(super) const CONTINUATION: &str = "##";

/// Longer words become `[UNK]`.
pub(super) const MAX_WORD_CHARS: usize = 100;

/// Bytes of a caption that are looked at. Far beyond any caption's first tokens, and a bound on
/// what a broken one can cost.
pub(super) const MAX_CAPTION_BYTES: usize = 64 << 10;

/// Bytes of a vocabulary or `tokenizer.json` file, 60 times that of BERT's.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Bytes of one vocabulary entry.
const MAX_TOKEN_BYTES: usize = 1024;

/// Entries of a vocabulary.
const MAX_VOCABULARY: usize = 1 << 20;

/// Words of a caption that the library spells one by one: with more it is quicker to give it all of them.
const MAX_SPELLED_WORDS: usize = 2;

/// Turns captions into ids as `bert-base-uncased` does: lower case, accents stripped, Chinese
/// characters apart, punctuation apart, greedy WordPiece; with `[DEC]`, the Q-Former's
/// beginning-of-sentence token, added as last entry (30,522 in BERT's case).
#[derive(Debug)]
pub struct CaptionTokenizer {
    tokenizer: Tokenizer,
    /// Entries that stand for a whole word.
    words: HashMap<String, u32>,
    /// The vocabulary without an appended `[DEC]`; the id is the position.
    vocabulary: Vec<String>,
    size: usize,
    pad: i64,
    cls: i64,
    sep: i64,
    dec: i64,
}

impl CaptionTokenizer {
    /// Reads a `vocab.txt` or a `tokenizer.json`; which of them, its content tells.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Io`] if it cannot be read, [`PipelineError::Tokenizer`] if it is neither.
    pub fn from_file(path: &Path) -> Result<CaptionTokenizer, PipelineError> {
        let text = read_text(path)?;
        let is_json = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("json"))
            || text.trim_start().starts_with('{');
        let origin = path.display().to_string();
        if is_json {
            Self::build(json_vocabulary(&text).map_err(error_in(&origin))?, &origin)
        } else {
            Self::build(text_vocabulary(&text), &origin)
        }
    }

    /// Reads a `vocab.txt`: one entry a line, the line number is the id.
    ///
    /// # Errors
    ///
    /// As [`CaptionTokenizer::from_file`].
    pub fn from_vocab_file(path: &Path) -> Result<CaptionTokenizer, PipelineError> {
        Self::build(
            text_vocabulary(&read_text(path)?),
            &path.display().to_string(),
        )
    }

    /// Reads a `tokenizer.json` of Hugging Face's tokenizers, which must describe an uncased BERT
    /// tokenizer.
    ///
    /// # Errors
    ///
    /// As [`CaptionTokenizer::from_file`].
    pub fn from_tokenizer_json(path: &Path) -> Result<CaptionTokenizer, PipelineError> {
        let origin = path.display().to_string();
        let entries = json_vocabulary(&read_text(path)?).map_err(error_in(&origin))?;
        Self::build(entries, &origin)
    }

    /// Takes a vocabulary; the position of an entry is its id. `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`
    /// must be among them; `[DEC]` is appended unless it is there.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Tokenizer`] for a missing special token, or an entry that is empty, far
    /// too long, repeated, or holds a NUL or white space.
    pub fn from_vocab(vocabulary: Vec<String>) -> Result<CaptionTokenizer, PipelineError> {
        Self::build(vocabulary, "vocabulary")
    }

    fn build(vocabulary: Vec<String>, origin: &str) -> Result<CaptionTokenizer, PipelineError> {
        let error = error_in(origin);
        let mut ids = HashMap::with_capacity(vocabulary.len());
        if vocabulary.len() > MAX_VOCABULARY {
            return Err(error(format!(
                "{} entries, expected at most {MAX_VOCABULARY}",
                vocabulary.len()
            )));
        }
        for (id, entry) in vocabulary.iter().enumerate() {
            let line = id + 1;
            if entry.is_empty() {
                return Err(error(format!("entry {line} is empty")));
            }
            if entry.len() > MAX_TOKEN_BYTES {
                return Err(error(format!(
                    "entry {line} is {} bytes long, expected at most {MAX_TOKEN_BYTES}; \
                     is this a vocabulary with one entry a line?",
                    entry.len()
                )));
            }
            if entry.contains('\0') {
                return Err(error(format!(
                    "entry {line} holds a NUL byte; is this a text file?"
                )));
            }
            if let Some(first) = ids.insert(entry.clone(), id as u32) {
                return Err(error(format!(
                    "entry {line}, `{entry}`, repeats entry {}",
                    first + 1
                )));
            }
        }
        let special = |name: &str| {
            ids.get(name).map(|&id| i64::from(id)).ok_or_else(|| {
                error(format!(
                    "no entry `{name}` among {}; a BERT vocabulary is needed",
                    vocabulary.len()
                ))
            })
        };
        let (pad, cls, sep) = (special(PAD)?, special(CLS)?, special(SEP)?);
        special(UNK)?;
        let mut size = vocabulary.len();
        let dec = *ids.entry(DEC.to_owned()).or_insert_with(|| {
            size += 1;
            (size - 1) as u32
        });

        // As JSON: the builder takes the vocabulary as a map of another crate's type only.
        let model = json!({
            "type": "WordPiece",
            "unk_token": UNK,
            "continuing_subword_prefix": CONTINUATION,
            "max_input_chars_per_word": MAX_WORD_CHARS,
            "vocab": ids,
        });
        let model =
            WordPiece::from_bytes(model.to_string()).map_err(|source| error(source.to_string()))?;
        let mut tokenizer = Tokenizer::new(model);
        // Cleaned, Chinese characters apart, accents stripped as lower-casing implies.
        tokenizer
            .with_normalizer(Some(BertNormalizer::new(true, true, None, true)))
            .with_pre_tokenizer(Some(BertPreTokenizer));
        let special = SPECIAL
            .into_iter()
            .filter(|name| tokenizer.token_to_id(name).is_some())
            .map(|name| AddedToken::from(name, true))
            .collect::<Vec<_>>();
        tokenizer.add_special_tokens(&special);
        let is_word = |entry: &str| entry.is_ascii() && entry.len() <= MAX_WORD_CHARS;
        ids.retain(|entry, _| is_word(entry));
        Ok(CaptionTokenizer {
            tokenizer,
            words: ids,
            vocabulary,
            size,
            pad,
            cls,
            sep,
            dec: i64::from(dec),
        })
    }

    /// Writes `[CLS]`, the caption's ids, `[SEP]` and padding to `ids`, `[T]`, and 1 for each but
    /// the padding to `mask`, `[T]`. A caption that is too long loses its end but not its `[SEP]`.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Tokenizer`] if the tokenizer fails, which no caption is known to bring
    /// about.
    ///
    /// # Panics
    ///
    /// If `ids` and `mask` differ in length or are shorter than 2.
    pub fn encode(
        &self,
        caption: &str,
        ids: &mut [i64],
        mask: &mut [i64],
    ) -> Result<(), PipelineError> {
        assert_eq!(ids.len(), mask.len(), "lengths of ids and mask");
        assert!(ids.len() >= 2, "room for [CLS] and [SEP]");
        let caption = prefix(caption, MAX_CAPTION_BYTES);
        ids.fill(self.pad);
        mask.fill(0);
        let room = ids.len() - 2;
        let mut row = Row {
            ids: &mut ids[1..=room],
            kept: 0,
        };
        if !self.encode_words(caption, &mut row)? {
            self.encode_whole(caption, &mut row)?;
        }
        let kept = row.kept;
        ids[0] = self.cls;
        ids[kept + 1] = self.sep;
        mask[..kept + 2].fill(1);
        Ok(())
    }

    /// All of a text, by the library.
    fn encode_whole(&self, text: &str, row: &mut Row<'_>) -> Result<(), PipelineError> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|source| PipelineError::Tokenizer {
            origin: "encoding a caption".to_owned(),
            message: source.to_string(),
        })?;
        row.push(encoding.get_ids());
        Ok(())
    }

    /// The same for a caption of ASCII letters, digits, punctuation and spaces, at a tenth of the time:
    /// nearly all its words are entries of the vocabulary, the first that WordPiece looks for. The
    /// library spells the others, if they are few. False, with nothing written, where it has to see the
    /// whole caption: one with a bracket may hold a special token.
    fn encode_words(&self, caption: &str, row: &mut Row<'_>) -> Result<bool, PipelineError> {
        let is_plain =
            |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r') && byte != b'[';
        if !caption.bytes().all(is_plain) {
            return Ok(false);
        }
        let mut to_spell = 0;
        let can = for_each_word(caption, |word| {
            to_spell += usize::from(!self.words.contains_key(word));
            to_spell <= MAX_SPELLED_WORDS
        });
        if !can || to_spell > MAX_SPELLED_WORDS {
            return Ok(false);
        }
        let mut result = Ok(());
        for_each_word(caption, |word| {
            match self.words.get(word) {
                Some(&id) => row.push(&[id]),
                None => result = self.encode_whole(word, row),
            }
            result.is_ok() && !row.is_full()
        });
        result.map(|()| true)
    }

    /// The text of these ids: special tokens and ids beyond the vocabulary left out, word pieces
    /// joined, spaces around punctuation removed, as Hugging Face's
    /// `decode(skip_special_tokens=True)`.
    pub fn decode(&self, ids: &[i64]) -> String {
        const CLEANUP: [(&str, &str); 10] = [
            (" .", "."),
            (" ?", "?"),
            (" !", "!"),
            (" ,", ","),
            (" ' ", "'"),
            (" n't", "n't"),
            (" 'm", "'m"),
            (" 's", "'s"),
            (" 've", "'ve"),
            (" 're", "'re"),
        ];
        let mut text = String::new();
        let entries = ids
            .iter()
            .filter_map(|&id| self.vocabulary.get(usize::try_from(id).ok()?));
        for entry in entries.filter(|entry| !SPECIAL.contains(&entry.as_str())) {
            match entry.strip_prefix(CONTINUATION) {
                Some(rest) if !text.is_empty() => text.push_str(rest),
                _ if text.is_empty() => text.push_str(entry),
                _ => text.extend([" ", entry.as_str()]),
            }
        }
        CLEANUP
            .iter()
            .fold(text, |text, (from, to)| text.replace(from, to))
    }

    /// Number of ids, `[DEC]` included: rows of the model's embedding table.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Id of `[PAD]`.
    pub fn pad_id(&self) -> i64 {
        self.pad
    }

    /// Id of `[CLS]`.
    pub fn cls_id(&self) -> i64 {
        self.cls
    }

    /// Id of `[SEP]`.
    pub fn sep_id(&self) -> i64 {
        self.sep
    }

    /// Id of `[DEC]`.
    pub fn dec_id(&self) -> i64 {
        self.dec
    }

    /// The vocabulary as it was given, without an appended `[DEC]`: the lines of a `vocab.txt`
    /// from which [`CaptionTokenizer::from_vocab`] makes this tokenizer again.
    pub fn vocab(&self) -> &[String] {
        &self.vocabulary
    }

    /// The entry with this id, `[DEC]` included: a word, or a piece of one that begins with `##`. `None`
    /// beyond the vocabulary.
    pub fn entry(&self, id: i64) -> Option<&str> {
        let position = usize::try_from(id).ok()?;
        let entry = self.vocabulary.get(position).map(String::as_str);
        entry.or_else(|| (id == self.dec).then_some(DEC))
    }

    /// All entries in the order of their ids, `[DEC]` included: as many as
    /// [`CaptionTokenizer::vocab_size`].
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        let appended = (self.size > self.vocabulary.len()).then_some(DEC);
        self.vocabulary.iter().map(String::as_str).chain(appended)
    }

    /// What tells this vocabulary from others: whether weights belong to this tokenizer.
    pub fn digest(&self) -> VocabularyDigest {
        VocabularyDigest::of(self.entries())
    }
}

/// Calls `visit` for each word and each punctuation mark of a plain ASCII text, in lower case, until it
/// returns `false`. False if a word is longer than [`MAX_WORD_CHARS`].
fn for_each_word(text: &str, mut visit: impl FnMut(&str) -> bool) -> bool {
    let mut visit_ascii = |word: &[u8]| visit(std::str::from_utf8(word).unwrap_or_default());
    let mut buffer = [0; MAX_WORD_CHARS];
    let mut len = 0;
    for byte in text.bytes().chain([b' ']) {
        if byte.is_ascii_alphanumeric() {
            let Some(place) = buffer.get_mut(len) else {
                return false;
            };
            *place = byte.to_ascii_lowercase();
            len += 1;
            continue;
        }
        if len > 0 && !visit_ascii(&buffer[..len]) {
            break;
        }
        len = 0;
        if byte.is_ascii_punctuation() && !visit_ascii(&[byte]) {
            break;
        }
    }
    true
}

/// A row of ids that fills.
struct Row<'a> {
    ids: &'a mut [i64],
    kept: usize,
}

impl Row<'_> {
    fn is_full(&self) -> bool {
        self.kept == self.ids.len()
    }

    /// As many of them as there is room for.
    fn push(&mut self, tokens: &[u32]) {
        let room = &mut self.ids[self.kept..];
        self.kept += room.len().min(tokens.len());
        for (id, &token) in room.iter_mut().zip(tokens) {
            *id = i64::from(token);
        }
    }
}

fn error_in(origin: &str) -> impl Fn(String) -> PipelineError + '_ {
    move |message| PipelineError::Tokenizer {
        origin: origin.to_owned(),
        message,
    }
}

/// At most `max_bytes` of `text`, cut between characters.
pub(super) fn prefix(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn read_text(path: &Path) -> Result<String, PipelineError> {
    let io = |source| PipelineError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(io)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let origin = path.display().to_string();
    let error = error_in(&origin);
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(error(format!(
            "longer than {MAX_FILE_BYTES} bytes; expected a vocab.txt or tokenizer.json"
        )));
    }
    String::from_utf8(bytes).map_err(|source| {
        error(format!(
            "not UTF-8 at byte {}; expected a vocab.txt or tokenizer.json",
            source.utf8_error().valid_up_to()
        ))
    })
}

/// Lines of a `vocab.txt`, without line ends and without blank lines at the end.
fn text_vocabulary(text: &str) -> Vec<String> {
    text.trim_end_matches(['\r', '\n'])
        .split('\n')
        .map(|line| line.trim_end_matches('\r').to_owned())
        .collect()
}

/// Entries of a `tokenizer.json` in the order of their ids, once its settings are those of an
/// uncased BERT tokenizer.
fn json_vocabulary(text: &str) -> Result<Vec<String>, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let expected = [
        ("/model/type", Value::from("WordPiece")),
        (
            "/model/continuing_subword_prefix",
            Value::from(CONTINUATION),
        ),
        (
            "/model/max_input_chars_per_word",
            Value::from(MAX_WORD_CHARS),
        ),
        ("/model/unk_token", Value::from(UNK)),
        ("/normalizer/type", Value::from("BertNormalizer")),
        ("/normalizer/lowercase", Value::from(true)),
        ("/normalizer/clean_text", Value::from(true)),
        ("/normalizer/handle_chinese_chars", Value::from(true)),
        ("/pre_tokenizer/type", Value::from("BertPreTokenizer")),
    ];
    for (pointer, expected) in expected {
        // The model's type may be left out in old files; the vocabulary below tells it.
        let optional = pointer.starts_with("/model/");
        match json.pointer(pointer) {
            Some(found) if *found == expected => {}
            None if optional => {}
            found => {
                let found = found.map_or("nothing".to_owned(), short);
                return Err(format!(
                    "`{pointer}` is {found}, expected {expected}: only uncased BERT tokenizers \
                     are supported"
                ));
            }
        }
    }
    if json.pointer("/normalizer/strip_accents") == Some(&Value::from(false)) {
        return Err("`/normalizer/strip_accents` is false, expected true or null".to_owned());
    }
    let vocabulary = json
        .pointer("/model/vocab")
        .and_then(Value::as_object)
        .ok_or("`/model/vocab` is no map from entries to ids")?;
    let mut entries = vocabulary
        .iter()
        .map(|(entry, id)| (id.as_u64(), entry.as_str()))
        .collect::<Vec<_>>();
    let added = json.pointer("/added_tokens").and_then(Value::as_array);
    for token in added.into_iter().flatten() {
        let content = token.get("content").and_then(Value::as_str);
        let content = content.ok_or("`/added_tokens` holds an entry without `content`")?;
        if !vocabulary.contains_key(content) {
            entries.push((token.get("id").and_then(Value::as_u64), content));
        }
    }
    entries.sort_unstable();
    for (expected, (id, entry)) in (0u64..).zip(&entries) {
        if *id != Some(expected) {
            let id = id.map_or("no id".to_owned(), |id| format!("id {id}"));
            return Err(format!(
                "`{}` has {id}, expected {expected}: ids must run from 0 without gaps",
                prefix(entry, 40)
            ));
        }
    }
    Ok(entries
        .into_iter()
        .map(|(_, entry)| entry.to_owned())
        .collect())
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    prefix(&text, 40).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data;

    fn vocabulary(entries: &[&str]) -> Vec<String> {
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            .iter()
            .chain(entries)
            .map(|entry| entry.to_string())
            .collect()
    }

    fn encode(tokenizer: &CaptionTokenizer, caption: &str, len: usize) -> Vec<i64> {
        let (mut ids, mut mask) = (vec![-1; len], vec![-1; len]);
        tokenizer
            .encode(caption, &mut ids, &mut mask)
            .expect("encodes");
        let used = mask.iter().take_while(|&&m| m == 1).count();
        assert!(mask[used..].iter().all(|&m| m == 0), "{mask:?}");
        assert!(ids[used..].iter().all(|&id| id == tokenizer.pad_id()));
        ids.truncate(used);
        ids
    }

    #[test]
    fn small_vocabulary() {
        let entries = vocabulary(&["cat", "##s", "a", ",", "c"]);
        let tokenizer = CaptionTokenizer::from_vocab(entries.clone()).expect("valid");
        assert_eq!((tokenizer.vocab_size(), tokenizer.dec_id()), (11, 10));
        assert_eq!(
            (tokenizer.pad_id(), tokenizer.cls_id(), tokenizer.sep_id()),
            (0, 2, 3)
        );
        assert_eq!(tokenizer.vocab(), entries);
        assert_eq!(tokenizer.entry(6), Some("##s"));
        assert_eq!(tokenizer.entry(10), Some("[DEC]"));
        assert_eq!((tokenizer.entry(11), tokenizer.entry(-1)), (None, None));
        for (caption, len, expected) in [
            ("", 4, &[2, 3][..]),
            ("a cat", 8, &[2, 7, 5, 3]),
            ("Cats, cát", 8, &[2, 5, 6, 8, 5, 3]),
            ("cats cats cats", 5, &[2, 5, 6, 5, 3]),
            ("cats", 2, &[2, 3]),
            ("dog", 4, &[2, 1, 3]),
            ("[DEC] a", 8, &[2, 10, 7, 3]),
            ("[dec]", 8, &[2, 1, 1, 1, 3]),
        ] {
            assert_eq!(encode(&tokenizer, caption, len), expected, "{caption}");
        }
        assert_eq!(
            tokenizer.decode(&[2, 7, 5, 6, 8, 5, 1, 10, 99, -1, 3, 0]),
            "a cats, cat"
        );

        let with_dec = CaptionTokenizer::from_vocab(vocabulary(&["[DEC]", "cat"])).expect("valid");
        assert_eq!((with_dec.vocab_size(), with_dec.dec_id()), (7, 5));
        assert_ne!(with_dec.digest(), tokenizer.digest());
        let again = CaptionTokenizer::from_vocab(tokenizer.vocab().to_vec()).expect("valid");
        assert_eq!(again.digest(), tokenizer.digest());
        // `[DEC]` in the file or appended: every id means the same.
        let spelled = tokenizer.entries().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((spelled.len(), spelled[10].as_str()), (11, "[DEC]"));
        let spelled = CaptionTokenizer::from_vocab(spelled).expect("valid");
        assert_eq!(spelled.digest(), tokenizer.digest());
        let mut swapped = entries;
        swapped.swap(5, 9);
        let swapped = CaptionTokenizer::from_vocab(swapped).expect("valid");
        assert_ne!(swapped.digest(), tokenizer.digest());
    }

    #[test]
    fn long_words_and_captions() {
        let tokenizer = CaptionTokenizer::from_vocab(vocabulary(&["a", "##a"])).expect("valid");
        assert_eq!(encode(&tokenizer, &"a".repeat(100), 200).len(), 102);
        assert_eq!(encode(&tokenizer, &"a".repeat(101), 200), [2, 1, 3]);
        assert_eq!(encode(&tokenizer, &"a".repeat(1 << 20), 32), [2, 1, 3]);
        assert_eq!(encode(&tokenizer, &"猫".repeat(3 << 20), 32).len(), 32);
        assert_eq!(encode(&tokenizer, &"a ".repeat(5 << 20), 32).len(), 32);
    }

    /// Word by word is as whole.
    #[test]
    fn the_short_way_gives_what_the_library_gives() {
        let entries = [
            "a", "b", "c", "ab", "##a", "##b", "##ab", "abc", "1", "12", "##2", ".", ",", "'", "-",
            "#", "]", "##c", "aab",
        ];
        let longest = "z".repeat(MAX_WORD_CHARS);
        let too_long = "z".repeat(MAX_WORD_CHARS + 1);
        let entries = [&entries[..], &[longest.as_str(), too_long.as_str()]].concat();
        let tokenizer = CaptionTokenizer::from_vocab(vocabulary(&entries)).expect("valid");
        let pieces = [
            "a", "b", "c", "ab", "A", "Bc", "1", "2", " ", "  ", "\t", "\n", ".", ",", "'", "-",
            "#", "]", "d", "\r\n", "zz", "_", "~", "aab",
        ];
        let whole = ["[", "[SEP]", "é", "\u{301}", "\0", "\x7f", "\x0b", "猫"];
        let mut state = 7u64;
        let mut below = |count: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % count
        };
        let mut short = 0;
        for number in 0..8000 {
            let mut caption: String = (0..below(24))
                .map(|_| pieces[below(pieces.len())])
                .collect();
            match number % 16 {
                0 => caption.push_str(whole[below(whole.len())]),
                1 => caption.insert_str(0, &longest),
                2 => caption.push_str(&too_long),
                _ => {}
            }
            let len = 2 + below(30);
            let (mut library, mut words) = (vec![0; len], vec![0; len]);
            let [mut by_library, mut by_words] =
                [&mut library, &mut words].map(|ids| Row { ids, kept: 0 });
            tokenizer
                .encode_whole(&caption, &mut by_library)
                .expect("encodes");
            let is_short = tokenizer
                .encode_words(&caption, &mut by_words)
                .expect("encodes");
            let kept = by_library.kept;
            if is_short {
                short += 1;
                assert_eq!(by_words.kept, kept, "{caption:?}");
                assert_eq!(words, library, "{caption:?}");
            }
            let expected = [&[2], &library[..kept], &[3]].concat();
            let ids = encode(&tokenizer, &caption, len + 2);
            assert_eq!(ids, expected, "{caption:?}");
        }
        assert!((3000..8000).contains(&short), "{short}");
    }

    /// Ids computed with Python: transformers 4.57.1, `BertTokenizer` on this vocabulary with
    /// `bos_token="[DEC]"` added, `max_length=32`.
    #[test]
    fn ids_of_the_reference_tokenizer() {
        let Some(path) = test_data::find("ids_of_the_reference_tokenizer", "data/bert/vocab.txt")
        else {
            return;
        };
        let tokenizer = CaptionTokenizer::from_file(&path).expect("BERT's vocabulary");
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.dec_id()),
            (30_523, 30_522)
        );
        let cases: [(&str, &[i64]); 6] = [
            (
                "Straße naïve café ＡＢＣ 猫と犬",
                &[101, 2358, 27807, 15743, 7668, 100, 100, 1666, 1908, 102],
            ),
            (
                "don't stop-me now/ok & 50% off?",
                &[
                    101, 2123, 1005, 1056, 2644, 1011, 2033, 2085, 1013, 7929, 1004, 2753, 1003,
                    2125, 1029, 102,
                ],
            ),
            (
                "supercalifragilisticexpialidocious antidisestablishmentarianism",
                &[
                    101, 3565, 9289, 10128, 29181, 24411, 4588, 10288, 19312, 21273, 10085, 6313,
                    3424, 10521, 4355, 7875, 13602, 3672, 12199, 2964, 102,
                ],
            ),
            (
                "e\u{301}clair İstanbul ΣΊΣΥΦΟΣ",
                &[
                    101, 14925, 19771, 2099, 9960, 1173, 18199, 29733, 29735, 29736, 29730, 29733,
                    102,
                ],
            ),
            (
                "a family is sitting down at a table to have cake",
                &[
                    101, 1037, 2155, 2003, 3564, 2091, 2012, 1037, 2795, 2000, 2031, 9850, 102,
                ],
            ),
            (
                "[SEP] and [MASK] and [sep] [DEC] [dec]",
                &[
                    101, 102, 1998, 103, 1998, 1031, 19802, 1033, 30522, 1031, 11703, 1033, 102,
                ],
            ),
        ];
        for (caption, expected) in cases {
            assert_eq!(encode(&tokenizer, caption, 32), expected, "{caption}");
        }
        let text = "a child's umbrella is left open, in the house.";
        assert_eq!(tokenizer.decode(&encode(&tokenizer, text, 32)), text);
    }

    #[test]
    fn hostile_vocabularies() {
        let message = |entries: Vec<String>| match CaptionTokenizer::from_vocab(entries) {
            Err(PipelineError::Tokenizer { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        for (entries, expected) in [
            (vec![], "no entry `[PAD]`"),
            (
                vec!["[PAD]".to_owned(), "cat".to_owned()],
                "no entry `[CLS]`",
            ),
            (vocabulary(&["cat", "dog", "cat"]), "repeats entry 6"),
            (vocabulary(&["cat", "", "dog"]), "entry 7 is empty"),
            (vocabulary(&["a\0b"]), "NUL"),
            (vocabulary(&[&"x".repeat(5000)]), "5000 bytes long"),
        ] {
            let message = message(entries);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("writes");
            path
        };
        let lines = vocabulary(&["cat"]).join("\n");
        let unix = CaptionTokenizer::from_file(&write("v.txt", lines.as_bytes())).expect("valid");
        let dos = lines.replace('\n', "\r\n") + "\r\n";
        let dos = CaptionTokenizer::from_vocab_file(&write("d", dos.as_bytes())).expect("valid");
        assert_eq!(unix.digest(), dos.digest());

        let json = json!({
            "added_tokens": [{"id": 0, "content": "[PAD]"}, {"id": 6, "content": "[DEC]"}],
            "normalizer": {"type": "BertNormalizer", "lowercase": true, "clean_text": true,
                "handle_chinese_chars": true, "strip_accents": null},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "cat": 5,
                "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}},
        });
        let good = write("tokenizer.json", json.to_string().as_bytes());
        let good = CaptionTokenizer::from_file(&good).expect("valid");
        assert_eq!(good.vocab()[5..], ["cat", "[DEC]"]);
        assert_eq!((good.vocab_size(), good.dec_id()), (7, 6));

        let edited = |pointer: &str, value: Value| {
            let mut json = json.clone();
            *json.pointer_mut(pointer).expect("exists") = value;
            json.to_string().into_bytes()
        };
        for (bytes, expected) in [
            (b"\xff\xfe[\0P\0".to_vec(), "not UTF-8"),
            (vec![], "entry 1 is empty"),
            (vec![b'x'; 1 << 20], "1048576 bytes long"),
            (b"{".to_vec(), "not JSON"),
            (b"{}".to_vec(), "`/normalizer/type` is nothing"),
            (
                edited("/normalizer/lowercase", json!(false)),
                "`/normalizer/lowercase` is false",
            ),
            (
                edited("/model/type", json!("BPE")),
                "`/model/type` is \"BPE\"",
            ),
            (
                edited("/model/vocab/cat", json!(7)),
                "`[DEC]` has id 6, expected 5",
            ),
            (edited("/model/vocab/cat", json!(-1)), "`cat` has no id"),
            (edited("/model/vocab", json!([])), "is no map"),
        ] {
            let error = CaptionTokenizer::from_file(&write("bad", &bytes)).expect_err(expected);
            assert!(matches!(error, PipelineError::Tokenizer { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let missing = CaptionTokenizer::from_file(&folder.path().join("none"));
        assert!(matches!(missing, Err(PipelineError::Io { .. })));
    }
}
