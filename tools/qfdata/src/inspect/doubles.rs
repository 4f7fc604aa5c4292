//! Samples that are there twice: by key, by image, by image and captions, and nearly.
//!
//! Hashes go to temporary files, split by their first bits, and each part is looked through on its own, so
//! memory is a small part of what a table of all samples would take. Near doubles are compared by the bands of
//! their hashes: two that differ in at most *n* bits agree in at least one of *n* + 1 bands.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::codes::{self, Code};
use super::sample::{first_half, Facts};

/// Parts of a table.
const PARTS: usize = 32;

/// A sample, as far as it is needed to name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: u32,
    pub(crate) sample: u32,
    pub(crate) offset_bytes: u64,
    pub(crate) key: String,
}

/// A sample that was there before.
pub(crate) struct Double {
    pub(crate) code: &'static Code,
    pub(crate) first: Place,
    pub(crate) later: Place,
    pub(crate) what: String,
}

/// Collects the hashes of samples.
pub(crate) struct Doubles {
    keys: Table,
    images: Table,
    perceptual: Vec<Table>,
    near: Option<u32>,
}

impl Doubles {
    /// `near`: bits in which the perceptual hashes of near doubles differ at most.
    pub(crate) fn new(near: Option<u32>) -> anyhow::Result<Doubles> {
        let bands = near.map_or(0, |bits| bits + 1);
        Ok(Doubles {
            keys: Table::default(),
            images: Table::default(),
            perceptual: (0..bands).map(|_| Table::default()).collect(),
            near,
        })
    }

    /// Takes in a sample.
    pub(crate) fn add(&mut self, facts: &Facts) -> anyhow::Result<()> {
        let place = Place {
            shard: facts.id.shard_index,
            sample: facts.id.sample_index,
            offset_bytes: facts.id.offset_bytes,
            key: facts.id.key.clone(),
        };
        let key = first_half(&Sha256::digest(&facts.id.key));
        self.keys.push(key, [0; 16], &place)?;
        let Some(picture) = &facts.picture else {
            return Ok(());
        };
        self.images
            .push(picture.sha256, facts.content.unwrap_or_default(), &place)?;
        if let Some(hash) = picture.perceptual {
            let bands = self.perceptual.len() as u32;
            for (band, table) in (0..).zip(&mut self.perceptual) {
                let mut whole = [0; 16];
                whole[..8].copy_from_slice(&hash.to_le_bytes());
                whole[8..].copy_from_slice(&picture.sha256[..8]);
                let part = band_of(hash, band, bands);
                table.push(
                    first_half(&Sha256::digest(part.to_le_bytes())),
                    whole,
                    &place,
                )?;
            }
        }
        Ok(())
    }

    /// Names all doubles: those of keys, of images, near ones.
    pub(crate) fn for_each(
        self,
        visit: &mut dyn FnMut(Double) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.keys.groups(&mut |group| {
            let (_, first) = &group[0];
            // Within a shard, readers of tar have said so.
            let mut others = group.iter().filter(|(_, place)| place.shard != first.shard);
            others.try_for_each(|(_, later)| {
                visit(Double {
                    code: &codes::DOUBLE_KEY,
                    first: first.clone(),
                    later: later.clone(),
                    what: "another shard has this key".to_string(),
                })
            })
        })?;
        self.images.groups(&mut |group| {
            for (at, (content, later)) in group.iter().enumerate().skip(1) {
                let same = group[..at].iter().find(|(before, _)| before == content);
                let (code, first, what) = match same {
                    Some((_, first)) => {
                        (&codes::DOUBLE_SAMPLE, first, "the same image and captions")
                    }
                    None => (
                        &codes::DOUBLE_IMAGE,
                        &group[0].1,
                        "the same image, other captions",
                    ),
                };
                visit(Double {
                    code,
                    first: first.clone(),
                    later: later.clone(),
                    what: what.to_string(),
                })?;
            }
            Ok(())
        })?;
        let Some(near) = self.near else {
            return Ok(());
        };
        let bands = self.perceptual.len() as u32;
        for (band, table) in (0..).zip(self.perceptual) {
            table.groups(&mut |group| near_pairs(group, (near, band, bands), visit))?;
        }
        Ok(())
    }
}

/// Bits of a band of a hash, and which band it is.
fn band_of(hash: u64, band: u32, bands: u32) -> u64 {
    let (start, end) = (64 * band / bands, 64 * (band + 1) / bands);
    let mask = match end - start {
        64 => u64::MAX,
        bits => (1 << bits) - 1,
    };
    (hash >> start) & mask
}

/// Samples that are compared with the ones before them in a band: flat pictures share theirs with many.
const MAX_COMPARED: usize = 256;

fn near_pairs(
    group: &[Entry],
    (near, band, bands): (u32, u32, u32),
    visit: &mut dyn FnMut(Double) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let hash_of = |whole: &[u8; 16]| u64::from_le_bytes(std::array::from_fn(|at| whole[at]));
    for (at, (whole, later)) in group.iter().enumerate().skip(1) {
        let before = &group[at.saturating_sub(MAX_COMPARED)..at];
        let hash = hash_of(whole);
        let twin = before.iter().find(|(other, _)| {
            let other_hash = hash_of(other);
            let is_first_band = (0..band).all(|earlier| {
                band_of(hash, earlier, bands) != band_of(other_hash, earlier, bands)
            });
            // Equal files are told of already.
            is_first_band && other[8..] != whole[8..] && (hash ^ other_hash).count_ones() <= near
        });
        if let Some((other, first)) = twin {
            let bits = (hash ^ hash_of(other)).count_ones();
            visit(Double {
                code: &codes::NEAR_DOUBLE,
                first: first.clone(),
                later: later.clone(),
                what: format!("perceptual hashes differ in {bits} of 64 bits"),
            })?;
        }
    }
    Ok(())
}

/// What is kept beside the hash that tells samples apart, and the sample.
type Entry = ([u8; 16], Place);

/// Hashes with their samples, on disk. Files are made when they are needed.
#[derive(Default)]
struct Table {
    parts: Vec<Option<BufWriter<File>>>,
}

impl Table {
    fn push(&mut self, hash: [u8; 16], beside: [u8; 16], place: &Place) -> anyhow::Result<()> {
        const FAILED: &str = "cannot write a temporary file (TMPDIR says where)";
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, || None);
        }
        let part = &mut self.parts[usize::from(hash[0]) % PARTS];
        let file = match part {
            Some(file) => file,
            None => {
                let file = tempfile::tempfile().context(FAILED)?;
                part.insert(BufWriter::with_capacity(16 << 10, file))
            }
        };
        let key = place.key.as_bytes();
        let mut record = Vec::with_capacity(52 + key.len());
        record.extend_from_slice(&hash);
        record.extend_from_slice(&beside);
        record.extend_from_slice(&place.shard.to_le_bytes());
        record.extend_from_slice(&place.sample.to_le_bytes());
        record.extend_from_slice(&place.offset_bytes.to_le_bytes());
        record.extend_from_slice(&(key.len() as u32).to_le_bytes());
        record.extend_from_slice(key);
        file.write_all(&record).context(FAILED)
    }

    /// Hands over the samples that share a hash, in the order in which they came.
    fn groups(self, visit: &mut dyn FnMut(&[Entry]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for part in self.parts.into_iter().flatten() {
            let read = || -> io::Result<BufReader<File>> {
                let mut file = part.into_inner().map_err(io::IntoInnerError::into_error)?;
                file.seek(SeekFrom::Start(0))?;
                Ok(BufReader::new(file))
            };
            let mut reader = read().context("cannot read a temporary file")?;
            let mut groups: HashMap<[u8; 16], Vec<Entry>> = HashMap::new();
            while let Some((hash, entry)) =
                record(&mut reader).context("cannot read a temporary file")?
            {
                groups.entry(hash).or_default().push(entry);
            }
            let mut shared: Vec<Vec<Entry>> = groups
                .into_values()
                .filter(|group| group.len() > 1)
                .collect();
            shared.sort_by_key(|group| (group[0].1.shard, group[0].1.sample));
            for group in shared {
                visit(&group)?;
            }
        }
        Ok(())
    }
}

fn record(reader: &mut impl Read) -> io::Result<Option<([u8; 16], Entry)>> {
    let mut hash = [0; 16];
    match reader.read_exact(&mut hash) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut beside = [0; 16];
    reader.read_exact(&mut beside)?;
    let mut word = [0; 4];
    let mut offset = [0; 8];
    reader.read_exact(&mut word)?;
    let shard = u32::from_le_bytes(word);
    reader.read_exact(&mut word)?;
    let sample = u32::from_le_bytes(word);
    reader.read_exact(&mut offset)?;
    reader.read_exact(&mut word)?;
    let mut key = vec![0; u32::from_le_bytes(word) as usize];
    reader.read_exact(&mut key)?;
    let place = Place {
        shard,
        sample,
        offset_bytes: u64::from_le_bytes(offset),
        key: String::from_utf8_lossy(&key).into_owned(),
    };
    Ok(Some((hash, (beside, place))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sample: u32) -> Place {
        Place {
            shard: 0,
            sample,
            offset_bytes: 512,
            key: format!("k{sample}"),
        }
    }

    #[test]
    fn groups_come_back_from_disk() {
        let mut table = Table::default();
        for sample in 0..1000u32 {
            let hash = first_half(&Sha256::digest((sample % 990).to_le_bytes()));
            table
                .push(hash, [sample as u8; 16], &place(sample))
                .unwrap();
        }
        let mut found = Vec::new();
        table
            .groups(&mut |group| {
                found.push(
                    group
                        .iter()
                        .map(|(_, place)| place.sample)
                        .collect::<Vec<_>>(),
                );
                Ok(())
            })
            .unwrap();
        found.sort();
        let expected: Vec<_> = (0..10).map(|first| vec![first, first + 990]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn hashes_within_the_distance_share_a_band() {
        for near in 0..=16 {
            let bands = near + 1;
            let (a, mut b) = (0x0123_4567_89ab_cdef_u64, 0x0123_4567_89ab_cdef_u64);
            for bit in 0..near {
                b ^= 1 << (bit * 64 / near.max(1));
            }
            assert!((a ^ b).count_ones() <= near);
            let shared =
                (0..bands).filter(|&band| band_of(a, band, bands) == band_of(b, band, bands));
            assert!(shared.count() > 0, "{near}");
        }
    }
}
