//! NumPy's array files, version 1.0, in a folder; strings as JSON lines beside them.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{bail, Context};
use qf_pipeline::atomic_file::AtomicFile;
use serde_json::{Map, Value};

use super::rows::{Column, Table};

/// Of the header, so that a count of any size fits in when all rows are there.
const HEADER: usize = 128;

/// Arrays under construction.
pub(super) struct NpyFolder {
    rows: u64,
    keys: AtomicFile,
    strings: Vec<&'static str>,
    arrays: Vec<Array>,
}

struct Array {
    file: AtomicFile,
    shape: Vec<usize>,
}

impl NpyFolder {
    /// `WHAT.jsonl` for the strings, and a file for each column.
    pub(super) fn create(
        folder: &Path,
        what: &str,
        strings: &[&'static str],
        columns: &[Column],
    ) -> anyhow::Result<NpyFolder> {
        let mut arrays = Vec::new();
        for column in columns {
            let mut file = AtomicFile::create(folder.join(format!("{}s.npy", column.name)))?;
            file.write_all(&[0; HEADER])?;
            let shape = column.shape.clone();
            arrays.push(Array { file, shape });
        }
        Ok(NpyFolder {
            rows: 0,
            keys: AtomicFile::create(folder.join(format!("{what}.jsonl")))?,
            strings: strings.to_vec(),
            arrays,
        })
    }

    pub(super) fn append(&mut self, table: &Table) -> anyhow::Result<()> {
        let rows = table.strings.first().map_or(0, Vec::len);
        for row in 0..rows {
            let named = self.strings.iter().zip(&table.strings);
            let fields = named.map(|(name, values)| (name.to_string(), values[row].clone().into()));
            let line = Value::Object(fields.collect::<Map<String, Value>>());
            let written = writeln!(self.keys, "{line}");
            written.with_context(|| cannot_write(&self.keys))?;
        }
        for (array, values) in self.arrays.iter_mut().zip(&table.vectors) {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            let written = array.file.write_all(&bytes);
            written.with_context(|| cannot_write(&array.file))?;
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Puts all files under their names, the strings last.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        for Array { mut file, shape } in self.arrays {
            let header = header(self.rows, &shape);
            let written = file
                .seek(SeekFrom::Start(0))
                .and_then(|_| file.write_all(&header));
            written.with_context(|| cannot_write(&file))?;
            file.commit()?;
        }
        Ok(self.keys.commit()?)
    }
}

fn cannot_write(file: &AtomicFile) -> String {
    format!("cannot write {}", file.target().display())
}

/// Magic number, version, length and a Python dictionary, filled up with spaces and a line end.
fn header(rows: u64, shape: &[usize]) -> Vec<u8> {
    let mut sizes = format!("{rows},");
    for size in shape {
        sizes += &format!(" {size},");
    }
    let sizes = sizes.trim_end_matches(',');
    let tuple = match shape.is_empty() {
        true => format!("({sizes},)"),
        false => format!("({sizes})"),
    };
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple}, }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER - 10) as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}

/// The shape of an array file of little-endian f32 in row-major order; `file` then stands at its numbers.
pub(super) fn read_header(file: &mut impl Read, path: &Path) -> anyhow::Result<Vec<usize>> {
    let read = || format!("cannot read {}", path.display());
    let mut start = [0; 10];
    file.read_exact(&mut start).with_context(read)?;
    if !start.starts_with(b"\x93NUMPY\x01") {
        bail!("{}: not a NumPy array of version 1", path.display());
    }
    let mut text = vec![0; u16::from_le_bytes([start[8], start[9]]).into()];
    file.read_exact(&mut text).with_context(read)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if !text.contains("'descr': '<f4'") || !text.contains("'fortran_order': False") {
        bail!(
            "{}: not an array of 32-bit numbers in row-major order: {}",
            path.display(),
            text.trim_end()
        );
    }
    let shape = text
        .split_once("'shape': (")
        .and_then(|(_, rest)| rest.split_once(')'));
    let sizes = shape.map(|(sizes, _)| {
        let sizes = sizes
            .split(',')
            .map(str::trim)
            .filter(|size| !size.is_empty());
        sizes.map(str::parse).collect::<Result<Vec<usize>, _>>()
    });
    match sizes {
        Some(Ok(sizes)) => Ok(sizes),
        _ => bail!(
            "{}: no shape in its header: {}",
            path.display(),
            text.trim_end()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `numpy.lib.format`: a header is a multiple of 64 bytes and ends with a line end.
    #[test]
    fn headers_are_as_long_as_numpy_wants_them_and_read_back() {
        for shape in [vec![], vec![256], vec![32, 768]] {
            let header = header(12_345_678_901, &shape);
            assert_eq!((header.len() % 64, header.last()), (0, Some(&b'\n')));
            let mut expected = vec![12_345_678_901];
            expected.extend(&shape);
            let found = read_header(&mut &header[..], Path::new("x.npy")).unwrap();
            assert_eq!(found, expected);
        }
        let error = read_header(&mut &b"\x93NUMPY\x02\x00aaaaaaaaaa"[..], Path::new("x.npy"));
        assert!(error
            .unwrap_err()
            .to_string()
            .contains("x.npy: not a NumPy array"));
    }
}
