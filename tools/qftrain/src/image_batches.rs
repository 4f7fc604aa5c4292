//! Image files in batches, past those that cannot be read.

use std::path::PathBuf;

use anyhow::bail;
use qf_pipeline::image_file::ImageReader;
use qf_pipeline::pixels::PlanarImages;
use qf_pipeline::LoaderConfig;

use qf_cli::output::{remark, InPart};

/// Reads files in order, some at a time. One that cannot be read is named on stderr and costs no other.
pub(crate) struct FileBatches {
    paths: Vec<PathBuf>,
    reader: ImageReader,
    size: usize,
    next: usize,
    good: usize,
    bad: usize,
}

/// Files that were read.
pub(crate) struct FileBatch {
    /// Places of the files among all.
    pub(crate) places: Vec<usize>,
    /// Their paths.
    pub(crate) names: Vec<String>,
    pub(crate) pixels: PlanarImages,
}

impl FileBatches {
    /// `size` files at a time, read as `data` says.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        data: &LoaderConfig,
        size: usize,
    ) -> anyhow::Result<FileBatches> {
        Ok(FileBatches {
            paths,
            reader: ImageReader::new(data)?,
            size: size.max(1),
            next: 0,
            good: 0,
            bad: 0,
        })
    }

    /// Files of all batches, good and bad.
    pub(crate) fn total(&self) -> usize {
        self.paths.len()
    }

    /// Files of the batches before.
    pub(crate) fn done(&self) -> usize {
        self.good
    }

    /// The next files that can be read.
    ///
    /// # Errors
    /// Of the only file, that it cannot be read.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<FileBatch>> {
        while self.next < self.paths.len() {
            let first = self.next;
            self.next = (first + self.size).min(self.paths.len());
            let chunk = &self.paths[first..self.next];
            let mut batch = FileBatch {
                places: Vec::new(),
                names: Vec::new(),
                pixels: PlanarImages::new(self.reader.image_size()),
            };
            for (place, image) in (first..).zip(self.reader.read_all(chunk)) {
                match image {
                    Ok(image) => {
                        batch.places.push(place);
                        batch.names.push(self.paths[place].display().to_string());
                        batch.pixels.push(&image);
                    }
                    Err(error) if self.paths.len() == 1 => return Err(error.into()),
                    Err(error) => {
                        self.bad += 1;
                        remark(format_args!("skipped {error}"));
                    }
                }
            }
            if !batch.names.is_empty() {
                self.good += batch.names.len();
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// What there is to say in the end.
    ///
    /// # Errors
    /// [`InPart`] where some files could not be read, another error where none could.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        let (bad, all) = (self.bad, self.paths.len());
        match (self.good, bad) {
            (_, 0) => Ok(()),
            (0, _) => bail!("none of {bad} images can be read; each is named above"),
            _ => {
                let message = format!("{bad} of {all} images cannot be read; each is named above");
                Err(InPart(message).into())
            }
        }
    }
}
