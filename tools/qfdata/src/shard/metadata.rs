//! `NAME.tar.parquet`: a row for each row of the input that came while a shard was written, those that
//! became no sample included.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Field;
use parquet::schema::parser::parse_message_type;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::hex::hex;

use super::work::Facts;

/// What the name of a shard ends in for its metadata.
pub(super) const METADATA_ENDING: &str = ".parquet";

/// Rows that are gathered for a row group.
const GROUP_ROWS: usize = 16_384;

const SCHEMA: &str = "message metadata {
    OPTIONAL BYTE_ARRAY key (UTF8);
    REQUIRED BYTE_ARRAY status (UTF8);
    OPTIONAL BYTE_ARRAY cause (UTF8);
    OPTIONAL BYTE_ARRAY error (UTF8);
    REQUIRED BYTE_ARRAY source (UTF8);
    OPTIONAL BYTE_ARRAY url (UTF8);
    OPTIONAL INT32 width;
    OPTIONAL INT32 height;
    OPTIONAL INT32 original_width;
    OPTIONAL INT32 original_height;
    OPTIONAL INT64 bytes;
    OPTIONAL BYTE_ARRAY sha256 (UTF8);
    OPTIONAL BYTE_ARRAY phash (UTF8);
    OPTIONAL BYTE_ARRAY twin (UTF8);
}";

/// The `status` of rows that are in the shard; of others `skipped`.
const SUCCESS: &str = "success";

/// What is written of a row.
#[derive(Clone, Debug, Default)]
pub(super) struct MetadataRow {
    pub(super) key: Option<String>,
    /// Cause and message of a row that is not in the shard.
    pub(super) skip: Option<(&'static str, String)>,
    /// The file, or the file and line.
    pub(super) source: String,
    pub(super) url: Option<String>,
    pub(super) facts: Facts,
    /// The key of the sample that has this image already.
    pub(super) twin: Option<String>,
}

/// Writes the metadata of one shard.
pub(super) struct MetadataWriter {
    target: PathBuf,
    writer: SerializedFileWriter<AtomicFile>,
    rows: Vec<MetadataRow>,
}

impl MetadataWriter {
    pub(super) fn create(target: PathBuf) -> anyhow::Result<MetadataWriter> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            // Equal rows give equal bytes, whatever built the program.
            .set_created_by(concat!("qfdata ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let file = AtomicFile::create(&target)?;
        Ok(MetadataWriter {
            writer: SerializedFileWriter::new(file, schema, Arc::new(properties))
                .with_context(|| format!("cannot write {}", target.display()))?,
            target,
            rows: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, row: MetadataRow) -> anyhow::Result<()> {
        self.rows.push(row);
        match self.rows.len() < GROUP_ROWS {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let target = &self.target;
        write_group(&mut self.writer, &rows)
            .with_context(|| format!("cannot write {}", target.display()))
    }

    /// Writes what is left, and gives the file its name.
    pub(super) fn finish(mut self) -> anyhow::Result<PathBuf> {
        if !self.rows.is_empty() {
            self.flush()?;
        }
        let file = self
            .writer
            .into_inner()
            .with_context(|| format!("cannot write {}", self.target.display()))?;
        file.commit()?;
        Ok(self.target)
    }
}

/// A row group; columns in the order of the schema.
fn write_group(
    writer: &mut SerializedFileWriter<AtomicFile>,
    rows: &[MetadataRow],
) -> anyhow::Result<()> {
    type Text = fn(&MetadataRow) -> Option<String>;
    type Side = fn(&MetadataRow) -> Option<u32>;
    enum Column {
        Required(Text),
        Text(Text),
        Side(Side),
        Bytes,
    }
    let columns = [
        Column::Text(|row| row.key.clone()),
        Column::Required(|row| {
            let is_in = row.skip.is_none();
            Some(if is_in { SUCCESS } else { "skipped" }.to_owned())
        }),
        Column::Text(|row| row.skip.as_ref().map(|(cause, _)| (*cause).to_owned())),
        Column::Text(|row| row.skip.as_ref().map(|(_, message)| message.clone())),
        Column::Required(|row| Some(row.source.clone())),
        Column::Text(|row| row.url.clone()),
        Column::Side(|row| row.facts.size.map(|size| size.0)),
        Column::Side(|row| row.facts.size.map(|size| size.1)),
        Column::Side(|row| row.facts.original.map(|size| size.0)),
        Column::Side(|row| row.facts.original.map(|size| size.1)),
        Column::Bytes,
        Column::Text(|row| row.facts.sha256.map(|digest| hex(&digest))),
        Column::Text(|row| row.facts.phash.map(|hash| format!("{hash:016x}"))),
        Column::Text(|row| row.twin.clone()),
    ];
    let mut group = writer.next_row_group()?;
    for column in columns {
        let Some(mut out) = group.next_column()? else {
            anyhow::bail!("the schema has too few columns; this is a bug");
        };
        match column {
            Column::Required(text) => {
                let values = rows.iter().filter_map(text);
                let values: Vec<_> = values
                    .map(|text| ByteArray::from(text.into_bytes()))
                    .collect();
                out.typed::<ByteArrayType>()
                    .write_batch(&values, None, None)?;
            }
            Column::Text(text) => {
                let (values, levels) = levels(rows.iter().map(text));
                let values: Vec<_> = values
                    .into_iter()
                    .map(|text| ByteArray::from(text.into_bytes()))
                    .collect();
                out.typed::<ByteArrayType>()
                    .write_batch(&values, Some(&levels), None)?;
            }
            Column::Side(side) => {
                let (values, levels) = levels(rows.iter().map(side));
                let side = |side| i32::try_from(side).unwrap_or(i32::MAX);
                let values: Vec<_> = values.into_iter().map(side).collect();
                out.typed::<Int32Type>()
                    .write_batch(&values, Some(&levels), None)?;
            }
            Column::Bytes => {
                let (values, levels) = levels(rows.iter().map(|row| row.facts.bytes));
                let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
                let values: Vec<_> = values.into_iter().map(bytes).collect();
                out.typed::<Int64Type>()
                    .write_batch(&values, Some(&levels), None)?;
            }
        }
        out.close()?;
    }
    group.close()?;
    Ok(())
}

/// The values that are there, and for each row whether it has one.
fn levels<T>(values: impl Iterator<Item = Option<T>>) -> (Vec<T>, Vec<i16>) {
    let mut there = Vec::new();
    let mut levels = Vec::new();
    for value in values {
        levels.push(i16::from(value.is_some()));
        there.extend(value);
    }
    (there, levels)
}

/// Reads the samples of a shard back from its metadata: keys, and what doubles are told by.
///
/// # Errors
/// That the file is missing or damaged.
pub(super) fn read_samples(path: &Path, visit: &mut dyn FnMut(&str, &Facts)) -> anyhow::Result<()> {
    let what = || format!("cannot read {}", path.display());
    let reader = SerializedFileReader::new(File::open(path).with_context(what)?);
    let reader = reader.with_context(what)?;
    for record in reader.get_row_iter(None).with_context(what)? {
        let (mut key, mut is_in, mut facts) = (None, false, Facts::default());
        for (name, field) in record.with_context(what)?.into_columns() {
            match (name.as_str(), field) {
                ("key", Field::Str(text)) => key = Some(text),
                ("status", Field::Str(status)) => is_in = status == SUCCESS,
                ("sha256", Field::Str(text)) => facts.sha256 = unhex(&text),
                ("phash", Field::Str(text)) => facts.phash = u64::from_str_radix(&text, 16).ok(),
                _ => {}
            }
        }
        if let (true, Some(key)) = (is_in, key) {
            visit(&key, &facts);
        }
    }
    Ok(())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}
