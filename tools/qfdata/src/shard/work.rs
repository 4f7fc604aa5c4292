//! What is done to a row, on every core: checks, hashes, a new size, a new format.

use image::ImageFormat;
use image_hasher::{HashAlg, Hasher, HasherConfig};
use qf_codecs::encode::{self, JpegEncoder};
use qf_pipeline::decode::{DecodeError, DecodeLimits, OpenedImage, RgbImage};
use qf_pipeline::resize::PictureResizer;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::write::ShardSample;
use sha2::{Digest, Sha256};

use super::alpha;
use super::args::{CheckImages, ImageKind};
use super::geometry::{Fitted, Geometry};
use super::load;
use super::row::{Row, Skip, SkipCause};

/// Formats that the pipeline decodes, the extensions under which they are stored (others become the
/// first) and further ones under which they are found.
const IMAGE_TYPES: [(ImageFormat, &[&str], &[&str]); 6] = [
    (ImageFormat::Jpeg, &["jpg", "jpeg"], &["jpe", "jfif"]),
    (ImageFormat::Png, &["png"], &[]),
    (ImageFormat::WebP, &["webp"], &[]),
    (ImageFormat::Gif, &["gif"], &[]),
    (ImageFormat::Bmp, &["bmp"], &["dib"]),
    (ImageFormat::Tiff, &["tif", "tiff"], &[]),
];

/// Bytes that are enough to recognise every format of [`IMAGE_TYPES`].
const MAGIC_BYTES: usize = 32;

/// Side of the picture that a perceptual hash is taken of.
const HASHED_SIDE: u32 = 64;

/// What is done to every row.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) check: CheckImages,
    pub(super) geometry: Geometry,
    /// The format that images are stored in; as they come where it is `None`, and JPEG where they are
    /// resized.
    pub(super) image_format: Option<ImageKind>,
    /// 1 to 100.
    pub(super) quality: u8,
    /// Bounds of the sides, in pixels.
    pub(super) min_side: u32,
    pub(super) max_side: u32,
    /// Longer side by shorter.
    pub(super) max_aspect: f64,
    /// Whether perceptual hashes are taken.
    pub(super) perceptual: bool,
    /// Largest image, as it comes, in bytes.
    pub(super) max_image_bytes: u64,
}

impl Recipe {
    /// Whether any picture may be written anew.
    pub(super) fn encodes(&self) -> bool {
        self.image_format.is_some() || self.geometry.mode != super::geometry::ResizeMode::No
    }
}

/// The encoder, made when it is first needed.
fn encoder(kept: &mut Option<JpegEncoder>) -> Result<&mut JpegEncoder, encode::Error> {
    match kept {
        Some(encoder) => Ok(encoder),
        none => Ok(none.insert(JpegEncoder::new()?)),
    }
}

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Width and height as stored in the shard, upright, where they could be read.
    pub(super) size: Option<(u32, u32)>,
    /// Width and height as it came, upright.
    pub(super) original: Option<(u32, u32)>,
    /// Of the bytes as they came.
    pub(super) sha256: Option<[u8; 32]>,
    /// 64 bits.
    pub(super) phash: Option<u64>,
    /// Length as it came.
    pub(super) bytes: Option<u64>,
}

/// Works on rows, one at a time.
pub(super) struct Worker<'a> {
    recipe: &'a Recipe,
    resizer: PictureResizer,
    jpeg: Option<JpegEncoder>,
    hasher: Option<Hasher<[u8; 8]>>,
    max_sample_bytes: u64,
}

impl<'a> Worker<'a> {
    /// Workers whose limits are clones share the memory they allow.
    pub(super) fn new(recipe: &'a Recipe, limits: DecodeLimits) -> Worker<'a> {
        let hasher = || {
            HasherConfig::with_bytes_type::<[u8; 8]>()
                .hash_size(8, 8)
                .hash_alg(HashAlg::Median)
                .preproc_dct()
                .to_hasher()
        };
        Worker {
            recipe,
            resizer: PictureResizer::new(limits),
            jpeg: None,
            hasher: recipe.perceptual.then(hasher),
            max_sample_bytes: ReadOptions::default().max_sample_bytes,
        }
    }

    /// Makes a sample of a row. `downloaded` is its image where it came from a URL.
    pub(super) fn make(
        &mut self,
        mut row: Row,
        downloaded: Option<Vec<u8>>,
    ) -> (Facts, Result<ShardSample, Skip>) {
        let mut facts = Facts::default();
        let made = self.attempt(&mut row, downloaded, &mut facts);
        (facts, made)
    }

    fn attempt(
        &mut self,
        row: &mut Row,
        downloaded: Option<Vec<u8>>,
        facts: &mut Facts,
    ) -> Result<ShardSample, Skip> {
        // Captions first: without them an image need not be read.
        let captions = load::captions(row)?;
        let (image, ending) = match downloaded {
            Some(bytes) => {
                let url = row.name.url.as_deref().unwrap_or("");
                let path = url.split(['?', '#']).next().unwrap_or("");
                (bytes, load::ending_of(std::path::Path::new(path)))
            }
            None => load::image(row, self.recipe.max_image_bytes.min(self.max_sample_bytes))?,
        };
        facts.bytes = Some(image.len() as u64);
        facts.sha256 = Some(Sha256::digest(&image).into());
        let origin = row.name.origin.clone();
        let (image, extension) = self.image(image, &ending, &origin, facts)?;
        let members = std::mem::take(&mut row.members);
        if let Some((name, _)) = members
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&extension))
        {
            let message = format!(
                "its image would be stored as `.{extension}`, and it has another member `.{name}`; choose \
                 another --image-format, or rename the member"
            );
            return Err(Skip::new(origin, SkipCause::BadName, message));
        }
        let text_bytes: usize = captions.texts.iter().map(|text| text.len() + 1).sum();
        let more_bytes: usize = members.iter().map(|(_, content)| content.len()).sum();
        let json_bytes = captions.json.as_ref().map_or(0, Vec::len);
        let sample_bytes = (image.len() + text_bytes + more_bytes + json_bytes) as u64;
        if sample_bytes > self.max_sample_bytes {
            let most = self.max_sample_bytes;
            let message = format!("{sample_bytes} bytes, over the limit of {most}");
            return Err(Skip::new(origin, SkipCause::SampleTooLarge, message));
        }
        Ok(ShardSample {
            key: row.name.key.clone(),
            extension,
            image,
            captions: captions.texts,
            text_member: captions.text_member,
            json: captions.json,
            members,
        })
    }

    /// The image as it is stored, and its extension.
    fn image(
        &mut self,
        image: Vec<u8>,
        ending: &str,
        origin: &str,
        facts: &mut Facts,
    ) -> Result<(Vec<u8>, String), Skip> {
        let skip = |cause, message: String| Skip::new(origin, cause, message);
        let looks = self.recipe.check != CheckImages::None;
        let magic = &image[..image.len().min(MAGIC_BYTES)];
        let content = looks.then(|| image::guess_format(magic).ok());
        let extension = stored_extension(ending, content).ok_or_else(|| {
            let message = match (image.is_empty(), looks) {
                (true, _) => "the file is empty".to_owned(),
                (_, true) => not_an_image(&image),
                (_, false) => "extension of no JPEG, PNG, WebP, GIF, BMP or TIFF image".to_owned(),
            };
            skip(SkipCause::UnknownImageFormat, message)
        })?;
        let needs_pixels = self.recipe.check == CheckImages::Decode || self.recipe.perceptual;
        let opened = match self.resizer.open(&image) {
            Ok(opened) => opened,
            // Without a look at its pixels, a header that is odd is the reader's to judge.
            Err(_) if !needs_pixels && !self.recipe.encodes() && !self.bounds_sides() => {
                return Ok((image, extension.to_owned()));
            }
            Err(error) => return Err(skip(cause_of(&error), error.to_string())),
        };
        let original = (opened.width(), opened.height());
        (facts.original, facts.size) = (Some(original), Some(original));
        self.check_sides(original)
            .map_err(|(cause, message)| skip(cause, message))?;
        let fitted = self.recipe.geometry.fit(original);
        let kind = match (self.recipe.image_format, fitted) {
            (Some(kind), fitted) if fitted.is_some() || !kind.is(opened.format()) => Some(kind),
            (None, Some(_)) => Some(ImageKind::Jpeg),
            _ => None,
        };
        if kind.is_none() && !needs_pixels {
            return Ok((image, extension.to_owned()));
        }
        if let (Some(ImageKind::Jpeg), Some(fitted), false) = (kind, fitted, self.recipe.perceptual)
        {
            let file = self.jpeg_of_jpeg(&opened, fitted);
            if let Some(file) = file.map_err(|(cause, message)| skip(cause, message))? {
                facts.size = Some(fitted.canvas);
                return Ok((file, ImageKind::Jpeg.extension().to_owned()));
            }
        }
        let scaled = fitted.map_or(original, |fitted| fitted.scaled);
        let picture = self
            .picture(&opened, &image, (kind.is_some(), scaled))
            .map_err(|error| skip(cause_of(&error), error.to_string()))?;
        facts.phash = self.perceptual_hash(&picture);
        let Some(kind) = kind else {
            return Ok((image, extension.to_owned()));
        };
        let no_memory = || skip(SkipCause::SampleTooLarge, "no memory for it".to_owned());
        let picture = match fitted {
            Some(fitted) => fitted.place(picture).ok_or_else(no_memory)?,
            None => picture,
        };
        facts.size = Some((picture.width(), picture.height()));
        let file = self
            .encode(&picture, kind)
            .map_err(|message| skip(SkipCause::BrokenImage, message))?;
        Ok((file, kind.extension().to_owned()))
    }

    /// The picture at a size; on white, if it is to be written anew.
    fn picture(
        &mut self,
        opened: &OpenedImage<'_>,
        image: &[u8],
        (is_encoded, size): (bool, (u32, u32)),
    ) -> Result<RgbImage, DecodeError> {
        let upright = (opened.width(), opened.height());
        if is_encoded && !ImageKind::Jpeg.is(opened.format()) {
            let picture = alpha::on_white(self.resizer.decoder(), opened, image)?;
            let fits = |picture: &RgbImage| (picture.width(), picture.height()) == upright;
            if let Some(picture) = picture.filter(fits) {
                if size == upright {
                    return Ok(picture);
                }
                if let Some(resized) = self.resizer.resize(&picture, size) {
                    return Ok(resized);
                }
            }
        }
        self.resizer.decode(opened, size)
    }

    /// A JPEG that is resized without a detour by RGB; `None` where that cannot be.
    fn jpeg_of_jpeg(
        &mut self,
        opened: &OpenedImage<'_>,
        fitted: Fitted,
    ) -> Result<Option<Vec<u8>>, (SkipCause, String)> {
        let Some(part) = fitted.part() else {
            return Ok(None);
        };
        let resized = self.resizer.components(opened, &part);
        let Some(picture) = resized.map_err(|error| (cause_of(&error), error.to_string()))? else {
            return Ok(None);
        };
        let file = encoder(&mut self.jpeg)
            .and_then(|encoder| encoder.encode_420(picture, self.recipe.quality));
        file.map(Some)
            .map_err(|error| (SkipCause::BrokenImage, error.to_string()))
    }

    fn bounds_sides(&self) -> bool {
        let Recipe {
            min_side,
            max_side,
            max_aspect,
            ..
        } = self.recipe;
        *min_side > 0 || *max_side > 0 || *max_aspect > 0.0
    }

    fn check_sides(&self, (width, height): (u32, u32)) -> Result<(), (SkipCause, String)> {
        let (shorter, longer) = (width.min(height), width.max(height));
        let Recipe {
            min_side,
            max_side,
            max_aspect,
            ..
        } = *self.recipe;
        let aspect = f64::from(longer) / f64::from(shorter.max(1));
        let (cause, bound) = if shorter < min_side {
            (SkipCause::TooSmall, format!("--min-size {min_side}"))
        } else if max_side > 0 && longer > max_side {
            (SkipCause::TooBig, format!("--max-size {max_side}"))
        } else if max_aspect > 0.0 && aspect > max_aspect {
            (SkipCause::BadAspect, format!("--max-aspect {max_aspect}"))
        } else {
            return Ok(());
        };
        Err((cause, format!("it has {width}×{height} pixels ({bound})")))
    }

    /// Of the picture's brightness: the median of its 8 × 8 lowest frequencies.
    fn perceptual_hash(&mut self, picture: &RgbImage) -> Option<u64> {
        let hasher = self.hasher.as_ref()?;
        let small = self.resizer.resize(picture, (HASHED_SIDE, HASHED_SIDE))?;
        let small = image::RgbImage::from_raw(HASHED_SIDE, HASHED_SIDE, small.data().to_vec())?;
        Some(u64::from_be_bytes(hasher.hash_image(&small).into_inner()))
    }

    fn encode(&mut self, picture: &RgbImage, kind: ImageKind) -> Result<Vec<u8>, String> {
        let size = (picture.width(), picture.height());
        let quality = self.recipe.quality;
        match kind {
            ImageKind::Jpeg => {
                let file = encoder(&mut self.jpeg)
                    .and_then(|encoder| encoder.encode(picture.data(), size, quality));
                file.map_err(|error| error.to_string())
            }
            ImageKind::Webp => {
                encode::webp(picture.data(), size, quality).map_err(|error| error.to_string())
            }
            ImageKind::Png => {
                use image::ImageEncoder;
                let mut file = Vec::new();
                image::codecs::png::PngEncoder::new(&mut file)
                    .write_image(
                        picture.data(),
                        size.0,
                        size.1,
                        image::ExtendedColorType::Rgb8,
                    )
                    .map_err(|error| error.to_string())?;
                Ok(file)
            }
        }
    }
}

fn cause_of(error: &DecodeError) -> SkipCause {
    match error {
        DecodeError::TooLarge { .. } | DecodeError::NoMemory { .. } => SkipCause::SampleTooLarge,
        DecodeError::UnknownFormat { .. } | DecodeError::Foreign { .. } => {
            SkipCause::UnknownImageFormat
        }
        _ => SkipCause::BrokenImage,
    }
}

/// What a file is that is not an image.
fn not_an_image(bytes: &[u8]) -> String {
    let what = "not a JPEG, PNG, WebP, GIF, BMP or TIFF image";
    match qf_pipeline::decode::ForeignFormat::sniff(bytes) {
        Some(format) => format!("{what}, but {}, which is not decoded", format.name()),
        None if bytes.trim_ascii_start().starts_with(b"<") => format!("{what}, but a page (HTML)"),
        None => what.to_owned(),
    }
}

/// The extension of the content where it was looked at (`Some(None)`: it is nothing known), else of
/// the name.
fn stored_extension(found: &str, content: Option<Option<ImageFormat>>) -> Option<&'static str> {
    let (_, stored, _) = IMAGE_TYPES
        .iter()
        .find(|(format, stored, other)| match content {
            Some(content) => content == Some(*format),
            None => stored.contains(&found) || other.contains(&found),
        })?;
    stored
        .iter()
        .find(|extension| **extension == found)
        .or(stored.first())
        .copied()
}

/// Whether a file of this extension is looked at as an image.
pub(super) fn is_image_extension(extension: &str) -> bool {
    IMAGE_TYPES
        .iter()
        .any(|(_, stored, found)| stored.contains(&extension) || found.contains(&extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions() {
        use ImageFormat::{Avif, Jpeg, Png, Tiff};
        for (found, content, expected) in [
            ("jpg", Some(Some(Jpeg)), Some("jpg")),
            ("jpeg", Some(Some(Jpeg)), Some("jpeg")),
            ("jfif", Some(Some(Jpeg)), Some("jpg")),
            ("jpg", Some(Some(Png)), Some("png")),
            ("", Some(Some(Tiff)), Some("tif")),
            ("avif", Some(Some(Avif)), None),
            ("jpg", Some(None), None),
            ("jpe", None, Some("jpg")),
            ("tiff", None, Some("tiff")),
            ("txt", None, None),
        ] {
            assert_eq!(stored_extension(found, content), expected, "{found}");
        }
    }
}
