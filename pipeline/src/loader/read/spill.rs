//! Memory for shuffling that overflows to disk. What stands in a local shard as it is is read from there
//! when its turn comes; the rest goes to a temporary file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::recycle::BytePool;
use super::shard_file::ShardFile;
use crate::error::{PipelineError, SampleError, SkipReason};
use crate::sample::{EncodedSample, MemberData};

/// Shorter members stay in memory: their records would take as much.
pub(super) const MIN_BYTES: u64 = 4 << 10;

/// A temporary file without a name; nothing is left of it, however the process ends.
#[derive(Debug, Default)]
pub(super) struct Spill {
    file: Option<File>,
    end: u64,
}

/// A sample whose long members are in a [`Spill`] or in their shard.
#[derive(Debug)]
pub(super) struct Spilled {
    sample: EncodedSample,
    shard: Option<Arc<ShardFile>>,
    parts: Vec<Part>,
}

/// A member that was taken out.
#[derive(Debug)]
struct Part {
    member: usize,
    /// In the shard, else in the temporary file.
    in_shard: bool,
    offset: u64,
    len: u64,
}

impl Spilled {
    /// Bytes that stayed in memory.
    pub(super) fn kept_bytes(&self) -> usize {
        self.sample.payload_bytes()
    }
}

impl Spill {
    /// Takes the long members out of a sample, and their memory to `pool`; `shard` is the file that it is
    /// from, where there is one.
    pub(super) fn put(
        &mut self,
        mut sample: EncodedSample,
        shard: Option<Arc<ShardFile>>,
        pool: &BytePool,
    ) -> Result<Spilled, PipelineError> {
        let mut parts = Vec::new();
        for (number, member) in sample.members.iter_mut().enumerate() {
            let MemberData::Bytes(bytes) = &mut member.data else {
                continue;
            };
            let left = member.in_file.and_then(|place| place.left_bytes);
            let has_file = shard.is_some() || left.is_some();
            let in_shard = member.in_file.filter(|_| has_file);
            let len = left.unwrap_or(bytes.len() as u64);
            if len < MIN_BYTES && left.is_none() {
                continue;
            }
            parts.push(Part {
                member: number,
                in_shard: in_shard.is_some(),
                offset: match in_shard {
                    Some(place) => place.offset_bytes,
                    None => self.write(bytes).map_err(spill_error)?,
                },
                len,
            });
            pool.give_back(std::mem::take(bytes));
        }
        Ok(Spilled {
            sample,
            shard,
            parts,
        })
    }

    /// Puts them back, into memory of `pool`; or says what keeps the shard from giving them.
    ///
    /// # Errors
    /// Those of the temporary file.
    pub(super) fn take(
        &mut self,
        spilled: Spilled,
        pool: &BytePool,
    ) -> Result<Result<EncodedSample, SampleError>, PipelineError> {
        let Spilled {
            mut sample,
            shard,
            parts,
        } = spilled;
        for part in parts {
            let too_long = |_| spill_error(io::Error::other("a member beyond the address space"));
            let mut bytes = pool.take(usize::try_from(part.len).map_err(too_long)?);
            if part.in_shard {
                let read = match &shard {
                    Some(shard) => shard.read_at(&mut bytes, part.offset),
                    None => Err(io::Error::other("it is not open")),
                };
                if let Err(error) = read {
                    return Ok(Err(late_error(sample, &error)));
                }
            } else {
                self.read(&mut bytes, part.offset).map_err(spill_error)?;
            }
            if let Some(member) = sample.members.get_mut(part.member) {
                member.data = MemberData::Bytes(bytes);
            }
        }
        Ok(Ok(sample))
    }

    /// Writes to the end of the temporary file; returns where that was.
    fn write(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let offset = self.end;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
        self.end += bytes.len() as u64;
        Ok(offset)
    }

    fn read(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("a spilled sample without its file"));
        };
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}

/// What went wrong with a sample that stands in its shard.
fn late_error(sample: EncodedSample, source: &io::Error) -> SampleError {
    let message = match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            "its shard has become shorter since it was opened; fetch the shard again".into()
        }
        _ => format!("its shard cannot be read: {source}; fetch the shard again"),
    };
    SampleError {
        id: Box::new(sample.id),
        reason: SkipReason::UnreadableShard,
        message,
    }
}

fn spill_error(source: io::Error) -> PipelineError {
    PipelineError::Io {
        path: "temporary file of the shuffle buffer (lower shuffle_buffer_samples, or index the \
               shards with `qfdata index`)"
            .into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::shard_file::ShardFiles;
    use super::*;
    use crate::sample::{InFile, Member, SampleId};
    use crate::source::ShardLocation;

    const MIN: usize = MIN_BYTES as usize;

    #[test]
    fn samples_come_back_as_they_were() {
        let sample = |number: usize| EncodedSample {
            id: SampleId {
                shard: "s".into(),
                shard_index: 0,
                sample_index: number as u32,
                key: number.to_string(),
                offset_bytes: 0,
            },
            members: vec![
                Member::new("jpg", MemberData::Bytes(vec![number as u8; 3000 * number])),
                Member::new("txt", MemberData::Text(vec!["a".into()])),
                Member::new("png", MemberData::Bytes(vec![!number as u8; MIN + number])),
            ],
        };
        let (mut spill, pool) = (Spill::default(), BytePool::default());
        let mut spilled: Vec<_> = (0..5)
            .map(|number| spill.put(sample(number), None, &pool).unwrap())
            .collect();
        assert!(spilled.iter().all(|s| s.sample.payload_bytes() < 2 * MIN));
        for number in (0..5).rev() {
            let back = spill.take(spilled.pop().unwrap(), &pool).unwrap();
            assert_eq!(back.unwrap(), sample(number));
        }
        assert!(spill.file.is_some());
    }

    #[test]
    fn what_stands_in_a_shard_comes_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let image: Vec<u8> = (0..3 * MIN).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, [&[0; 512], image.as_slice()].concat()).unwrap();
        let shard = ShardFiles::default().open(&ShardLocation::local(&path));
        let pool = BytePool::default();
        let at = |offset_bytes, left_bytes| {
            Some(InFile {
                offset_bytes,
                left_bytes,
            })
        };
        let id = SampleId {
            shard: "s".into(),
            shard_index: 0,
            sample_index: 0,
            key: "k".into(),
            offset_bytes: 0,
        };
        let text = Member::new("txt", MemberData::Bytes(b"short".to_vec()));
        let mut picture = Member::new("jpg", MemberData::Bytes(image));
        picture.in_file = at(512, None);
        let elsewhere = Member::new("png", MemberData::Bytes(vec![7; MIN]));
        for (members, spills) in [
            (vec![text, picture.clone()], false),
            // Each from where it can be had.
            (vec![picture, elsewhere], true),
        ] {
            let sample = EncodedSample {
                id: id.clone(),
                members,
            };
            let mut left = sample.clone();
            let of_picture = left.members.iter_mut().find(|m| m.name == "jpg").unwrap();
            let bytes = of_picture.data.len_bytes() as u64;
            of_picture.data = MemberData::Bytes(Vec::new());
            of_picture.in_file = at(512, Some(bytes));
            for put in [sample.clone(), left] {
                let mut spill = Spill::default();
                let spilled = spill.put(put, shard.clone(), &pool).unwrap();
                assert!(spilled.kept_bytes() < MIN);
                assert_eq!(spill.file.is_some(), spills);
                let back = spill.take(spilled, &pool).unwrap();
                assert_eq!(back.unwrap(), sample);
            }
        }
        // A shard that was cut off meanwhile, and one that is gone.
        for (shard, message) in [
            (shard, "its shard has become shorter since it was opened"),
            (None, "its shard cannot be read: it is not open"),
        ] {
            let mut picture = Member::new("jpg", MemberData::Bytes(Vec::new()));
            picture.in_file = at(1 << 20, Some(MIN_BYTES));
            let sample = EncodedSample {
                id: id.clone(),
                members: vec![picture],
            };
            let mut spill = Spill::default();
            let spilled = spill.put(sample, shard, &pool).unwrap();
            let error = spill.take(spilled, &pool).unwrap().unwrap_err();
            let all = format!("sample s#k@0: {message}; fetch the shard again");
            assert_eq!(error.to_string(), all);
        }
    }
}
