//! The coded bits of a scan.

/// Bits that there are after a refill, unless the data ends.
pub(super) const FULL: u32 = 56;

/// The coded bits. Zeros that are stuffed behind each byte 0xff are taken out; it ends at the first
/// marker, or with the data. Methods that are not inlined take it by value, so that it stays in
/// registers.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    /// Bytes that are not in `head`, none of them 0xff.
    plain: &'a [u8],
    /// The bytes behind them: 0xff and what follows.
    behind: &'a [u8],
    /// The next bits, the first of them on top. Below the `count` that count there may be some of
    /// those that follow.
    pub(super) head: u64,
    /// At most 63.
    pub(super) count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Bits<'a> {
        let (plain, behind) = until_ff(data);
        Bits {
            plain,
            behind,
            head: 0,
            count: 0,
        }
    }

    /// Brings `count` to at least [`FULL`], unless the data ends.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if let Some(&bytes) = self.plain.first_chunk() {
            self.head |= u64::from_be_bytes(bytes) >> self.count;
            self.plain = &self.plain[((63 - self.count) >> 3 & 7) as usize..];
            self.count |= FULL;
        } else {
            *self = self.refilled_bytewise();
        }
    }

    #[inline(never)]
    fn refilled_bytewise(mut self) -> Bits<'a> {
        while self.count < FULL {
            let byte = match (self.plain, self.behind) {
                ([byte, plain @ ..], _) => {
                    self.plain = plain;
                    *byte
                }
                ([], [0xff, 0, behind @ ..]) => {
                    (self.plain, self.behind) = until_ff(behind);
                    0xff
                }
                _ => break,
            };
            self.head |= u64::from(byte) << (FULL - self.count);
            self.count += 8;
        }
        self
    }

    /// Whether the data ends with a marker, of two bytes.
    fn ends_well(&self) -> bool {
        self.behind.len() >= 2
    }

    /// Takes `len` bits; None if there are not as many, or if the data ends without a marker.
    #[inline(always)]
    pub(super) fn take<const CHECKED: bool>(&mut self, len: u32) -> Option<()> {
        if CHECKED && (len > self.count || !self.ends_well()) {
            return None;
        }
        self.head <<= len & 63;
        self.count -= len;
        Some(())
    }

    /// Passes this marker, which has to be next but for the padding of the last byte.
    pub(super) fn pass_marker(&mut self, marker: u8) -> Option<()> {
        self.refill();
        match self.behind {
            [0xff, next, rest @ ..]
                if *next == marker && self.count < 8 && self.plain.is_empty() =>
            {
                *self = Bits::new(rest);
                Some(())
            }
            _ => None,
        }
    }
}

/// The bytes before the first 0xff, and those from there on.
fn until_ff(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at(memchr::memchr(0xff, data).unwrap_or(data.len()))
}

#[cfg(test)]
mod tests {
    use super::{Bits, FULL};

    /// Coded bytes with a 0xff here and there, and what they are without stuffed zeros.
    fn stuffed(len: usize, every: usize) -> (Vec<u8>, Vec<u8>) {
        let plain: Vec<u8> = (0..len)
            .map(|at| match at % every {
                0 => 0xff,
                _ => (at * 7 % 255) as u8,
            })
            .collect();
        let coded = plain.iter().flat_map(|&byte| match byte {
            0xff => vec![0xff, 0],
            byte => vec![byte],
        });
        (coded.collect(), plain)
    }

    /// Bits come as they are coded, across refills of every kind, up to the marker.
    #[test]
    fn bits_are_those_of_the_bytes() {
        for len in [0, 5, 8, 1000, 12_293] {
            let (coded, bytes) = stuffed(len, 5);
            let source = [&coded[..], &[0xff, 0xd3, 0x55]].concat();
            let mut bits = Bits::new(&source);
            let mut at = 0;
            for step in (1..=31).cycle() {
                bits.refill();
                let left = 8 * len - at;
                assert!(bits.count as usize >= left.min(FULL as usize));
                let step = step.min(left) as u32;
                let mut expected = 0u64;
                for bit in at..at + step as usize {
                    expected = expected << 1 | u64::from(bytes[bit / 8] >> (7 - bit % 8) & 1);
                }
                if step == 0 {
                    break;
                }
                assert_eq!(bits.head >> (64 - step), expected, "at {at} of {len} bytes");
                bits.take::<true>(step).expect("as many bits");
                at += step as usize;
            }
            assert!(bits.take::<true>(1).is_none());
            assert!(bits.pass_marker(0xd4).is_none());
            bits.pass_marker(0xd3).expect("the marker");
            bits.refill();
            assert_eq!((bits.head, bits.count), (0x55 << 56, 8));
        }
    }
}
