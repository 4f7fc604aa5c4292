//! The bytes of a sidecar: header, records, names; see the module's documentation for the layout.

use std::ops::Range;

use flate2::Crc;
use sha2::{Digest, Sha256};

use super::fingerprint::Fingerprint;

/// First bytes of a sidecar.
pub(super) const MAGIC: [u8; 8] = *b"QFINDEX\0";
/// Version of the layout.
const VERSION: u32 = 3;
/// Version of an index without checksums of shard and samples: the same layout, which older programs would
/// take for one whose shard changed.
const VERSION_WITHOUT_CHECKSUMS: u32 = 4;
/// Length of the header.
pub(super) const HEADER_BYTES: u64 = 176;
/// Length of the header without its own checksum.
const HEADER_BODY_BYTES: usize = 144;
/// Length of a sample's record.
pub(super) const RECORD_BYTES: u64 = 76;
/// Length of a record without its own checksum.
const RECORD_BODY_BYTES: usize = 72;
/// What is wrong with a header whose checksum is another.
const DAMAGED: &str = "has a damaged header: its checksum does not match";
/// Bit of a record's flags: the key was seen earlier in the shard.
const FLAG_REPEATED_KEY: u32 = 1;

/// A SHA-256.
pub(super) type Checksum = [u8; 32];

/// What a sidecar says about its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) access: Option<Access>,
    pub(super) samples: u32,
    /// Whether it holds the checksums of shard and samples; they are zero where it does not.
    pub(super) has_checksums: bool,
    pub(super) shard_bytes: u64,
    pub(super) shard_sha256: Checksum,
    /// Arrow: where the first record batch begins, after schema and dictionaries; else 0.
    pub(super) prologue_bytes: u64,
    /// Length of the table of names.
    pub(super) names_bytes: u64,
    /// Checksum of records and names.
    pub(super) tables_sha256: Checksum,
    /// What tells the shard from others of its length.
    pub(super) fingerprint: Fingerprint,
}

/// Why a header is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// It is of an older version of the format.
    Outdated(u32),
    /// What is wrong with it, to follow the name of the sidecar.
    Damaged(String),
}

impl From<String> for BadHeader {
    fn from(what: String) -> BadHeader {
        BadHeader::Damaged(what)
    }
}

impl Header {
    /// Where the names begin.
    pub(super) fn names_offset(&self) -> u64 {
        HEADER_BYTES + u64::from(self.samples) * RECORD_BYTES
    }

    /// Length of the whole sidecar; `parse` has checked that there is one.
    pub(super) fn sidecar_bytes(&self) -> u64 {
        self.names_offset().saturating_add(self.names_bytes)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        bytes.extend(MAGIC);
        let version = match self.has_checksums {
            true => VERSION,
            false => VERSION_WITHOUT_CHECKSUMS,
        };
        bytes.extend(version.to_le_bytes());
        bytes.extend(access_code(self.access).to_le_bytes());
        bytes.extend(self.samples.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.shard_bytes.to_le_bytes());
        bytes.extend(self.shard_sha256);
        bytes.extend(HEADER_BYTES.to_le_bytes());
        bytes.extend(self.names_offset().to_le_bytes());
        bytes.extend(self.names_bytes.to_le_bytes());
        bytes.extend(self.prologue_bytes.to_le_bytes());
        bytes.extend(self.tables_sha256);
        let sums = self.fingerprint.0;
        bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes.extend([0; 4]);
        let checksum: Checksum = Sha256::digest(&bytes).into();
        bytes.extend(checksum);
        bytes
    }

    /// # Errors
    /// [`BadHeader`] if it is of another version, or damaged.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadHeader> {
        let mut fields = Fields(bytes);
        let cut_short = || {
            let got = bytes.len();
            format!("ends after {got} of the {HEADER_BYTES} bytes of its header")
        };
        if fields.array::<8>().ok_or_else(cut_short)? != MAGIC {
            return Err(String::from("is not an index: it does not begin with QFINDEX").into());
        }
        let version = fields.u32().ok_or_else(cut_short)?;
        let body = bytes
            .get(..HEADER_BODY_BYTES + 32)
            .map(|body| body.split_at(HEADER_BODY_BYTES));
        if (1..VERSION).contains(&version) {
            // Unless it is of this version, but for that number.
            let renumbered = body.is_some_and(|(body, checksum)| {
                let is_of = |version: u32| {
                    let mut body = body.to_vec();
                    body[8..12].copy_from_slice(&version.to_le_bytes());
                    Sha256::digest(body)[..] == *checksum
                };
                is_of(VERSION) || is_of(VERSION_WITHOUT_CHECKSUMS)
            });
            return Err(match renumbered {
                true => String::from(DAMAGED).into(),
                false => BadHeader::Outdated(version),
            });
        }
        if !(VERSION..=VERSION_WITHOUT_CHECKSUMS).contains(&version) {
            let what = format!(
                "has version {version} of the index format, this program knows up to version \
                 {VERSION_WITHOUT_CHECKSUMS}"
            );
            return Err(what.into());
        }
        let (body, checksum) = body.ok_or_else(cut_short)?;
        if Sha256::digest(body)[..] != *checksum {
            return Err(String::from(DAMAGED).into());
        }
        let access = fields.u32().ok_or_else(cut_short)?;
        let samples = fields.u32().ok_or_else(cut_short)?;
        fields.array::<4>().ok_or_else(cut_short)?;
        let shard_bytes = fields.u64().ok_or_else(cut_short)?;
        let shard_sha256 = fields.array().ok_or_else(cut_short)?;
        let records_offset = fields.u64().ok_or_else(cut_short)?;
        let names_offset = fields.u64().ok_or_else(cut_short)?;
        let header = Header {
            access: access_of(access).ok_or_else(|| format!("names an unknown access {access}"))?,
            samples,
            has_checksums: version == VERSION,
            shard_bytes,
            shard_sha256,
            names_bytes: fields.u64().ok_or_else(cut_short)?,
            prologue_bytes: fields.u64().ok_or_else(cut_short)?,
            tables_sha256: fields.array().ok_or_else(cut_short)?,
            fingerprint: {
                let mut sum = || fields.u32().ok_or_else(cut_short);
                Fingerprint([sum()?, sum()?, sum()?])
            },
        };
        let is_consistent = records_offset == HEADER_BYTES
            && names_offset == header.names_offset()
            && names_offset.checked_add(header.names_bytes).is_some()
            && header.prologue_bytes <= header.shard_bytes;
        if !is_consistent {
            let what = "has a header whose offsets contradict each other";
            return Err(what.to_owned().into());
        }
        Ok(header)
    }
}

fn access_code(access: Option<Access>) -> u32 {
    match access {
        None => 0,
        Some(Access::Tar) => 1,
        Some(Access::ZstdFrames) => 2,
        Some(Access::ArrowBatches) => 3,
    }
}

fn access_of(code: u32) -> Option<Option<Access>> {
    let known = [
        None,
        Some(Access::Tar),
        Some(Access::ZstdFrames),
        Some(Access::ArrowBatches),
    ];
    known
        .into_iter()
        .find(|access| access_code(*access) == code)
}

/// Where a sample lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes of the shard file that hold it: itself, its zstd frames, its record batch.
    pub(super) stored: Range<u64>,
    /// Where it begins in the uncompressed stream: [`crate::SampleId::offset_bytes`].
    pub(super) content_offset: u64,
    /// Its length in the uncompressed stream, padding included; 0 in an Arrow shard.
    pub(super) content_bytes: u64,
    /// Uncompressed bytes of `stored` before it; Arrow: its row in the batch.
    pub(super) skip: u64,
    /// Its entry in the table of names.
    pub(super) name_offset: u64,
    pub(super) name_bytes: u32,
    pub(super) is_repeated_key: bool,
    /// [`key_hash`] of its key.
    pub(super) key_hash: u64,
    /// CRC-32 of its entry in the table of names.
    pub(super) name_crc: u32,
    /// CRC-32C of its bytes in the uncompressed stream; Arrow: of its record batch's message.
    pub(super) content_crc32c: u32,
}

impl Record {
    /// Appends it, as that of the sample of this number.
    pub(super) fn write(&self, sample: u32, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let flags = if self.is_repeated_key {
            FLAG_REPEATED_KEY
        } else {
            0
        };
        for number in [
            self.stored.start,
            self.stored.end,
            self.content_offset,
            self.content_bytes,
            self.skip,
            self.name_offset,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.name_bytes.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(self.key_hash.to_le_bytes());
        bytes.extend(self.name_crc.to_le_bytes());
        bytes.extend(self.content_crc32c.to_le_bytes());
        let sum = record_crc(sample, &bytes[start..]);
        bytes.extend(sum.to_le_bytes());
    }

    /// `None` unless its checksum matches and all of it lies within what the header allows.
    pub(super) fn parse(sample: u32, bytes: &[u8], header: &Header) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(RECORD_BODY_BYTES)?;
        if Fields(sum).u32()? != record_crc(sample, body) {
            return None;
        }
        let mut fields = Fields(body);
        let stored = fields.u64()?..fields.u64()?;
        let record = Record {
            content_offset: fields.u64()?,
            content_bytes: fields.u64()?,
            skip: fields.u64()?,
            name_offset: fields.u64()?,
            name_bytes: fields.u32()?,
            is_repeated_key: match fields.u32()? {
                0 => false,
                FLAG_REPEATED_KEY => true,
                _ => return None,
            },
            key_hash: fields.u64()?,
            name_crc: fields.u32()?,
            content_crc32c: fields.u32()?,
            stored,
        };
        let name_end = record.name_offset.checked_add(record.name_bytes.into())?;
        record.content_offset.checked_add(record.content_bytes)?;
        let is_consistent = record.stored.start <= record.stored.end
            && record.stored.end <= header.shard_bytes
            && name_end <= header.names_bytes
            && match header.access {
                Some(Access::Tar) => {
                    record.stored.start == record.content_offset
                        && record.stored.end - record.stored.start == record.content_bytes
                        && record.skip == 0
                }
                Some(Access::ZstdFrames) => record.skip <= record.content_offset,
                Some(Access::ArrowBatches) => record.stored.start == record.content_offset,
                None => true,
            };
        is_consistent.then_some(record)
    }
}

/// A sample as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its key, as in [`crate::SampleId::key`].
    pub key: String,
    /// Files of a tar sample, in shard order, those that a loader passes over included. Empty in
    /// an Arrow shard, whose members are pieces of columns.
    pub members: Vec<MemberPlace>,
}

/// Where a member of a tar sample lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPlace {
    /// As in [`crate::Member::name`].
    pub name: String,
    /// Where its data begins in the uncompressed stream.
    pub offset_bytes: u64,
    /// Length of its data.
    pub size_bytes: u64,
}

impl IndexEntry {
    /// Appends it to a table of names. Offsets are stored relative to `content_offset`.
    pub(super) fn write(&self, content_offset: u64, bytes: &mut Vec<u8>) {
        write_text(&self.key, bytes);
        write_number(self.members.len() as u64, bytes);
        for member in &self.members {
            write_text(&member.name, bytes);
            write_number(member.offset_bytes.wrapping_sub(content_offset), bytes);
            write_number(member.size_bytes, bytes);
        }
    }

    /// `None` if it does not parse.
    pub(super) fn parse(bytes: &[u8], content_offset: u64) -> Option<Self> {
        let mut fields = Fields(bytes);
        let key = fields.text()?;
        let mut members = Vec::new();
        for _ in 0..fields.number()? {
            members.push(MemberPlace {
                name: fields.text()?,
                offset_bytes: content_offset.checked_add(fields.number()?)?,
                size_bytes: fields.number()?,
            });
        }
        fields.0.is_empty().then_some(IndexEntry { key, members })
    }
}

/// CRC-32 of a record, and of which sample it is.
fn record_crc(sample: u32, body: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&sample.to_le_bytes());
    crc.update(body);
    crc.sum()
}

/// CRC-32 of an entry in the table of names.
pub(super) fn name_crc(entry: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(entry);
    crc.sum()
}

/// First eight bytes of the key's SHA-256, as a little-endian number: what a sample that was read
/// is compared by.
pub(super) fn key_hash(key: &str) -> u64 {
    let digest: Checksum = Sha256::digest(key.as_bytes()).into();
    Fields(&digest).u64().unwrap_or(0)
}

fn write_text(text: &str, bytes: &mut Vec<u8>) {
    write_number(text.len() as u64, bytes);
    bytes.extend_from_slice(text.as_bytes());
}

/// LEB128: seven bits a byte, low ones first, the top bit set in all but the last.
fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes fields off the front; `None` where too few bytes are left.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits.checked_shl(shift)? >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    }
}

/// How single samples of a shard are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A plain tar: its own bytes.
    Tar,
    /// A tar.zst whose frames decompress independently: the frames that hold it.
    ZstdFrames,
    /// Arrow IPC: its record batch.
    ArrowBatches,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            access: Some(Access::ZstdFrames),
            samples: 3,
            shard_bytes: 1 << 40,
            has_checksums: true,
            shard_sha256: [7; 32],
            prologue_bytes: 9,
            names_bytes: 1000,
            tables_sha256: [8; 32],
            fingerprint: Fingerprint([1, u32::MAX, 3]),
        }
    }

    fn problem(bytes: &[u8]) -> String {
        match Header::parse(bytes) {
            Err(BadHeader::Damaged(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn headers_come_back_and_no_flipped_byte_passes() {
        let bytes = header().to_bytes();
        assert_eq!(bytes.len() as u64, HEADER_BYTES);
        assert_eq!(Header::parse(&bytes), Ok(header()));
        for length in 0..bytes.len() {
            let error = problem(&bytes[..length]);
            assert!(error.contains("ends after"), "{length}: {error}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Header::parse(&flipped).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn other_versions() {
        let mut bytes = header().to_bytes();
        for version in [1, 2] {
            bytes[8] = version;
            assert!(problem(&bytes).contains("damaged"));
            let mut older = bytes.clone();
            older[20] ^= 1;
            let outdated = BadHeader::Outdated(version.into());
            assert_eq!(Header::parse(&older), Err(outdated));
        }
        for version in [0, 5, 255] {
            bytes[8] = version;
            assert!(problem(&bytes).contains("knows up to version 4"));
        }
        // One with checksums does not pass for one without, nor the other way.
        let bare = Header {
            has_checksums: false,
            shard_sha256: [0; 32],
            ..header()
        };
        assert_eq!(Header::parse(&bare.to_bytes()), Ok(bare.clone()));
        for (header, other) in [(header(), 4), (bare, 3), (header(), 2)] {
            let mut bytes = header.to_bytes();
            bytes[8] = other;
            assert!(problem(&bytes).contains("damaged"));
        }
    }

    #[test]
    fn headers_that_contradict_themselves() {
        for wrong in [
            Header {
                names_bytes: u64::MAX,
                ..header()
            },
            Header {
                prologue_bytes: u64::MAX,
                ..header()
            },
        ] {
            let error = problem(&wrong.to_bytes());
            assert!(error.contains("contradict"), "{error}");
        }
    }

    #[test]
    fn records_and_entries_come_back() {
        let record = Record {
            stored: 100..900,
            content_offset: 5000,
            content_bytes: 1024,
            skip: 512,
            name_offset: 10,
            name_bytes: 20,
            is_repeated_key: true,
            key_hash: key_hash("a"),
            name_crc: 77,
            content_crc32c: 99,
        };
        let mut bytes = Vec::new();
        record.write(5, &mut bytes);
        assert_eq!(bytes.len() as u64, RECORD_BYTES);
        assert_eq!(Record::parse(5, &bytes, &header()), Some(record.clone()));
        assert_eq!(
            Record::parse(6, &bytes, &header()),
            None,
            "of another sample"
        );
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(Record::parse(5, &flipped, &header()), None, "{at}");
            }
        }
        for wrong in [
            Record {
                stored: Range {
                    start: 900,
                    end: 100,
                },
                ..record.clone()
            },
            Record {
                stored: 0..u64::MAX,
                ..record.clone()
            },
            Record {
                content_bytes: u64::MAX,
                ..record.clone()
            },
            Record {
                skip: 5001,
                ..record.clone()
            },
            Record {
                name_offset: 981,
                ..record.clone()
            },
            Record {
                name_offset: u64::MAX,
                ..record.clone()
            },
        ] {
            bytes.clear();
            wrong.write(5, &mut bytes);
            assert_eq!(Record::parse(5, &bytes, &header()), None, "{wrong:?}");
        }

        let member = |name: &str, offset_bytes, size_bytes| MemberPlace {
            name: name.into(),
            offset_bytes,
            size_bytes,
        };
        let entry = IndexEntry {
            key: "dir/ключ".into(),
            members: vec![member("jpg", 5512, u64::MAX), member("", 5000, 0)],
        };
        let mut bytes = Vec::new();
        entry.write(5000, &mut bytes);
        assert_eq!(IndexEntry::parse(&bytes, 5000), Some(entry));
        for length in 0..bytes.len() {
            assert_eq!(IndexEntry::parse(&bytes[..length], 5000), None);
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = IndexEntry::parse(&flipped, u64::MAX); // any answer, no panic
            }
        }
    }
}
