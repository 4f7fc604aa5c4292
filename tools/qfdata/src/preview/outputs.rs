//! The files that a preview is written to.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use image::{ExtendedColorType, ImageEncoder};
use qf_pipeline::atomic_file::AtomicFile;

use super::args::PreviewArgs;
use super::describe::facts;
use super::grid::Grid;
use super::request::Request;
use super::shown::Shown;
use super::{npy, page};

/// No file that is written may be one that is read, or be written twice.
///
/// # Errors
/// The option and the file.
pub(super) fn check_outputs(args: &PreviewArgs, inputs: &[PathBuf]) -> anyhow::Result<()> {
    let options = [
        ("--out", Some(&args.out)),
        ("--html", args.html.as_ref()),
        ("--npy", args.npy.as_ref()),
    ];
    let outputs: Vec<_> = options
        .iter()
        .filter_map(|(option, path)| Some((option, path.as_ref()?)))
        .collect();
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    for (index, (option, path)) in outputs.iter().enumerate() {
        if path.is_dir() {
            bail!("{option} {} is a folder: name a file", path.display());
        }
        if let Some((other, _)) = outputs[..index].iter().find(|(_, other)| same(path, other)) {
            bail!("{other} and {option} are both {}", path.display());
        }
        if inputs.iter().any(|input| same(path, input)) {
            bail!(
                "{option} {} is one of the files to be shown and would be replaced; \
                 name another one, or leave it out of the files",
                path.display()
            );
        }
    }
    Ok(())
}

pub(super) fn write_outputs(
    args: &PreviewArgs,
    request: &Request,
    shown: &Shown,
    (title, grid): (&str, &Grid),
) -> anyhow::Result<()> {
    let image = &grid.image;
    write(&args.out, |file| {
        image::codecs::png::PngEncoder::new(file)
            .write_image(
                image,
                image.width(),
                image.height(),
                ExtendedColorType::Rgb8,
            )
            .context("cannot encode the grid as PNG")
    })?;
    if let Some(path) = &args.html {
        let page = page::html(shown, title, &facts(request, shown))?;
        write(path, |file| Ok(file.write_all(page.as_bytes())?))?;
    }
    if let Some(path) = &args.npy {
        let batch = shown.images.as_batch();
        write(path, |file| {
            Ok(npy::write_u8(file, batch.shape(), batch.as_bytes())?)
        })?;
    }
    Ok(())
}

/// Writes a file that appears under its name when it is whole.
fn write(
    path: &Path,
    content: impl FnOnce(&mut AtomicFile) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    content(&mut file).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.commit()?)
}
