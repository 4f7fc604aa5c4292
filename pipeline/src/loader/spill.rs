//! Memory for shuffling that overflows to disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::sample::{EncodedSample, MemberData};

/// Shorter members stay in memory: their books would take as much.
const MIN_BYTES: usize = 4 << 10;

/// A temporary file without a name; nothing is left of it, however the process ends.
#[derive(Debug, Default)]
pub(super) struct Spill {
    file: Option<File>,
    end: u64,
}

/// A sample whose long members are in a [`Spill`].
#[derive(Debug)]
pub(super) struct Spilled {
    sample: EncodedSample,
    /// Member, offset and length.
    parts: Vec<(usize, u64, usize)>,
}

impl Spilled {
    /// Bytes that stayed in memory.
    pub(super) fn kept_bytes(&self) -> usize {
        self.sample.payload_bytes()
    }
}

impl Spill {
    /// Takes the long members out of a sample.
    pub(super) fn put(&mut self, mut sample: EncodedSample) -> io::Result<Spilled> {
        let mut parts = Vec::new();
        for (number, member) in sample.members.iter_mut().enumerate() {
            let MemberData::Bytes(bytes) = &mut member.data else {
                continue;
            };
            if bytes.len() < MIN_BYTES {
                continue;
            }
            if self.file.is_none() {
                self.file = Some(tempfile::tempfile()?);
            }
            if let Some(file) = &mut self.file {
                file.seek(SeekFrom::Start(self.end))?;
                file.write_all(bytes)?;
            }
            parts.push((number, self.end, bytes.len()));
            self.end += bytes.len() as u64;
            *bytes = Vec::new();
        }
        Ok(Spilled { sample, parts })
    }

    /// Puts them back; `new_bytes` makes vectors with room for a length.
    pub(super) fn take(
        &mut self,
        spilled: Spilled,
        new_bytes: &dyn Fn(usize) -> Vec<u8>,
    ) -> io::Result<EncodedSample> {
        let Spilled { mut sample, parts } = spilled;
        for (number, offset, len) in parts {
            let Some(file) = &mut self.file else {
                return Err(io::Error::other("a spilled sample without its file"));
            };
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = new_bytes(len);
            if file.take(len as u64).read_to_end(&mut bytes)? != len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sample.members[number].data = MemberData::Bytes(bytes);
        }
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Member, SampleId};

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
                Member {
                    name: "jpg".into(),
                    data: MemberData::Bytes(vec![number as u8; 3000 * number]),
                },
                Member {
                    name: "txt".into(),
                    data: MemberData::Text(vec!["a".into()]),
                },
                Member {
                    name: "png".into(),
                    data: MemberData::Bytes(vec![!number as u8; MIN_BYTES + number]),
                },
            ],
        };
        let mut spill = Spill::default();
        let mut spilled: Vec<_> = (0..5)
            .map(|number| spill.put(sample(number)).unwrap())
            .collect();
        assert!(spilled
            .iter()
            .all(|s| s.sample.payload_bytes() < 2 * MIN_BYTES));
        for number in (0..5).rev() {
            let back = spill.take(spilled.pop().unwrap(), &Vec::with_capacity);
            assert_eq!(back.unwrap(), sample(number));
        }
    }
}
