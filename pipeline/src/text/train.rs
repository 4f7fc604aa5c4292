//! Training a WordPiece vocabulary on captions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::tokenizer::{
    prefix, CLS, CONTINUATION, MASK, MAX_CAPTION_BYTES, MAX_WORD_CHARS, PAD, SEP, UNK,
};

/// How a vocabulary is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VocabularyOptions {
    /// Most entries, the five special tokens included; fewer if the captions give no more.
    pub vocab_size: usize,
    /// Pairs of word pieces seen less often than this are not joined.
    pub min_frequency: u64,
}

impl Default for VocabularyOptions {
    fn default() -> VocabularyOptions {
        VocabularyOptions {
            vocab_size: 8192,
            min_frequency: 2,
        }
    }
}

/// Trains a vocabulary for [`CaptionTokenizer`](super::CaptionTokenizer): the special tokens,
/// the characters of the captions, then joined pieces in the order in which they were joined,
/// the most frequent pair first. This is what the `WordPieceTrainer` of Hugging Face's tokenizers
/// does, but the result is a function of the captions as a multiset, where that trainer follows the
/// order of a hash map: pieces are numbered alphabetically, and ties go to the older pieces.
pub fn train_vocabulary(
    captions: impl Iterator<Item = String>,
    options: &VocabularyOptions,
) -> Vec<String> {
    Trainer::new(count_words(captions), options).train(options)
}

/// Each word of the captions, as the tokenizer splits them, with its number of occurrences.
fn count_words(captions: impl Iterator<Item = String>) -> BTreeMap<String, u64> {
    let normalizer = BertNormalizer::new(true, true, None, true);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for caption in captions {
        let mut text = PreTokenizedString::from(prefix(&caption, MAX_CAPTION_BYTES));
        let split = text
            .normalize(|part| normalizer.normalize(part))
            .and_then(|()| BertPreTokenizer.pre_tokenize(&mut text));
        if split.is_err() {
            log::warn!(
                "a caption of {} bytes was not split into words",
                caption.len()
            );
            continue;
        }
        for (word, _, _) in text.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            // Longer words never reach the vocabulary: they are [UNK].
            if word.chars().count() <= MAX_WORD_CHARS {
                match counts.get_mut(word) {
                    Some(count) => *count += 1,
                    None => {
                        counts.insert(word.to_owned(), 1);
                    }
                }
            }
        }
    }
    counts
}

/// Two neighbouring pieces, by their ids.
type Pair = (u32, u32);

struct Trainer {
    /// Entries so far; the position is the id.
    entries: Vec<String>,
    ids: HashMap<String, u32>,
    /// Each distinct word as pieces, with its number of occurrences.
    words: Vec<(Vec<u32>, u64)>,
    /// Occurrences of each pair, and the words it may stand in.
    pairs: HashMap<Pair, (u64, HashSet<usize>)>,
}

impl Trainer {
    fn new(counts: BTreeMap<String, u64>, options: &VocabularyOptions) -> Trainer {
        let mut trainer = Trainer {
            entries: Vec::new(),
            ids: HashMap::new(),
            words: Vec::new(),
            pairs: HashMap::new(),
        };
        for special in [PAD, UNK, CLS, SEP, MASK] {
            trainer.add(special.to_owned());
        }
        // The characters, as the start of a word and as its continuation.
        let mut alphabet: BTreeMap<(bool, char), u64> = BTreeMap::new();
        for (word, count) in &counts {
            for (at, character) in word.chars().enumerate() {
                *alphabet.entry((at > 0, character)).or_default() += count;
            }
        }
        let room = options.vocab_size.saturating_sub(trainer.entries.len());
        let mut alphabet: Vec<_> = alphabet.into_iter().collect();
        if alphabet.len() > room {
            alphabet.sort_by_key(|&(piece, count)| (Reverse(count), piece));
            alphabet.truncate(room);
            alphabet.sort_unstable();
        }
        for ((continues, character), _) in alphabet {
            trainer.add(spell(continues, character));
        }
        for (word, count) in counts {
            let pieces: Option<Vec<u32>> = word
                .chars()
                .enumerate()
                .map(|(at, character)| trainer.ids.get(&spell(at > 0, character)).copied())
                .collect();
            // A word with a character that found no room is [UNK] whatever is joined.
            if let Some(pieces) = pieces {
                let index = trainer.words.len();
                for pair in pieces.windows(2) {
                    let entry = trainer.pairs.entry((pair[0], pair[1])).or_default();
                    entry.0 += count;
                    entry.1.insert(index);
                }
                trainer.words.push((pieces, count));
            }
        }
        trainer
    }

    fn add(&mut self, entry: String) -> u32 {
        if let Some(&id) = self.ids.get(&entry) {
            return id;
        }
        let id = self.entries.len() as u32;
        self.ids.insert(entry.clone(), id);
        self.entries.push(entry);
        id
    }

    fn train(mut self, options: &VocabularyOptions) -> Vec<String> {
        let least = options.min_frequency.max(1);
        // The most frequent pair comes first; of equals the one whose pieces are older.
        let mut queue: BinaryHeap<(u64, Reverse<Pair>)> = self
            .pairs
            .iter()
            .map(|(&pair, (count, _))| (*count, Reverse(pair)))
            .collect();
        while self.entries.len() < options.vocab_size {
            let Some((queued_count, Reverse(pair))) = queue.pop() else {
                break;
            };
            let count = self.pairs.get(&pair).map_or(0, |(count, _)| *count);
            if count < least {
                if queued_count < least {
                    break;
                }
                continue;
            }
            if count != queued_count {
                // Counts only fall behind a queue entry; this one goes back to its place.
                queue.push((count, Reverse(pair)));
                continue;
            }
            for grown in self.join(pair) {
                let count = self.pairs.get(&grown).map_or(0, |(count, _)| *count);
                queue.push((count, Reverse(grown)));
            }
        }
        self.entries.truncate(options.vocab_size);
        self.entries
    }

    /// Joins this pair in every word; returns the pairs that became more frequent by it.
    fn join(&mut self, pair: Pair) -> Vec<Pair> {
        let second = &self.entries[pair.1 as usize];
        let second = second.strip_prefix(CONTINUATION).unwrap_or(second);
        let joined = format!("{}{second}", self.entries[pair.0 as usize]);
        let joined = self.add(joined);
        let Some((_, indices)) = self.pairs.remove(&pair) else {
            return Vec::new();
        };
        let mut grown = Vec::new();
        for index in indices {
            let (pieces, count) = &mut self.words[index];
            let old = std::mem::take(pieces);
            let mut at = 0;
            while at < old.len() {
                if at + 1 < old.len() && (old[at], old[at + 1]) == pair {
                    pieces.push(joined);
                    at += 2;
                } else {
                    pieces.push(old[at]);
                    at += 1;
                }
            }
            for left in old.windows(2) {
                if let Some(entry) = self.pairs.get_mut(&(left[0], left[1])) {
                    entry.0 = entry.0.saturating_sub(*count);
                }
            }
            for right in pieces.windows(2) {
                let right = (right[0], right[1]);
                let entry = self.pairs.entry(right).or_default();
                entry.0 += *count;
                entry.1.insert(index);
                if right.0 == joined || right.1 == joined {
                    grown.push(right);
                }
            }
        }
        grown.sort_unstable();
        grown.dedup();
        grown
    }
}

fn spell(continues: bool, character: char) -> String {
    if continues {
        format!("{CONTINUATION}{character}")
    } else {
        character.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::CaptionTokenizer;

    fn train(captions: &[&str], vocab_size: usize, min_frequency: u64) -> Vec<String> {
        let options = VocabularyOptions {
            vocab_size,
            min_frequency,
        };
        train_vocabulary(captions.iter().map(|c| c.to_string()), &options)
    }

    #[test]
    fn frequent_pairs_are_joined_first() {
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
        let got = train(&["ab ab abc", "ab, d"], 100, 2);
        // a##b stands four times; ab##c only once.
        let expected = [",", "a", "d", "##b", "##c", "ab"];
        assert_eq!(got[..5], special);
        assert_eq!(got[5..], expected);
        assert_eq!(train(&["ab ab abc", "ab, d"], 100, 1)[11..], ["abc"]);
        // No room for all: the most frequent characters stay, and never more than asked for.
        assert_eq!(train(&["ab ab abc", "ab, d"], 7, 1)[5..], ["a", "##b"]);
        assert_eq!(train(&["ab"], 3, 1), special[..3]);
        assert_eq!(train(&[], 100, 1), special);
    }

    #[test]
    fn runs_of_one_character() {
        // a ##a ##a ##a → a ##aa ##a → aaa ##a → aaaa; of equal pairs the one of older pieces.
        let got = train(&["aaaa aaaa aaaa b"], 100, 2);
        let expected = ["a", "b", "##a", "##aa", "aaa", "aaaa"];
        assert_eq!(got[5..], expected);
    }

    #[test]
    fn order_of_the_captions_does_not_matter() {
        let mut captions: Vec<String> = (0..400u32)
            .map(|i| format!("a {} zebra near the {} cat {}", i % 7, i * i % 101, i % 13))
            .collect();
        let options = VocabularyOptions {
            vocab_size: 150,
            min_frequency: 2,
        };
        let first = train_vocabulary(captions.iter().cloned(), &options);
        captions.reverse();
        captions.swap(3, 200);
        let second = train_vocabulary(captions.iter().cloned(), &options);
        assert_eq!(first, second);

        let tokenizer = CaptionTokenizer::from_vocab(first).expect("a valid vocabulary");
        let (mut ids, mut mask) = ([0; 16], [0; 16]);
        let caption = "a 3 zebra near the 64 cat 12";
        tokenizer
            .encode(caption, &mut ids, &mut mask)
            .expect("encodes");
        assert_eq!(tokenizer.decode(&ids), caption);
    }

    #[test]
    fn broken_captions_are_survived() {
        let word = "x".repeat(1 << 20);
        let got = train(
            &[&word, &"\u{301}".repeat(1000), "\0\u{fffd}", "ok ok"],
            50,
            2,
        );
        assert_eq!(got[5..], ["o", "##k", "ok"]);
    }
}
