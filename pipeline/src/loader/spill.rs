//! Memory for shuffling that overflows to disk. What stands in a local shard as it is is read from there
//! a second time; the rest goes to a temporary file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::shard_file::ShardFile;
use crate::error::PipelineError;
use crate::sample::{EncodedSample, MemberData};

/// Shorter members stay in memory: their books would take as much.
const MIN_BYTES: usize = 4 << 10;

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
    len: usize,
}

impl Spilled {
    /// Bytes that stayed in memory.
    pub(super) fn kept_bytes(&self) -> usize {
        self.sample.payload_bytes()
    }
}

impl Spill {
    /// Takes the long members out of a sample; `shard` is the file that it is from, where there is one.
    pub(super) fn put(
        &mut self,
        mut sample: EncodedSample,
        shard: Option<Arc<ShardFile>>,
    ) -> Result<Spilled, PipelineError> {
        let mut parts = Vec::new();
        for (number, member) in sample.members.iter_mut().enumerate() {
            let MemberData::Bytes(bytes) = &mut member.data else {
                continue;
            };
            if bytes.len() < MIN_BYTES {
                continue;
            }
            let in_shard = shard.as_ref().and(member.offset_in_file);
            parts.push(Part {
                member: number,
                in_shard: in_shard.is_some(),
                offset: match in_shard {
                    Some(offset) => offset,
                    None => self.write(bytes).map_err(spill_error)?,
                },
                len: bytes.len(),
            });
            *bytes = Vec::new();
        }
        Ok(Spilled {
            sample,
            shard,
            parts,
        })
    }

    /// Puts them back; `new_bytes` makes vectors of a length.
    pub(super) fn take(
        &mut self,
        spilled: Spilled,
        new_bytes: &dyn Fn(usize) -> Vec<u8>,
    ) -> Result<EncodedSample, PipelineError> {
        let Spilled {
            mut sample,
            shard,
            parts,
        } = spilled;
        for part in parts {
            let mut bytes = new_bytes(part.len);
            match &shard {
                Some(shard) if part.in_shard => shard
                    .read_at(&mut bytes, part.offset)
                    .map_err(|error| reread_error(&sample, error))?,
                _ => self.read(&mut bytes, part.offset).map_err(spill_error)?,
            }
            sample.members[part.member].data = MemberData::Bytes(bytes);
        }
        Ok(sample)
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

/// What went wrong with a sample that is read a second time.
fn reread_error(sample: &EncodedSample, source: io::Error) -> PipelineError {
    let message = format!("its shard has changed since it was first read ({source})");
    PipelineError::Io {
        path: sample.id.to_string().into(),
        source: io::Error::new(source.kind(), message),
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
    use crate::sample::{Member, SampleId};
    use crate::source::ShardLocation;

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
                Member::new(
                    "png",
                    MemberData::Bytes(vec![!number as u8; MIN_BYTES + number]),
                ),
            ],
        };
        let mut spill = Spill::default();
        let mut spilled: Vec<_> = (0..5)
            .map(|number| spill.put(sample(number), None).unwrap())
            .collect();
        assert!(spilled
            .iter()
            .all(|s| s.sample.payload_bytes() < 2 * MIN_BYTES));
        for number in (0..5).rev() {
            let back = spill.take(spilled.pop().unwrap(), &|len| vec![0; len]);
            assert_eq!(back.unwrap(), sample(number));
        }
        assert!(spill.file.is_some());
    }

    #[test]
    fn what_stands_in_a_shard_comes_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let image: Vec<u8> = (0..3 * MIN_BYTES).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, [&[0; 512], image.as_slice()].concat()).unwrap();
        let shard = ShardFiles::default().open(&ShardLocation::local(&path));
        let id = SampleId {
            shard: "s".into(),
            shard_index: 0,
            sample_index: 0,
            key: "k".into(),
            offset_bytes: 0,
        };
        let text = Member::new("txt", MemberData::Bytes(b"short".to_vec()));
        let mut picture = Member::new("jpg", MemberData::Bytes(image));
        picture.offset_in_file = Some(512);
        let elsewhere = Member::new("png", MemberData::Bytes(vec![7; MIN_BYTES]));
        for (members, spills) in [
            (vec![text, picture.clone()], false),
            // Each from where it can be had.
            (vec![picture, elsewhere], true),
        ] {
            let sample = EncodedSample {
                id: id.clone(),
                members,
            };
            let mut spill = Spill::default();
            let spilled = spill.put(sample.clone(), shard.clone()).unwrap();
            assert!(spilled.kept_bytes() < MIN_BYTES);
            assert_eq!(spill.file.is_some(), spills);
            let back = spill.take(spilled, &|len| vec![0; len]);
            assert_eq!(back.unwrap(), sample);
        }
        // A shard that was cut off meanwhile.
        let mut picture = Member::new("jpg", MemberData::Bytes(vec![1; MIN_BYTES]));
        picture.offset_in_file = Some(1 << 20);
        let members = vec![picture];
        let mut spill = Spill::default();
        let spilled = spill.put(EncodedSample { id, members }, shard).unwrap();
        let error = spill.take(spilled, &|len| vec![0; len]).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("s#k@0: its shard has changed"),
            "{message}"
        );
    }
}
