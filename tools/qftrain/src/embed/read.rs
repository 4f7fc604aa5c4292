//! Image embeddings from a file, row by row.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde::Deserialize;

use super::npy;

/// An image's shard (empty for a file), its key, and its embedding, `[Q · d]`.
pub(crate) struct ImageRow {
    pub(crate) shard: String,
    pub(crate) key: String,
    pub(crate) values: Vec<f32>,
}

/// A file of image embeddings, as `qftrain embed` writes it.
pub(crate) struct Embeddings {
    path: PathBuf,
    source: Source,
    /// Of an image: queries, and numbers of each.
    pub(crate) shape: [usize; 2],
    /// Images.
    pub(crate) rows: usize,
    /// Which model they are of; unknown of npy.
    pub(crate) model: Option<String>,
}

enum Source {
    Parquet(SerializedFileReader<File>),
    Npy { keys: PathBuf, array: PathBuf },
}

/// Most numbers of an image: no model has more.
const MAX_WIDTH: usize = 1 << 20;

impl Embeddings {
    /// Opens a Parquet file, or a folder with npy files.
    ///
    /// # Errors
    /// That it is neither, or holds no image embeddings; by name.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Embeddings> {
        match path.is_dir() {
            true => Self::open_npy(path),
            false => Self::open_parquet(path),
        }
    }

    fn open_npy(folder: &Path) -> anyhow::Result<Embeddings> {
        let (keys, array) = (
            folder.join("images.jsonl"),
            folder.join("image_embeddings.npy"),
        );
        let file = File::open(&array).with_context(|| {
            format!(
                "cannot open {}; `qftrain embed --out FOLDER` writes it",
                array.display()
            )
        })?;
        let [rows, queries, width] = npy::read_header(&mut BufReader::new(file), &array)?[..]
        else {
            bail!(
                "{}: not of shape [images, queries, numbers]",
                array.display()
            );
        };
        check_width(&array, [queries, width])?;
        Ok(Embeddings {
            path: folder.to_owned(),
            source: Source::Npy { keys, array },
            shape: [queries, width],
            rows,
            model: None,
        })
    }

    fn open_parquet(path: &Path) -> anyhow::Result<Embeddings> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let reader = SerializedFileReader::new(file)
            .with_context(|| format!("{}: not a Parquet file", path.display()))?;
        let metadata = reader.metadata().file_metadata();
        let facts = metadata.key_value_metadata().into_iter().flatten();
        let fact = |name: &str| {
            let mut facts = facts.clone();
            facts
                .find(|fact| fact.key == name)
                .and_then(|fact| fact.value.clone())
        };
        let shape = fact("image_embedding.shape").map(|shape| {
            let sizes = shape.split(',').map(str::parse);
            sizes.collect::<Result<Vec<usize>, _>>()
        });
        let Some(Ok(shape)) = shape else {
            bail!(
                "{}: holds no image embeddings; `qftrain embed --out NAME.parquet` writes some",
                path.display()
            );
        };
        let [queries, width] = shape[..] else {
            bail!(
                "{}: image_embedding is not of shape [queries, numbers]",
                path.display()
            );
        };
        check_width(path, [queries, width])?;
        Ok(Embeddings {
            path: path.to_owned(),
            shape: [queries, width],
            rows: usize::try_from(metadata.num_rows())?,
            model: fact("model"),
            source: Source::Parquet(reader),
        })
    }

    /// Calls `see` with each image in turn.
    ///
    /// # Errors
    /// Of the file, by name; those of `see`.
    pub(crate) fn for_each(
        &self,
        see: &mut dyn FnMut(ImageRow) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let width = self.shape[0] * self.shape[1];
        match &self.source {
            Source::Parquet(reader) => {
                for group in 0..reader.num_row_groups() {
                    let read = || format!("{}, row group {group}", self.path.display());
                    let group = reader.get_row_group(group).with_context(read)?;
                    for row in rows_of_group(&*group, width).with_context(read)? {
                        see(row)?;
                    }
                }
                Ok(())
            }
            Source::Npy { keys, array } => for_each_npy(keys, array, self.rows, width, see),
        }
    }
}

fn check_width(path: &Path, [queries, width]: [usize; 2]) -> anyhow::Result<()> {
    let numbers = queries.checked_mul(width);
    let fits = numbers.is_some_and(|numbers| (1..=MAX_WIDTH).contains(&numbers));
    ensure!(
        fits,
        "{}: {queries} queries of {width} numbers are not those of a model",
        path.display()
    );
    Ok(())
}

fn rows_of_group(group: &dyn RowGroupReader, width: usize) -> anyhow::Result<Vec<ImageRow>> {
    let rows = usize::try_from(group.metadata().num_rows())?;
    let place = |name: &str| {
        let columns = group.metadata().columns().iter();
        let mut names = columns.map(|column| column.column_path().parts().first().cloned());
        names
            .position(|first| first.as_deref() == Some(name))
            .with_context(|| format!("no column `{name}`"))
    };
    let strings = |name: &str| -> anyhow::Result<Vec<String>> {
        let ColumnReader::ByteArrayColumnReader(mut reader) =
            group.get_column_reader(place(name)?)?
        else {
            bail!("column `{name}` holds no strings");
        };
        let mut values: Vec<ByteArray> = Vec::new();
        reader.read_records(rows, None, None, &mut values)?;
        ensure!(
            values.len() == rows,
            "column `{name}` has {} of {rows} rows",
            values.len()
        );
        let text = |bytes: &ByteArray| String::from_utf8_lossy(bytes.data()).into_owned();
        Ok(values.iter().map(text).collect())
    };
    let (shards, keys) = (strings("shard")?, strings("key")?);
    let ColumnReader::FloatColumnReader(mut reader) =
        group.get_column_reader(place("image_embedding")?)?
    else {
        bail!("column `image_embedding` holds no 32-bit numbers");
    };
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    reader.read_records(rows, Some(&mut defined), Some(&mut repeated), &mut values)?;
    ensure!(
        values.len() == rows * width
            && repeated.iter().filter(|&&level| level == 0).count() == rows,
        "column `image_embedding` does not hold {width} numbers of each of {rows} images"
    );
    let values = values.chunks_exact(width).map(<[f32]>::to_vec);
    let names = shards.into_iter().zip(keys);
    Ok(names
        .zip(values)
        .map(|((shard, key), values)| ImageRow { shard, key, values })
        .collect())
}

fn for_each_npy(
    keys: &Path,
    array: &Path,
    rows: usize,
    width: usize,
    see: &mut dyn FnMut(ImageRow) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        shard: String,
        key: String,
    }
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok::<_, anyhow::Error>(BufReader::new(file))
    };
    let mut numbers = open(array)?;
    npy::read_header(&mut numbers, array)?;
    let mut lines = open(keys)?.lines();
    let mut bytes = vec![0; 4 * width];
    for row in 0..rows {
        let line = lines.next().with_context(|| {
            format!(
                "{} ends at line {row}, but {} has {rows} rows",
                keys.display(),
                array.display()
            )
        })?;
        let place = || format!("{}, line {}", keys.display(), row + 1);
        let Named { shard, key } =
            serde_json::from_str(&line.with_context(place)?).with_context(place)?;
        let read = numbers.read_exact(&mut bytes);
        read.with_context(|| format!("{}, row {row}", array.display()))?;
        let values = bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        see(ImageRow {
            shard,
            key,
            values: values.collect(),
        })?;
    }
    Ok(())
}
