//! Arrays as NumPy's `.npy` files.

use std::io::{self, Write};

/// Writes an array of u8 in C order: format version 1.0, which every NumPy reads.
///
/// The format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
///
/// # Errors
/// Those of the writer.
pub(super) fn write_u8(writer: &mut dyn Write, shape: [usize; 4], data: &[u8]) -> io::Result<()> {
    let [b, c, h, w] = shape;
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({b}, {c}, {h}, {w}), }}");
    // Magic, version, length and header together fill multiples of 64 bytes; a newline ends them.
    const BEFORE_HEADER: usize = 10;
    let len = (BEFORE_HEADER + header.len() + 1).next_multiple_of(64) - BEFORE_HEADER;
    header.push_str(&" ".repeat(len - header.len() - 1));
    header.push('\n');
    // Four numbers and the words around them: far below 64 KiB.
    let len = u16::try_from(header.len()).map_err(io::Error::other)?;
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    writer.write_all(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of `numpy.save` for `numpy.arange(12, dtype='u1').reshape(1, 3, 2, 2)`.
    #[test]
    fn as_numpy_writes_it() {
        let mut file = Vec::new();
        let data: Vec<u8> = (0..12).collect();
        write_u8(&mut file, [1, 3, 2, 2], &data).unwrap();
        let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 2, 2), }";
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(format!("{header:<117}\n").bytes());
        expected.extend(&data);
        assert_eq!(file.len(), 128 + 12);
        assert_eq!(file, expected);
    }
}
