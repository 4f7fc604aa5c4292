//! Readers that pass over bytes as the tar crate asks them to: by seeking forward.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// A file whose bytes can be read from any position.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// A stream: what is passed over is read as well.
pub(crate) struct Stream<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Stream<R> {
    pub(crate) fn new(inner: R) -> Stream<R> {
        Stream { inner, position: 0 }
    }
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: Read> Seek for Stream<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let bytes = forward(to)?;
        let passed = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        match passed < bytes {
            true => Err(ends_early()),
            false => Ok(self.position),
        }
    }
}

/// A file: what is passed over is not read.
pub(crate) struct Seekable<R> {
    inner: BufReader<R>,
    position: u64,
    len: u64,
}

impl<R: Read> Seekable<R> {
    /// Of a file of `len` bytes that stands at its beginning.
    pub(crate) fn new(inner: R, len: u64, buffer_bytes: usize) -> Seekable<R> {
        Seekable {
            inner: BufReader::with_capacity(buffer_bytes, inner),
            position: 0,
            len,
        }
    }
}

impl<R: Read> Read for Seekable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.position < self.len {
            // A seek beyond an end that came nearer meanwhile said nothing.
            let message = "unexpected EOF: it has become shorter";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: Read + Seek> Seek for Seekable<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let bytes = forward(to)?;
        let position = self.position.checked_add(bytes);
        // A seek would go beyond the end and say nothing.
        let position = position.filter(|end| bytes == 0 || *end <= self.len);
        let position = position.ok_or_else(ends_early)?;
        let relative = i64::try_from(bytes).map_err(|_| ends_early())?;
        self.inner.seek_relative(relative)?;
        self.position = position;
        Ok(position)
    }
}

/// Bytes to pass over.
fn forward(to: SeekFrom) -> io::Result<u64> {
    match to {
        SeekFrom::Current(bytes) if bytes >= 0 => Ok(bytes.unsigned_abs()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only what lies ahead can be sought",
        )),
    }
}

/// That something lies beyond the end of a stream.
pub(crate) fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF during skip")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what is read.
    struct Counting(io::Cursor<Vec<u8>>, usize);

    impl Read for Counting {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1 += count;
            Ok(count)
        }
    }

    impl Seek for Counting {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    fn check(reader: &mut (impl Read + Seek), len: u64) {
        let mut next = |ahead: u64| {
            let position = reader.seek(SeekFrom::Current(ahead as i64)).unwrap();
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(u64::from(byte[0]), position % 251);
            position
        };
        // Within the buffer, to its edge, beyond it, and to the last byte.
        let places = [0, 3, 11, 0, 1000, 15, 16, 17, 0].map(&mut next);
        let last = places[8];
        assert_eq!(next(len - last - 2), len - 1);
        assert_eq!(reader.stream_position().unwrap(), len);
        let error = reader.seek(SeekFrom::Current(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(reader.seek(SeekFrom::Start(0)).is_err());
        assert!(reader.seek(SeekFrom::Current(-1)).is_err());
    }

    #[test]
    fn both_go_to_the_same_places_and_one_reads_less() {
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        let len = bytes.len() as u64;
        let counting = || Counting(io::Cursor::new(bytes.clone()), 0);
        let mut stream = Stream::new(counting());
        check(&mut stream, len);
        assert_eq!(stream.inner.1, bytes.len());
        let mut file = Seekable::new(counting(), len, 16);
        check(&mut file, len);
        assert!(file.inner.get_ref().1 < 200);
    }

    #[test]
    fn a_file_that_becomes_shorter_does_not_end_well() {
        let mut file = Seekable::new(io::Cursor::new(vec![0; 100]), 200, 16);
        file.seek(SeekFrom::Current(150)).unwrap();
        let error = file.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut whole = Seekable::new(io::Cursor::new(vec![0; 100]), 100, 16);
        whole.seek(SeekFrom::Current(100)).unwrap();
        assert_eq!(whole.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn no_place_beyond_the_end() {
        for ahead in [101, i64::MAX] {
            let file = io::Cursor::new(vec![0; 100]);
            let mut file = Seekable::new(file, 100, 16);
            assert!(file.seek(SeekFrom::Current(ahead)).is_err());
        }
    }
}
