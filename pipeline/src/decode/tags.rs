//! Directories of tags: what TIFF is made of, and EXIF with it.

/// The first directory of a TIFF structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    /// As many whole entries as there are.
    entries: &'a [u8],
    big_endian: bool,
    /// BigTIFF, whose counts and offsets have 8 bytes.
    big: bool,
}

/// The values of a tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    kind: u16,
    count: u64,
    /// `count` values.
    data: &'a [u8],
    big_endian: bool,
}

impl<'a> Directory<'a> {
    /// Finds the first directory; `None` if there is none. One that is cut off has the entries that
    /// are there.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Directory<'a>> {
        // Some writers swap the bytes of the version; PIL reads their files, too.
        let (big_endian, big) = match bytes.get(..4)? {
            b"II*\0" | b"II\0*" => (false, false),
            b"MM\0*" | b"MM*\0" => (true, false),
            b"II+\0" => (false, true),
            b"MM\0+" => (true, true),
            _ => return None,
        };
        let number = |at: usize, len: usize| number(bytes.get(at..)?.get(..len)?, big_endian);
        let (at, count_len, entry_len) = match big {
            false => (number(4, 4)?, 2, 12),
            true => (number(8, 8)?, 8, 20),
        };
        let at = usize::try_from(at).ok()?;
        let count = usize::try_from(number(at, count_len)?).ok()?;
        let entries = &bytes[at + count_len..];
        let len = count.saturating_mul(entry_len).min(entries.len());
        Some(Directory {
            bytes,
            entries: &entries[..len - len % entry_len],
            big_endian,
            big,
        })
    }

    /// Whether numbers have their high byte first.
    pub(super) fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// The values of a tag; `None` if it is not there, has none, or they lie beyond the file. Of two
    /// entries the last counts.
    pub(super) fn field(&self, tag: u16) -> Option<Field<'a>> {
        let entry_len = if self.big { 20 } else { 12 };
        let entries = self.entries.chunks_exact(entry_len).rev();
        entries.filter_map(|entry| self.entry(entry, tag)).next()
    }

    fn entry(&self, entry: &'a [u8], tag: u16) -> Option<Field<'a>> {
        let big_endian = self.big_endian;
        if number(&entry[..2], big_endian)? != u64::from(tag) {
            return None;
        }
        let kind = number(&entry[2..4], big_endian)? as u16;
        let (count, value) = match self.big {
            false => (number(&entry[4..8], big_endian)?, &entry[8..12]),
            true => (number(&entry[4..12], big_endian)?, &entry[12..20]),
        };
        let len = usize::try_from(count.checked_mul(size_of_kind(kind)?)?).ok()?;
        let data = match value.get(..len) {
            Some(within) => within,
            None => {
                let at = usize::try_from(number(value, big_endian)?).ok()?;
                self.bytes.get(at..)?.get(..len)?
            }
        };
        (count > 0).then_some(Field {
            kind,
            count,
            data,
            big_endian,
        })
    }
}

impl<'a> Field<'a> {
    /// How many values there are, at least 1.
    pub(super) fn len(&self) -> usize {
        self.count as usize // `data` holds them.
    }

    /// The bytes of all values.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// A value as a number; `None` if there are fewer, for text and raw bytes, and for what is no
    /// whole number, or below zero.
    pub(super) fn number(&self, index: usize) -> Option<u64> {
        let len = size_of_kind(self.kind)? as usize;
        let data = self.data.get(index.checked_mul(len)?..)?.get(..len)?;
        let bits = number(data, self.big_endian)?;
        let whole = |value: f64| {
            (value >= 0.0 && value.fract() == 0.0 && value < 9e15).then_some(value as u64)
        };
        match self.kind {
            1 | 3 | 4 | 13 | 16 | 18 => Some(bits),
            6 => u64::try_from(bits as u8 as i8).ok(),
            8 => u64::try_from(bits as u16 as i16).ok(),
            9 => u64::try_from(bits as u32 as i32).ok(),
            17 => u64::try_from(bits as i64).ok(),
            5 | 10 => {
                let part = |data| number(data, self.big_endian);
                let (above, below) = (part(&data[..4])?, part(&data[4..])?);
                whole(match self.kind {
                    5 => above as f64 / below as f64,
                    _ => f64::from(above as u32 as i32) / f64::from(below as u32 as i32),
                })
            }
            11 => whole(f64::from(f32::from_bits(bits as u32))),
            12 => whole(f64::from_bits(bits)),
            _ => None,
        }
    }

    /// Whether values are raw bytes: of the kinds BYTE, ASCII and UNDEFINED.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.kind, 1 | 2 | 7)
    }
}

/// Bytes of a value; `None` for kinds that do not exist.
fn size_of_kind(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 | 17 | 18 => Some(8),
        _ => None,
    }
}

/// An unsigned number of 1 to 8 bytes.
fn number(bytes: &[u8], big_endian: bool) -> Option<u64> {
    let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    match big_endian {
        true => Some(bytes.iter().fold(0, fold)),
        false => Some(bytes.iter().rev().fold(0, fold)),
    }
}
