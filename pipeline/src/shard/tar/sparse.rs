//! Sparse members: files stored without their holes. GNU tar writes a map of what is stored in four
//! ways: in the header itself (`--format=gnu`), and in pax records or in front of the data
//! (`GNU.sparse` 0.0, 0.1 and 1.0).

use super::header::{decimal, number, Block, BLOCK_BYTES};

/// Most pieces of a member. Files of images have a handful.
const MAX_PIECES: usize = 1 << 16;

/// Longest map in front of the data, in bytes: two numbers of 20 digits a piece.
const MAX_MAP_BYTES: usize = MAX_PIECES * 2 * 21;

/// A stored piece: where it belongs in the file, and its length, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What is stored of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// In rising order, without overlap, within the file.
    pub(super) pieces: Vec<Piece>,
    /// Length of the file, holes included.
    pub(super) file_bytes: u64,
}

impl SparseMap {
    /// # Errors
    /// What is wrong with the pieces of a file of this length, of which `stored_bytes` are there.
    fn new(pieces: Vec<Piece>, file_bytes: u64, stored_bytes: u64) -> Result<Self, &'static str> {
        let (mut end, mut stored) = (0, 0u64);
        let mut ends_in_block = false;
        for piece in &pieces {
            if piece.offset < end {
                return Err("has pieces that overlap");
            }
            // Each begins with a block; only the last may end within one. Empty ones are stored nowhere.
            if ends_in_block && piece.bytes > 0 {
                return Err("has pieces that are not whole blocks");
            }
            ends_in_block |= piece.bytes % BLOCK_BYTES as u64 != 0;
            end = piece.offset.saturating_add(piece.bytes);
            stored = stored.saturating_add(piece.bytes);
        }
        if end > file_bytes {
            return Err("has pieces beyond its end");
        }
        if stored > stored_bytes {
            return Err("has pieces longer than what is stored of it");
        }
        Ok(SparseMap { pieces, file_bytes })
    }
}

/// The map of GNU's old format, from a header and the blocks that continue it.
#[derive(Debug)]
pub(super) struct HeaderMap {
    pieces: Vec<Piece>,
    file_bytes: u64,
    /// Whether another block of the map follows.
    pub(super) is_continued: bool,
}

impl HeaderMap {
    pub(super) fn of_header(block: &Block) -> Result<Self, &'static str> {
        let mut map = HeaderMap {
            pieces: Vec::new(),
            file_bytes: number(&block[483..495]).ok_or("has a length that is not a number")?,
            is_continued: block[482] != 0,
        };
        map.add(&block[386..482])?;
        Ok(map)
    }

    pub(super) fn take_block(&mut self, block: &Block) -> Result<(), &'static str> {
        self.is_continued = block[504] != 0;
        self.add(&block[..504])
    }

    fn add(&mut self, entries: &[u8]) -> Result<(), &'static str> {
        for entry in entries.chunks_exact(24) {
            if entry[0] == 0 {
                break;
            }
            let numbers = number(&entry[..12]).zip(number(&entry[12..]));
            let (offset, bytes) = numbers.ok_or("has a map that is not of numbers")?;
            push(&mut self.pieces, Piece { offset, bytes })?;
        }
        Ok(())
    }

    pub(super) fn finish(self, stored_bytes: u64) -> Result<SparseMap, &'static str> {
        SparseMap::new(self.pieces, self.file_bytes, stored_bytes)
    }
}

/// What pax records say of a sparse member.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxMap {
    /// Its path: the member's own is made up.
    pub(super) path: Option<Vec<u8>>,
    is_1_0: bool,
    file_bytes: Option<u64>,
    pieces: Vec<Piece>,
    /// Of a piece whose length has not come yet.
    offset: Option<u64>,
}

impl PaxMap {
    /// Takes a record, whose key is given without `GNU.sparse.`.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const NOT_A_NUMBER: &str = "describes a sparse file with what is not a number";
        let number = || decimal(value).ok_or(NOT_A_NUMBER);
        match key {
            b"name" => self.path = Some(value.to_vec()),
            b"major" => self.is_1_0 = number()? == 1,
            b"size" | b"realsize" => self.file_bytes = Some(number()?),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("has a length without an offset")?;
                let bytes = number()?;
                push(&mut self.pieces, Piece { offset, bytes })?;
            }
            b"map" => {
                let mut numbers = value.split(|&byte| byte == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    let bytes = numbers.next().ok_or("has a map of an odd length")?;
                    let (offset, bytes) = offset.zip(bytes).ok_or(NOT_A_NUMBER)?;
                    push(&mut self.pieces, Piece { offset, bytes })?;
                }
            }
            _ => {} // minor, numblocks
        }
        Ok(())
    }

    /// Whether the map stands in front of the data.
    pub(super) fn is_in_data(&self) -> bool {
        self.is_1_0
    }

    /// The map, where the records hold all of it.
    pub(super) fn finish(self, stored_bytes: u64) -> Result<SparseMap, &'static str> {
        let file_bytes = self.file_bytes.ok_or("has no length")?;
        SparseMap::new(self.pieces, file_bytes, stored_bytes)
    }

    /// The map in front of the data, of which `next_block` gives block after block, and its length.
    ///
    /// # Errors
    /// What is wrong with it, or the error of `next_block`.
    pub(super) fn read_from_data<E: From<&'static str>>(
        self,
        stored_bytes: u64,
        next_block: &mut dyn FnMut() -> Result<Block, E>,
    ) -> Result<(SparseMap, u64), E> {
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut parsed = 0;
        let mut expected = 1;
        while numbers.len() < expected {
            if text.len() >= MAX_MAP_BYTES || text.len() as u64 >= stored_bytes {
                return Err("has a map without an end".into());
            }
            text.extend(next_block()?);
            while let Some(line) = text[parsed..].iter().position(|&byte| byte == b'\n') {
                let value = decimal(&text[parsed..parsed + line]);
                let value = value.ok_or("has a map that is not of numbers")?;
                parsed += line + 1;
                if numbers.is_empty() {
                    let pieces = usize::try_from(value).unwrap_or(usize::MAX);
                    if pieces > MAX_PIECES {
                        return Err(TOO_MANY.into());
                    }
                    expected = 1 + 2 * pieces;
                }
                numbers.push(value);
                if numbers.len() == expected {
                    break;
                }
            }
        }
        let pieces = numbers[1..].chunks_exact(2).map(|pair| Piece {
            offset: pair[0],
            bytes: pair[1],
        });
        let map_bytes = text.len() as u64;
        let file_bytes = self.file_bytes.ok_or("has no length")?;
        let left = stored_bytes.saturating_sub(map_bytes);
        let map = SparseMap::new(pieces.collect(), file_bytes, left)?;
        Ok((map, map_bytes))
    }
}

const TOO_MANY: &str = "has more than 65536 pieces";

fn push(pieces: &mut Vec<Piece>, piece: Piece) -> Result<(), &'static str> {
    if pieces.len() == MAX_PIECES {
        return Err(TOO_MANY);
    }
    pieces.push(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, bytes: u64) -> Piece {
        Piece { offset, bytes }
    }

    #[test]
    fn maps_that_contradict_themselves() {
        for (pieces, file, stored, expected) in [
            (vec![piece(0, 512), piece(100, 5)], 9999, 9999, "overlap"),
            (
                vec![piece(0, 500), piece(600, 5)],
                9999,
                9999,
                "whole blocks",
            ),
            (vec![piece(0, 512)], 511, 512, "beyond its end"),
            (vec![piece(u64::MAX, 512)], 9999, 512, "beyond its end"),
            (
                vec![piece(0, 1024)],
                9999,
                1023,
                "longer than what is stored",
            ),
        ] {
            let error = SparseMap::new(pieces, file, stored).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let ends = vec![piece(0, 512), piece(8192, 7), piece(9000, 0)];
        assert!(SparseMap::new(ends, 9000, 519).is_ok());
        let ends = vec![piece(0, 500), piece(1024, 0)];
        assert!(SparseMap::new(ends, 1024, 500).is_ok());
    }

    #[test]
    fn maps_in_front_of_data() {
        let read = |text: &str, stored: u64| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let mut blocks = bytes
                .chunks_exact(512)
                .map(|block| block.try_into().unwrap());
            let mut map = PaxMap::default();
            map.take(b"major", b"1").unwrap();
            map.take(b"realsize", b"2048").unwrap();
            assert!(map.is_in_data());
            map.read_from_data::<&'static str>(stored, &mut || blocks.next().ok_or("is over"))
        };
        let (map, bytes) = read("2\n0\n512\n2048\n0\n", 1024).unwrap();
        assert_eq!(
            (map.pieces, bytes),
            (vec![piece(0, 512), piece(2048, 0)], 512)
        );
        // Over two blocks.
        let many = format!("200\n{}", "0\n0\n".repeat(200));
        let (map, bytes) = read(&many, 2048).unwrap();
        assert_eq!((map.pieces.len(), bytes), (200, 1024));
        for (text, expected) in [
            ("2\n0\n512\n", "is over"),
            ("x\n", "not of numbers"),
            ("99999999\n", "more than"),
            ("3\n0\n0\n0\n0\n0\n9999\n", "beyond"),
        ] {
            let error = read(text, 1024).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert!(read(&"1".repeat(2000), 1024)
            .unwrap_err()
            .contains("an end"));
    }
}
