//! The files that rows go into.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use qftrain::args::EmbedFormat;

use super::npy::NpyFolder;
use super::parquet_file::ParquetFile;
use super::rows::{Column, Table};

/// A file, or files, that tables are appended to.
pub(super) struct Sink {
    file: File,
    columns: Vec<Column>,
    path: PathBuf,
    rows: u64,
}

enum File {
    Parquet(Box<ParquetFile>),
    Npy(NpyFolder),
}

/// What was written.
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) rows: u64,
    /// Names and shapes.
    pub(super) columns: String,
}

impl Sink {
    /// Begins to write `what` (`images` or `texts`): nothing is at `path` before [`Sink::finish`].
    pub(super) fn create(
        format: EmbedFormat,
        path: &Path,
        what: &'static str,
        strings: &[&'static str],
        columns: Vec<Column>,
        origin: &str,
    ) -> anyhow::Result<Sink> {
        let file = match format {
            EmbedFormat::Parquet => {
                let file = ParquetFile::create(path, strings, &columns, origin)?;
                File::Parquet(Box::new(file))
            }
            EmbedFormat::Npy => File::Npy(NpyFolder::create(path, what, strings, &columns)?),
        };
        Ok(Sink {
            file,
            columns,
            path: path.to_owned(),
            rows: 0,
        })
    }

    pub(super) fn append(&mut self, table: &Table) -> anyhow::Result<()> {
        let rows = table.strings.first().map_or(0, Vec::len);
        let vectors = self.columns.iter().zip(&table.vectors);
        for (column, values) in vectors {
            ensure!(
                values.len() == rows * column.width(),
                "{}: {} numbers are not {rows} rows of {}",
                column.name,
                values.len(),
                column.width()
            );
        }
        self.rows += rows as u64;
        match &mut self.file {
            File::Parquet(file) => file.append(table),
            File::Npy(folder) => folder.append(table),
        }
    }

    pub(super) fn finish(self) -> anyhow::Result<Written> {
        match self.file {
            File::Parquet(file) => file.finish()?,
            File::Npy(folder) => folder.finish()?,
        }
        let columns = self.columns.iter();
        let columns = columns.map(|column| format!("{} {:?}", column.name, column.shape));
        Ok(Written {
            path: self.path,
            rows: self.rows,
            columns: columns.collect::<Vec<_>>().join(" and "),
        })
    }
}
