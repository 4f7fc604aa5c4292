//! What tells two vocabularies apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// SHA-256 of a vocabulary: its entries in the order of their ids, `[DEC]` included, a newline after
/// each. `sha256sum` gives the same for a `vocab.txt` that ends with `[DEC]`, as those of
/// `qftrain export` do.
///
/// Two tokenizers with the same digest give every id the same meaning, whatever their files are
/// called and whether these hold `[DEC]` or have it appended. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VocabularyDigest([u8; 32]);

impl VocabularyDigest {
    /// The digest of all entries, in the order of their ids.
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a str>) -> VocabularyDigest {
        let mut hash = Sha256::new();
        for entry in entries {
            hash.update(entry.as_bytes());
            hash.update(b"\n");
        }
        VocabularyDigest(hash.finalize().into())
    }
}

impl fmt::Display for VocabularyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VocabularyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VocabularyDigest({self})")
    }
}

/// What is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the 64 hexadecimal digits of a SHA-256")]
pub struct NoDigest;

impl FromStr for VocabularyDigest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NoDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NoDigest)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NoDigest)?;
        }
        Ok(VocabularyDigest(bytes))
    }
}

impl Serialize for VocabularyDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VocabularyDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with coreutils: `printf '[PAD]\n[UNK]\ncat\n' | sha256sum`.
    #[test]
    fn the_digest_of_sha256sum_written_and_read() {
        let expected = "ac7ca0d143efd446d4a1de7090a2d6a73c815598e770b9a86f252f5667e1764a";
        let digest = VocabularyDigest::of(["[PAD]", "[UNK]", "cat"].into_iter());
        assert_eq!(digest.to_string(), expected);
        assert_eq!(expected.parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("{expected:?}"));
        assert_eq!(
            serde_json::from_str::<VocabularyDigest>(&json).unwrap(),
            digest
        );
        // Where one entry ends and the next begins counts.
        let moved = VocabularyDigest::of(["[PAD][", "UNK]", "cat"].into_iter());
        assert_ne!(moved, digest);
        for bad in [
            "",
            "abc",
            &expected[1..],
            &expected.replace('4', "g"),
            &format!("+{}", &expected[1..]),
            &"é".repeat(32),
        ] {
            assert_eq!(bad.parse::<VocabularyDigest>(), Err(NoDigest), "{bad}");
        }
    }
}
