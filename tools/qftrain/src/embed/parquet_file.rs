//! Tables as a Parquet file: strings, and lists of 32-bit numbers.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use qf_pipeline::atomic_file::AtomicFile;

use super::rows::{Column, Table};

/// Numbers of a row group, at least: what is held in memory before it is written.
const GROUP_NUMBERS: usize = 4 << 20;

/// A file under construction.
pub(super) struct ParquetFile {
    writer: SerializedFileWriter<AtomicFile>,
    columns: Vec<Column>,
    pending: Table,
}

impl ParquetFile {
    pub(super) fn create(
        path: &Path,
        strings: &[&'static str],
        columns: &[Column],
        origin: &str,
    ) -> anyhow::Result<ParquetFile> {
        let mut schema = String::from("message embeddings {\n");
        for name in strings {
            schema += &format!("  required binary {name} (STRING);\n");
        }
        for Column { name, .. } in columns {
            schema += &format!(
                "  required group {name} (LIST) {{ repeated group list {{ required float element; }} }}\n"
            );
        }
        let schema = Arc::new(parse_message_type(&(schema + "}"))?);
        let mut facts = vec![KeyValue::new("model".to_string(), origin.to_string())];
        for Column { name, shape } in columns {
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            facts.push(KeyValue::new(format!("{name}.shape"), shape.join(",")));
        }
        let properties = WriterProperties::builder()
            .set_created_by(concat!("qftrain ", env!("CARGO_PKG_VERSION")).to_string())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(facts))
            .build();
        let file = AtomicFile::create(path)?;
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties));
        Ok(ParquetFile {
            writer: writer.with_context(|| format!("cannot write {}", path.display()))?,
            columns: columns.to_vec(),
            pending: Table {
                strings: vec![Vec::new(); strings.len()],
                vectors: vec![Vec::new(); columns.len()],
            },
        })
    }

    pub(super) fn append(&mut self, table: &Table) -> anyhow::Result<()> {
        for (pending, more) in self.pending.strings.iter_mut().zip(&table.strings) {
            pending.extend_from_slice(more);
        }
        for (pending, more) in self.pending.vectors.iter_mut().zip(&table.vectors) {
            pending.extend_from_slice(more);
        }
        let numbers: usize = self.pending.vectors.iter().map(Vec::len).sum();
        match numbers < GROUP_NUMBERS {
            true => Ok(()),
            false => self.write_group(),
        }
    }

    fn write_group(&mut self) -> anyhow::Result<()> {
        let rows = self.pending.strings.first().map_or(0, Vec::len);
        if rows == 0 {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        for strings in &mut self.pending.strings {
            let values: Vec<ByteArray> = strings
                .drain(..)
                .map(|text| text.into_bytes().into())
                .collect();
            let mut column = group.next_column()?.context("a column of strings")?;
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, None, None)?;
            column.close()?;
        }
        for (vectors, Column { name, .. }) in self.pending.vectors.iter_mut().zip(&self.columns) {
            let width = vectors.len() / rows;
            // Every list has its numbers: each is defined, and all but the first of a row go on with it.
            let defined = vec![1; vectors.len()];
            let repeated: Vec<i16> = (0..vectors.len())
                .map(|at| i16::from(at % width != 0))
                .collect();
            let mut column = group.next_column()?.context(*name)?;
            column
                .typed::<FloatType>()
                .write_batch(vectors, Some(&defined), Some(&repeated))?;
            column.close()?;
            vectors.clear();
        }
        group.close()?;
        Ok(())
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.write_group()?;
        Ok(self.writer.into_inner()?.commit()?)
    }
}
