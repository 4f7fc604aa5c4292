//! One header block: its checksum, its numbers, and what kind of member it announces.
//!
//! Numbers are read as GNU tar and Python's tarfile read them: octal between blanks, ended by a blank or
//! NUL, a blank field as 0, or base-256 after a byte with its top bit set. A checksum may be the sum of
//! unsigned or, as old archivers wrote it, of signed bytes.

/// Length of a block in bytes: headers are one, data are whole ones.
pub(super) const BLOCK_BYTES: usize = 512;

/// A block of an archive.
pub(crate) type Block = [u8; BLOCK_BYTES];

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A file in GNU's old sparse format: a map in the header, and the pieces between its holes.
    Sparse,
    /// The next member's name (GNU).
    LongName,
    /// The file that the next member links to (GNU).
    LongLink,
    /// Records on the next member (pax).
    Pax,
    /// Records on all members that follow (pax).
    GlobalPax,
    /// The rest of a file whose beginning lies in another volume (GNU).
    Continued,
    /// A link, folder or device, which has no data, whatever its size says: it may be that of the file
    /// which a link points to.
    NoData,
    /// Anything else: volume labels, vendors' own.
    Other,
}

/// A header whose checksum fits.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Length of the data that follow, before padding, unless a pax record says otherwise.
    pub(super) size_bytes: u64,
    /// Path by this header alone.
    pub(super) path: Vec<u8>,
}

/// Whether all bytes are zero, as in the blocks that end an archive.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Whether the checksum of a header fits its bytes.
pub(crate) fn has_checksum(block: &Block) -> bool {
    let Some(declared) = number(&block[148..156]) else {
        return false;
    };
    let counted = || block[..148].iter().chain(&block[156..]);
    // The field itself counts as eight blanks.
    let unsigned: u64 = 256 + counted().map(|&byte| u64::from(byte)).sum::<u64>();
    let signed: i64 = 256 + counted().map(|&byte| i64::from(byte as i8)).sum::<i64>();
    declared == unsigned || i64::try_from(declared) == Ok(signed)
}

impl Header {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(block: &Block) -> Result<Header, String> {
        if !has_checksum(block) {
            return Err("the checksum of a header does not match".into());
        }
        let kind = match block[156] {
            0 | b'0' | b'7' => Kind::File,
            b'S' => Kind::Sparse,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'x' | b'X' => Kind::Pax, // X: Solaris, before POSIX had x
            b'g' => Kind::GlobalPax,
            b'M' => Kind::Continued,
            b'1'..=b'6' => Kind::NoData,
            _ => Kind::Other,
        };
        let path = path(block);
        let size_bytes = match kind {
            Kind::NoData => 0,
            _ => number(&block[124..136]).ok_or_else(|| {
                let field = block[124..136].escape_ascii();
                format!("the size in a header is not a number (`{field}`)")
            })?,
        };
        Ok(Header {
            kind,
            size_bytes,
            path,
        })
    }
}

/// The path of a header; what POSIX puts in front of it is looked for in its own headers alone.
fn path(block: &Block) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = match &block[257..263] == b"ustar\0" {
        true => text(&block[345..500]),
        false => &[],
    };
    match prefix.is_empty() {
        true => name.to_vec(),
        false => [prefix, b"/", name].concat(),
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or base-256. `None` for what is neither, is negative, or exceeds 64 bits.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        if first == 0xff {
            return None; // negative
        }
        let mut value = u64::from(first & 0x7f);
        for &byte in rest {
            value = value.checked_mul(256)? | u64::from(byte);
        }
        return Some(value);
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A number in decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_archivers_write_them() {
        for (field, expected) in [
            (&b"00000001750\0"[..], Some(1000)),
            (b"   1750 \0   ", Some(1000)),
            (b"1750        ", Some(1000)),
            (b"1750\0garbage", Some(1000)),
            (b"            ", Some(0)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(1 << 33)),
            (
                b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
                Some(u64::MAX),
            ),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00000001890\0", None),
            (b"-0000000001\0", None),
            (b"17 50\0", None),
            (b"", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn both_checksums() {
        let mut header = tar::Header::new_ustar();
        header.set_path("caf\u{e9}\u{e9}\u{e9}.jpg").unwrap();
        header.set_size(7);
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert!(has_checksum(&block));
        let unsigned = number(&block[148..156]).unwrap();
        // Six bytes above 127, each 256 less where bytes have signs.
        let signed = format!("{:06o}\0 ", unsigned - 6 * 256);
        block[148..156].copy_from_slice(signed.as_bytes());
        assert!(has_checksum(&block));
        assert_eq!(Header::parse(&block).unwrap().size_bytes, 7);
        block[0] ^= 1;
        assert!(!has_checksum(&block) && Header::parse(&block).is_err());
    }

    #[test]
    fn paths_and_sizes() {
        let folder = "f".repeat(120);
        let long = format!("{folder}/a.jpg");
        for path in ["a.jpg", &long] {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_size(7);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            let parsed = Header::parse(header.as_bytes()).unwrap();
            assert_eq!((&parsed.path[..], parsed.size_bytes), (path.as_bytes(), 7));
            header.set_entry_type(tar::EntryType::Link);
            header.set_cksum();
            let parsed = Header::parse(header.as_bytes()).unwrap();
            assert_eq!((parsed.kind, parsed.size_bytes), (Kind::NoData, 0));
        }
    }
}
