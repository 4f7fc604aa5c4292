//! Image files through the transforms of the loader, with the captions beside them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use qf_pipeline::augment::SampleRng;
use qf_pipeline::batch::SourceView;
use qf_pipeline::captions::names::CAPTION_NAMES;
use qf_pipeline::captions::{is_caption_member, raw_captions};
use qf_pipeline::config::CaptionChoice;
use qf_pipeline::decode::{is_image_extension, DecodeError, ImageFormat};
use qf_pipeline::image_stage::{ImageSettings, ImageStage};
use qf_pipeline::pixels::{PlanarImages, PlanarRgb};
use qf_pipeline::words::counted;
use qf_pipeline::{EncodedSample, LoaderConfig, Member, MemberData, SampleId, SkipReason};

use super::request::Request;
use super::shown::{Caption, Crop, Sample, Shown, Skipped};
use crate::interrupt::Interrupt;

/// Bytes that tell an image from a shard: a tar header has its magic number at 257.
const HEAD_BYTES: u64 = 512;

/// Endings of images that are not decoded, so that they are named as such.
const OTHER_IMAGES: [&str; 6] = ["avif", "heic", "heif", "jp2", "jxl", "svg"];

/// What a file is, by its content; by its name only where the content is of no known kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Image,
    /// Goes with an image of the same name.
    Caption,
    Other,
}

/// The image files among these, if that is what they are; folders stand for the images in them.
///
/// # Errors
/// Images beside other files, a folder without images, a file that cannot be read.
pub(super) fn image_files(paths: &[PathBuf]) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let (mut images, mut other) = (Vec::new(), None);
    for path in paths {
        if path.is_dir() {
            images.extend(images_of_folder(path)?);
            continue;
        }
        match kind_of(path)? {
            Kind::Image => images.push(path.clone()),
            Kind::Caption => {}
            Kind::Other => other = Some(path),
        }
    }
    match (images.first(), other) {
        (None, _) => Ok(None),
        (Some(image), Some(other)) => bail!(
            "{} is an image and {} is not: give image files or shards, one of them at a time",
            image.display(),
            other.display()
        ),
        (Some(_), None) => Ok(Some(images)),
    }
}

fn images_of_folder(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_list = || format!("cannot list {}", folder.display());
    let mut images = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot_list)? {
        let path = entry.with_context(cannot_list)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() && kind_of(&path)? == Kind::Image {
            images.push(path);
        }
    }
    if images.is_empty() {
        bail!(
            "{0} holds no image file; shards are named one by one or as a pattern, '{0}/*.tar'",
            folder.display()
        );
    }
    images.sort();
    Ok(images)
}

fn kind_of(path: &Path) -> anyhow::Result<Kind> {
    let cannot_read = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot_read)?;
    let mut head = Vec::new();
    file.take(HEAD_BYTES)
        .read_to_end(&mut head)
        .with_context(cannot_read)?;
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    Ok(kind_of_content(&head, &extension.to_ascii_lowercase()))
}

fn kind_of_content(head: &[u8], extension: &str) -> Kind {
    if is_shard(head) {
        return Kind::Other;
    }
    let named_image = is_image_extension(extension) || OTHER_IMAGES.contains(&extension);
    match ImageFormat::sniff(head) {
        // Two letters are little: a text may begin with them.
        Some(ImageFormat::Bmp) if !named_image && !is_bitmap(head) => Kind::Other,
        Some(_) => Kind::Image,
        None if named_image => Kind::Image,
        None if is_caption_member(extension) => Kind::Caption,
        None => Kind::Other,
    }
}

/// Whether a file begins as tar, gzip, zstd or Arrow do.
fn is_shard(head: &[u8]) -> bool {
    const STARTS: [&[u8]; 4] = [
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"ARROW1",
        b"\xff\xff\xff\xff",
    ];
    head.get(257..262) == Some(b"ustar") || STARTS.iter().any(|start| head.starts_with(start))
}

/// Whether the header behind the letters `BM` has one of the lengths that bitmaps have.
fn is_bitmap(head: &[u8]) -> bool {
    const LENGTHS: [u32; 8] = [12, 16, 40, 52, 56, 64, 108, 124];
    let len = head.get(14..18).and_then(|bytes| bytes.try_into().ok());
    len.is_some_and(|len| LENGTHS.contains(&u32::from_le_bytes(len)))
}

/// The images of this batch of the list. One that cannot be used is listed, not replaced by the next.
///
/// # Errors
/// A batch beyond the list; a batch without a usable image.
pub(super) fn show(
    request: &Request,
    files: &[PathBuf],
    interrupt: &Interrupt,
) -> anyhow::Result<Shown> {
    let config = &request.config;
    let first = request.batch.saturating_mul(config.batch_size as u64);
    let first = usize::try_from(first).unwrap_or(usize::MAX);
    let of_batch = files.get(first..).unwrap_or_default();
    let of_batch = &of_batch[..of_batch.len().min(config.batch_size)];
    if of_batch.is_empty() {
        bail!(
            "{} in batches of {}, counted from 0: there is no batch {}",
            counted(files.len() as u64, "image file", "image files"),
            config.batch_size,
            request.batch
        );
    }
    let mut reader = Reader {
        request,
        stage: ImageSettings::new(config)?.stage(),
    };
    let mut shown = Shown {
        images: PlanarImages::new(config.image_size),
        samples: Vec::new(),
        skipped: Vec::new(),
        unnamed: 0,
        origin: String::new(),
    };
    for (index, path) in (first..).zip(of_batch) {
        interrupt.check()?;
        match reader.read(path, index) {
            Ok((sample, pixels)) => {
                shown.samples.push(sample);
                shown.images.push(&pixels);
            }
            Err((reason, message)) => shown.skipped.push(Skipped {
                key: path.display().to_string(),
                shard: None,
                offset_bytes: None,
                reason: reason.name(),
                message,
            }),
        }
    }
    if let (true, Some(bad)) = (shown.samples.is_empty(), shown.skipped.first()) {
        let rest = match shown.skipped.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more cannot be shown either)"),
        };
        bail!("{}: {}{rest}", bad.key, bad.message);
    }
    let total = counted(files.len() as u64, "image file", "image files");
    shown.origin = match shown.samples.len() == files.len() {
        true => total,
        false => format!("{} of {total}", shown.samples.len()),
    };
    Ok(shown)
}

struct Reader<'a> {
    request: &'a Request,
    stage: ImageStage,
}

type Bad = (SkipReason, String);

impl Reader<'_> {
    /// One file and its pixels; what is random depends on its number in the list.
    fn read(&mut self, path: &Path, index: usize) -> Result<(Sample, PlanarRgb), Bad> {
        let config = &self.request.config;
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let mut rng = SampleRng::new(config.seed, self.request.epoch, 0, number);
        // In the order of the loader: the caption is drawn before the crop.
        let (captions, all_captions) = self.captions(path, &mut rng)?;
        let bytes = bytes_of(path, config).map_err(|message| (SkipReason::BrokenImage, message))?;
        let bad = |error: DecodeError| (error.reason(), error.to_string());
        let opened = self.stage.open(&bytes).map_err(bad)?;
        let mut pixels = self.stage.blank();
        let rendered = self.stage.render(&opened, &mut rng, pixels.as_mut());
        let source = SourceView {
            width: opened.width(),
            height: opened.height(),
            view: rendered.map_err(bad)?.view,
        };
        let mut sample = Sample {
            key: path.display().to_string(),
            shard: None,
            offset_bytes: None,
            width: 0,
            height: 0,
            crop: Crop::default(),
            mirrored: false,
            captions,
            all_captions,
        };
        sample.set_view(&source);
        Ok((sample, pixels))
    }

    /// The captions in use, and all as stored. An image may have none.
    fn captions(
        &self,
        path: &Path,
        rng: &mut SampleRng,
    ) -> Result<(Vec<Caption>, Vec<String>), Bad> {
        let config = &self.request.config;
        let beside = captions_beside(path, config)?;
        let source = config.caption_source(config.caption_lines.unwrap_or_default());
        let stored: Vec<String> = match raw_captions(&beside, source) {
            Ok(raw) => raw.into_iter().map(Into::into).collect(),
            Err((SkipReason::NoCaption, _)) => Vec::new(),
            Err(bad) => return Err(bad),
        };
        let text = &self.request.text;
        let mut used: Vec<&String> = stored.iter().collect();
        used.retain(|caption| !text.processor.is_empty(caption));
        if config.captions == CaptionChoice::Draw && !used.is_empty() {
            let drawn = rng.below(used.len() as u64) as usize;
            used = vec![used[drawn]];
        }
        let captions = used
            .into_iter()
            .map(|caption| text.caption(text.processor.process(caption), &stored, None));
        let captions = captions.collect::<Result<_, _>>();
        let captions = captions.map_err(|error| (SkipReason::BadCaption, error.to_string()))?;
        Ok((captions, stored))
    }
}

/// The files beside an image that may hold its captions, as a sample of a shard would have them.
fn captions_beside(path: &Path, config: &LoaderConfig) -> Result<EncodedSample, Bad> {
    let mut members = Vec::new();
    for extension in CAPTION_NAMES.into_iter().chain(["json"]) {
        let beside = path.with_extension(extension);
        if beside.is_file() {
            let bytes = bytes_of(&beside, config).map_err(|message| {
                let message = format!("{}: {message}", beside.display());
                (SkipReason::BadCaption, message)
            })?;
            members.push(Member::new(extension, MemberData::Bytes(bytes)));
        }
    }
    let id = SampleId {
        shard: Arc::from(""),
        shard_index: 0,
        sample_index: 0,
        key: path.display().to_string(),
        offset_bytes: 0,
    };
    Ok(EncodedSample { id, members })
}

fn bytes_of(path: &Path, config: &LoaderConfig) -> Result<Vec<u8>, String> {
    let cannot_read = |error: std::io::Error| format!("cannot be read: {error}");
    let limit = config.max_sample_bytes;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot_read)?;
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(cannot_read)?;
    if bytes.len() as u64 > limit {
        return Err(format!(
            "has more than {limit} bytes, the setting max_sample_bytes"
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_content() {
        let mut tar = tar_header("BMW/000017.jpg");
        for extension in ["tar", "bmp", ""] {
            assert_eq!(kind_of_content(&tar, extension), Kind::Other, "{extension}");
        }
        // Archives older than the magic number are told from bitmaps by what follows the letters.
        tar[257..265].fill(0);
        assert_eq!(kind_of_content(&tar, "tar"), Kind::Other);
        let mut bitmap = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        bitmap.resize(512, 0);
        for (head, extension, expected) in [
            (&bitmap[..], "dat", Kind::Image),
            (b"\xff\xd8\xff\xe0", "tar", Kind::Image),
            (b"\x89PNG\r\n\x1a\n", "", Kind::Image),
            // To be named as broken.
            (b"<html>", "jpg", Kind::Image),
            (b"", "png", Kind::Image),
            (b"\0\0\0\x20ftypavif", "avif", Kind::Image),
            (b"a dog", "txt", Kind::Caption),
            (b"{}", "json", Kind::Caption),
            (b"a dog", "md", Kind::Other),
            (b"\x1f\x8b\x08", "jpg", Kind::Other),
            (b"\xff\xff\xff\xff\x10", "arrow", Kind::Other),
            (b"BM is a make of car", "md", Kind::Other),
        ] {
            assert_eq!(
                kind_of_content(head, extension),
                expected,
                "{extension} {head:?}"
            );
        }
    }

    fn tar_header(name: &str) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..name.len()].copy_from_slice(name.as_bytes());
        head[257..265].copy_from_slice(b"ustar\x0000");
        head
    }
}
