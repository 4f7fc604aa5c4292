//! What the loader does while a shard is read: times the reads, reuses memory, leaves long members where
//! they are.

use std::io::{self, Read};
use std::sync::Arc;

use super::leave::OpenShard;
use super::recycle::BytePool;
use super::timed::TimedReads;
use crate::loader::meters::stats::Meters;
use crate::shard::forward::ReadSeek;
use crate::shard::read::{Leave, LeaveMembers, MemberMemory, WatchReads};
use crate::source::ShardBytes;

pub(crate) struct LoaderReads {
    times: TimedReads,
    memory: Arc<BytePool>,
    /// The shard, where it is open already.
    opened: Option<OpenShard>,
}

impl LoaderReads {
    /// Reads of the shard of this name.
    pub(crate) fn new(
        shard: &Arc<str>,
        meters: &Arc<Meters>,
        memory: &Arc<BytePool>,
    ) -> LoaderReads {
        LoaderReads {
            times: TimedReads::new(shard, meters),
            memory: memory.clone(),
            opened: None,
        }
    }

    /// Reads from this file, if there is one, instead of opening the shard.
    pub(crate) fn with_file(self, opened: Option<OpenShard>) -> LoaderReads {
        LoaderReads { opened, ..self }
    }
}

impl WatchReads for LoaderReads {
    fn watch_open(
        &self,
        open: &mut dyn FnMut() -> io::Result<ShardBytes>,
    ) -> io::Result<ShardBytes> {
        self.times.watch_open(&mut || match &self.opened {
            Some(opened) => Ok(opened.file.bytes(&opened.stop)),
            None => open(),
        })
    }

    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        self.times.watch_file(file)
    }

    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        self.times.watch_decompressor(decompressor)
    }
}

impl MemberMemory for LoaderReads {
    fn new_bytes(&self, len: usize) -> Vec<u8> {
        self.memory.take(len)
    }
}

impl LeaveMembers for LoaderReads {
    fn seekable_reader(&self) -> Option<(Box<dyn ReadSeek>, u64)> {
        let OpenShard { file, stop, .. } = self.opened.as_ref()?;
        // Some file systems do not tell lengths.
        if file.len() == 0 {
            return None;
        }
        Some((Box::new(self.times.timed(file.reader(stop))), file.len()))
    }

    fn leaves(&self, offset: u64, len: u64) -> Leave {
        match &self.opened {
            Some(opened) => opened.leaves(offset, len),
            None => Leave::Never,
        }
    }
}
