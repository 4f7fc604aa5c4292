//! The index of a shard: its header, and reading its tables.

use std::io::{self, Read};
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::build::{build_index, Checksums};
use super::faults::{damaged_entry, index_error, misfit, shard_error, unreadable};
use super::fingerprint::Fingerprint;
use super::format::{
    name_crc, Access, BadHeader, Header, IndexEntry, Record, HEADER_BYTES, MAGIC, RECORD_BYTES,
};
use crate::error::ShardError;
use crate::hex::hex;
use crate::remote::Sidecar;
use crate::shard::read::ReadOptions;
use crate::shard::verify::Verify;
use crate::shard_spec::INDEX_ENDING;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Bytes of the sidecar that are read and thrown away to save a second read.
const MAX_TABLE_GAP_BYTES: u64 = 4 << 10;

/// What is allocated ahead of bytes really read.
const INITIAL_CAPACITY_BYTES: u64 = 1 << 20;

/// Size of the buffer for checksums, in bytes.
const CHECKSUM_BUFFER_BYTES: usize = 256 << 10;

/// The index of a shard: what its header says. The tables stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    pub(super) header: Header,
}

/// What is beside a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its index.
    Index(ShardIndex),
    /// Nothing.
    Absent,
    /// An index of this older version of the format, which is not used.
    Outdated(u32),
    /// Something else, or a server that does not say: what it is, for the user to read.
    Unusable(String),
}

impl ShardIndex {
    /// Reads the header of the shard's sidecar; `None` if it has none that can be used.
    ///
    /// As [`ShardIndex::find`], but what is beside a remote shard and is no index is passed over
    /// without a word.
    ///
    /// # Errors
    /// As [`ShardIndex::find`].
    pub fn open(shard: &ShardLocation, stop: &Stop) -> Result<Option<ShardIndex>, ShardError> {
        Ok(match ShardIndex::find(shard, stop)? {
            Found::Index(index) => Some(index),
            Found::Absent | Found::Outdated(_) | Found::Unusable(_) => None,
        })
    }

    /// Reads the header of the shard's sidecar, if it has one.
    ///
    /// An index is optional. Where a server answers for one that is not there (with 403, an error
    /// page, a 500), the shard has none.
    ///
    /// Compares lengths and, of a local shard, the fingerprint; for the checksum of all of it see
    /// [`ShardIndex::verify`].
    ///
    /// # Errors
    /// [`ShardError`] if the sidecar is of a version that is not known yet, is cut short, or was written
    /// for another shard; if a local one is none; or if it or the shard cannot be read.
    pub fn find(shard: &ShardLocation, stop: &Stop) -> Result<Found, ShardError> {
        ShardIndex::find_verified(shard, Verify::Index, stop)
    }

    /// As [`ShardIndex::find`]; with [`Verify::Off`] the fingerprint is not compared, which saves
    /// opening the shard.
    ///
    /// # Errors
    /// As [`ShardIndex::find`].
    pub fn find_verified(
        shard: &ShardLocation,
        verify: Verify,
        stop: &Stop,
    ) -> Result<Found, ShardError> {
        let bytes = match shard.sidecar_beginning(INDEX_ENDING, HEADER_BYTES, stop) {
            Ok(Sidecar::Bytes(bytes)) => bytes,
            Ok(Sidecar::Absent) => return Ok(Found::Absent),
            Ok(Sidecar::Refused(why)) => return Ok(Found::Unusable(why)),
            Err(error) => return Err(unreadable(shard, &error)),
        };
        if shard.path().is_none() && !bytes.starts_with(&MAGIC) {
            let name = shard.sidecar(INDEX_ENDING).name;
            return Ok(Found::Unusable(format!("{name} is not an index")));
        }
        let header = match Header::parse(&bytes) {
            Ok(header) => header,
            Err(BadHeader::Outdated(version)) => return Ok(Found::Outdated(version)),
            Err(BadHeader::Damaged(what)) => return Err(index_error(shard, &what)),
        };
        let size = |location: &ShardLocation| {
            let message = |error| shard_error(shard, format!("cannot be read ({error})"));
            location.size(stop).map_err(message)
        };
        let Some(shard_bytes) = size(shard)? else {
            let why = format!(
                "{} has an index, but its server does not say how long it is",
                shard.name
            );
            return Ok(Found::Unusable(why));
        };
        if shard_bytes != header.shard_bytes {
            let indexed = header.shard_bytes;
            let what = format!("is for a shard of {indexed} bytes, the shard has {shard_bytes}");
            return Err(index_error(shard, &what));
        }
        // A remote sidecar's length would cost one more request for each shard of a run; there a
        // table that was cut short is found when it is read.
        if shard.path().is_some() {
            let sidecar = shard.sidecar(INDEX_ENDING);
            let (got, expected) = (size(&sidecar)?, header.sidecar_bytes());
            if let Some(got) = got.filter(|got| *got != expected) {
                let what = format!("has {got} bytes, by its header {expected}");
                return Err(index_error(shard, &what));
            }
        }
        // Of a remote shard it would be one more request, too; there a sample's key and checksum tell.
        if shard.path().is_some() && verify != Verify::Off {
            let read = Fingerprint::of(shard, shard_bytes, stop);
            let read =
                read.map_err(|error| shard_error(shard, format!("cannot be read ({error})")))?;
            if read != header.fingerprint {
                let what =
                    "is for another shard of the same length: their bytes at the beginning, \
                            in the middle or at the end differ";
                return Err(index_error(shard, what));
            }
        }
        Ok(Found::Index(ShardIndex { header }))
    }

    /// Number of samples in the shard, those included that reading reports as bad.
    pub fn len(&self) -> u32 {
        self.header.samples
    }

    /// Whether the shard holds no sample.
    pub fn is_empty(&self) -> bool {
        self.header.samples == 0
    }

    /// How single samples are reached; `None` if the shard can only be streamed.
    pub fn access(&self) -> Option<Access> {
        self.header.access
    }

    /// Length of the shard in bytes.
    pub fn shard_bytes(&self) -> u64 {
        self.header.shard_bytes
    }

    /// Whether it holds checksums of the shard and of its samples ([`Checksums`]).
    pub fn has_checksums(&self) -> bool {
        self.header.has_checksums
    }

    /// SHA-256 of the shard, as of when it was indexed; `None` if its checksums were left out.
    pub fn shard_sha256(&self) -> Option<[u8; 32]> {
        self.has_checksums().then_some(self.header.shard_sha256)
    }

    /// The key of one sample.
    ///
    /// # Errors
    /// As [`ShardIndex::entries`].
    pub fn key(
        &self,
        shard: &ShardLocation,
        sample: u32,
        stop: &Stop,
    ) -> Result<String, ShardError> {
        let keys = self.keys(shard, sample..sample.saturating_add(1), stop)?;
        let key = keys.into_iter().next();
        key.ok_or_else(|| self.out_of_range(shard, sample))
    }

    /// The keys of some neighbouring samples.
    ///
    /// # Errors
    /// As [`ShardIndex::entries`].
    pub fn keys(
        &self,
        shard: &ShardLocation,
        samples: Range<u32>,
        stop: &Stop,
    ) -> Result<Vec<String>, ShardError> {
        let entries = self.entries(shard, samples, stop)?;
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Keys and members of some neighbouring samples, from two reads of the sidecar.
    ///
    /// # Errors
    /// [`ShardError`] if the sidecar cannot be read or is damaged, or if there are fewer samples.
    pub fn entries(
        &self,
        shard: &ShardLocation,
        samples: Range<u32>,
        stop: &Stop,
    ) -> Result<Vec<IndexEntry>, ShardError> {
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        if samples.end > self.len() {
            return Err(self.out_of_range(shard, samples.end - 1));
        }
        let records = self.record_span(shard, samples.clone(), stop)?;
        let damaged = |sample: u32| damaged_entry(shard, sample);
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ok(Vec::new());
        };
        let start = first.name_offset;
        let end = last.name_offset.saturating_add(last.name_bytes.into());
        let names = self.read_table(shard, self.header.names_offset(), start..end, stop)?;
        let slice = |record: &Record| {
            let from = usize::try_from(record.name_offset.checked_sub(start)?).ok()?;
            names.get(from..)?.get(..record.name_bytes as usize)
        };
        let mut entries = Vec::with_capacity(records.len());
        for (sample, record) in samples.zip(&records) {
            let entry = slice(record)
                .filter(|entry| name_crc(entry) == record.name_crc)
                .and_then(|entry| IndexEntry::parse(entry, record.content_offset));
            entries.push(entry.ok_or_else(|| damaged(sample))?);
        }
        Ok(entries)
    }

    /// Reads the whole sidecar and compares its checksum.
    ///
    /// # Errors
    /// [`ShardError`] if it cannot be read or is damaged.
    pub fn verify_tables(&self, shard: &ShardLocation, stop: &Stop) -> Result<(), ShardError> {
        let io_error = |error| unreadable(shard, &error);
        let mut tables = shard.sidecar(INDEX_ENDING).open(stop).map_err(io_error)?;
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        let read = tables.by_ref().take(HEADER_BYTES).read_to_end(&mut header);
        read.map_err(io_error)?;
        if Header::parse(&header).as_ref() != Ok(&self.header) {
            return Err(index_error(shard, "has changed since it was opened"));
        }
        let (bytes, sha256) = checksum(tables).map_err(io_error)?;
        let expected = self.header.sidecar_bytes() - HEADER_BYTES;
        if (bytes, sha256) != (expected, self.header.tables_sha256) {
            let what = format!(
                "is damaged: its tables of {bytes} bytes have SHA-256 {}, by its header they are \
                 {expected} bytes with {}",
                hex(&sha256),
                hex(&self.header.tables_sha256)
            );
            return Err(index_error(shard, &what));
        }
        Ok(())
    }

    /// Reads the whole sidecar, then the whole shard as for a new index, checksums of compression
    /// included, and compares what it finds; of an index without checksums only what that says. `options` are
    /// those that the index was built with.
    ///
    /// # Errors
    /// [`ShardError`] naming both sides of what does not match, or where the shard is damaged.
    pub fn verify(
        &self,
        shard: &ShardLocation,
        options: &ReadOptions,
        stop: &Stop,
    ) -> Result<(), ShardError> {
        self.verify_tables(shard, stop)?;
        let checksums = match self.has_checksums() {
            true => Checksums::Taken,
            false => Checksums::LeftOut,
        };
        let found = build_index(shard, options, checksums, stop, &|_| {})?;
        let header = Header::parse(found.bytes());
        let header = header.map_err(|_| shard_error(shard, "cannot be indexed".into()))?;
        let (bytes, sha256) = (header.shard_bytes, &header.shard_sha256);
        if (bytes, sha256) != (self.header.shard_bytes, &self.header.shard_sha256) {
            let what = format!(
                "is for a shard of {} bytes with SHA-256 {}, the shard has {bytes} with {}",
                self.header.shard_bytes,
                hex(&self.header.shard_sha256),
                hex(sha256)
            );
            return Err(misfit(shard, &what));
        }
        if header != self.header {
            let what = "is of this shard, and does not say of it what this version finds there";
            return Err(misfit(shard, what));
        }
        Ok(())
    }

    /// The records of `wanted`, in rising order; those that lie close are read at once.
    pub(super) fn records(
        &self,
        shard: &ShardLocation,
        wanted: &[u32],
        stop: &Stop,
    ) -> Result<Vec<Record>, ShardError> {
        if let Some(pair) = wanted.windows(2).find(|pair| pair[0] >= pair[1]) {
            let message = format!(
                "samples {} and {} are not in rising order",
                pair[0], pair[1]
            );
            return Err(shard_error(shard, message));
        }
        let max_gap = (MAX_TABLE_GAP_BYTES / RECORD_BYTES) as u32;
        let mut records = Vec::new();
        for group in wanted.chunk_by(|a, b| b.saturating_sub(*a) <= max_gap) {
            let (Some(&first), Some(&last)) = (group.first(), group.last()) else {
                continue;
            };
            if last >= self.len() {
                return Err(self.out_of_range(shard, last));
            }
            let span = self.record_span(shard, first..last + 1, stop)?;
            let at = |sample: &u32| span.get((sample - first) as usize).cloned();
            records.extend(group.iter().filter_map(at));
        }
        Ok(records)
    }

    /// The records of neighbouring samples that the header promises.
    fn record_span(
        &self,
        shard: &ShardLocation,
        samples: Range<u32>,
        stop: &Stop,
    ) -> Result<Vec<Record>, ShardError> {
        let at = |sample: u32| u64::from(sample) * RECORD_BYTES;
        let range = at(samples.start)..at(samples.end);
        let bytes = self.read_table(shard, HEADER_BYTES, range, stop)?;
        let records = bytes.chunks(RECORD_BYTES as usize).zip(samples);
        records
            .map(|(bytes, sample)| {
                let record = Record::parse(sample, bytes, &self.header);
                record.ok_or_else(|| damaged_entry(shard, sample))
            })
            .collect()
    }

    /// A range of the table that begins at `base`, complete.
    fn read_table(
        &self,
        shard: &ShardLocation,
        base: u64,
        range: Range<u64>,
        stop: &Stop,
    ) -> Result<Vec<u8>, ShardError> {
        let length = range.end.saturating_sub(range.start);
        let start = base.saturating_add(range.start);
        let capacity = length.min(INITIAL_CAPACITY_BYTES) as usize;
        let mut bytes = Vec::with_capacity(capacity);
        shard
            .sidecar(INDEX_ENDING)
            .open_range(start..start.saturating_add(length), stop)
            .and_then(|file| file.take(length).read_to_end(&mut bytes))
            .map_err(|error| unreadable(shard, &error))?;
        if (bytes.len() as u64) < length {
            let end = start.saturating_add(bytes.len() as u64);
            let expected = self.header.sidecar_bytes();
            let what = format!("ends after {end} bytes, by its header it has {expected}");
            return Err(index_error(shard, &what));
        }
        Ok(bytes)
    }

    fn out_of_range(&self, shard: &ShardLocation, sample: u32) -> ShardError {
        let message = format!(
            "sample {sample} was asked for, its index has samples 0 to {} of {}",
            self.len().saturating_sub(1),
            self.len()
        );
        shard_error(shard, message)
    }
}

/// Length and SHA-256 of what a reader yields.
fn checksum(mut reader: impl Read) -> io::Result<(u64, [u8; 32])> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; CHECKSUM_BUFFER_BYTES];
    let mut bytes: u64 = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((bytes, sha256.finalize().into())),
            Ok(count) => {
                sha256.update(&buffer[..count]);
                bytes = bytes.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
