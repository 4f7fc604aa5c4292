//! A sample: its picture and its captions, and what is wrong with them.

use image_hasher::{HashAlg, Hasher, HasherConfig};
use qf_pipeline::augment::{CropBox, ImageProcessor, ImageTransform, View};
use qf_pipeline::captions::{raw_captions, CaptionSource};
use qf_pipeline::decode::{
    is_image_extension, DecodeError, DecodeLimits, DecodeQuality, Decoder, ImageFormat, OpenedImage,
};
use qf_pipeline::pixels::PlanarRgb;
use qf_pipeline::text::CaptionProcessor;
use qf_pipeline::{EncodedSample, SampleError, SampleId, SkipReason};
use sha2::{Digest, Sha256};

use super::codes::{self, Code};
use super::finding::Finding;
use super::options::InspectOptions;
use super::picture::{self, Traits};
use super::text;

/// Side of the squares that perceptual hashes are made of.
const HASHED_SIDE: usize = 64;

/// What is known of a sample.
pub(crate) struct Facts {
    pub(crate) id: SampleId,
    /// Nothing if it has none, or one that is no image.
    pub(crate) picture: Option<Picture>,
    /// As stored.
    pub(crate) captions: Vec<String>,
    /// First 16 bytes of the SHA-256 of image and captions.
    pub(crate) content: Option<[u8; 16]>,
    /// About it, and about files that lie before its end.
    pub(crate) findings: Vec<Finding>,
}

impl Facts {
    /// Whether the loader would not deliver it.
    pub(crate) fn is_bad(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.severity == codes::Severity::Error)
    }
}

/// What is known of a sample's image.
pub(crate) struct Picture {
    /// Name of the member that holds it.
    pub(crate) member: String,
    pub(crate) bytes: u64,
    pub(crate) format: ImageFormat,
    /// Of the upright picture, in pixels.
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) traits: Traits,
    /// First 16 bytes of the SHA-256 of the file.
    pub(crate) sha256: [u8; 16],
    /// Gradient hash of 64 bits.
    pub(crate) perceptual: Option<u64>,
    /// The whole picture, resized to a square without its aspect.
    pub(crate) pixels: Option<PlanarRgb>,
}

/// What inspecting needs, for all threads.
pub(super) struct Inspector {
    options: InspectOptions,
    limits: DecodeLimits,
    processor: CaptionProcessor,
}

impl Inspector {
    pub(super) fn new(options: &InspectOptions) -> anyhow::Result<Inspector> {
        let config = &options.config;
        Ok(Inspector {
            options: options.clone(),
            limits: config.decode_limits(),
            processor: CaptionProcessor::new(config.max_words, "")?,
        })
    }

    /// What a thread needs beside.
    pub(super) fn stage(&self) -> Stage<'_> {
        let side = self.options.keep_side.max(HASHED_SIDE) as u32;
        let hasher = HasherConfig::with_bytes_type::<[u8; 8]>();
        Stage {
            inspector: self,
            decoder: Decoder::new(self.limits.clone(), self.options.config.on_truncated),
            processor: ImageProcessor::new(ImageTransform::train(side)).ok(),
            hasher: hasher.hash_alg(HashAlg::Gradient).to_hasher(),
        }
    }
}

/// Looks at samples, on one thread.
pub(super) struct Stage<'a> {
    inspector: &'a Inspector,
    decoder: Decoder,
    processor: Option<ImageProcessor>,
    hasher: Hasher<[u8; 8]>,
}

impl Stage<'_> {
    pub(super) fn inspect(
        &mut self,
        sample: Result<EncodedSample, SampleError>,
        findings: Vec<Finding>,
        is_row: bool,
    ) -> Facts {
        let sample = match sample {
            Ok(sample) => sample,
            Err(error) => return of_bad(error, findings),
        };
        let mut facts = Facts {
            id: sample.id.clone(),
            picture: None,
            captions: Vec::new(),
            content: None,
            findings,
        };
        self.captions(&sample, is_row, &mut facts);
        self.image(&sample, &mut facts);
        facts
    }

    fn captions(&self, sample: &EncodedSample, is_row: bool, facts: &mut Facts) {
        let config = &self.inspector.options.config;
        let source: CaptionSource<'_> =
            config.caption_source(config.caption_lines.unwrap_or_default());
        let captions = match raw_captions(sample, source) {
            Ok(captions) => captions
                .into_iter()
                .map(Into::into)
                .collect::<Vec<String>>(),
            Err((reason, message)) => {
                let code = match reason {
                    SkipReason::EmptyCaption => &codes::EMPTY_CAPTION,
                    SkipReason::BadCaption => &codes::NOT_UTF8_CAPTION,
                    _ if is_row => &codes::NULL_CAPTION,
                    _ => &codes::NO_CAPTION,
                };
                facts.find(code, message);
                return;
            }
        };
        let processor = &self.inspector.processor;
        if captions.iter().all(|caption| processor.is_empty(caption)) {
            let message = "nothing is left of its captions after the caption processor";
            facts.find(&codes::EMPTY_CAPTION, message.to_string());
        }
        for (code, excerpt) in text::oddities(&captions, config.max_words) {
            facts.find(code, format!("`{excerpt}`"));
        }
        facts.captions = captions;
    }

    fn image(&mut self, sample: &EncodedSample, facts: &mut Facts) {
        let images = sample.members.iter();
        let images = images
            .filter(|member| is_image_extension(&member.name))
            .count();
        let column = self.inspector.options.config.image_column.as_deref();
        let foreign = || {
            let mut members = sample.members.iter();
            members.find(|member| {
                qf_pipeline::decode::ForeignFormat::of_extension(&member.name).is_some()
            })
        };
        let Some(member) = sample.image(column).or_else(foreign) else {
            facts.find(&codes::NO_IMAGE, "no member of it is an image".to_string());
            return;
        };
        let Some(bytes) = member.bytes() else {
            facts.find(
                &codes::NO_IMAGE,
                format!("member `{}` is a text", member.name),
            );
            return;
        };
        if images > 1 {
            let message = format!(
                "{images} of its members are images; `{}` is used",
                member.name
            );
            facts.find(&codes::SEVERAL_IMAGES, message);
        }
        let sha256 = Sha256::digest(bytes);
        let mut whole = Sha256::new_with_prefix(sha256);
        for caption in &facts.captions {
            whole.update((caption.len() as u64).to_le_bytes());
            whole.update(caption);
        }
        facts.content = Some(first_half(&whole.finalize()));
        let decoder = &self.decoder;
        let opened = match decoder.open(bytes) {
            Ok(opened) => opened,
            Err(error) => {
                facts.find(code_of(&error), error.to_string());
                return;
            }
        };
        let format = opened.format();
        let mut picture = Picture {
            member: member.name.clone(),
            bytes: bytes.len() as u64,
            format,
            width: opened.width(),
            height: opened.height(),
            traits: picture::traits(format, bytes),
            sha256: first_half(&sha256),
            perceptual: None,
            pixels: None,
        };
        self.judge(&opened, &picture, facts);
        if self.inspector.options.decode {
            match self.decode(&opened) {
                Ok(pixels) => self.keep(pixels, &mut picture, facts),
                Err(error) => facts.find(code_of(&error), error.to_string()),
            }
        }
        facts.picture = Some(picture);
    }

    /// What its header says.
    fn judge(&self, opened: &OpenedImage<'_>, picture: &Picture, facts: &mut Facts) {
        let InspectOptions {
            min_side,
            max_aspect,
            ..
        } = self.inspector.options;
        let (width, height) = (picture.width, picture.height);
        let format = picture.format.name();
        let size = || format!("{width}×{height} pixels");
        let extension = picture.member.rsplit('.').next().unwrap_or_default();
        let fits = picture::extensions(picture.format).contains(&extension);
        // In Arrow shards columns have any name.
        if !fits && is_image_extension(extension) {
            let message = format!("it is named .{extension} and is {format}");
            facts.find(&codes::WRONG_EXTENSION, message);
        }
        if width.min(height) < min_side {
            facts.find(&codes::SMALL_IMAGE, size());
        }
        if f64::from(width.max(height)) > max_aspect * f64::from(width.min(height)) {
            facts.find(&codes::EXTREME_ASPECT, size());
        }
        let traits = picture.traits;
        let notes: [(bool, &'static Code); 7] = [
            (opened.is_turned(), &codes::TURNED),
            (traits.animated, &codes::ANIMATED),
            (traits.cmyk, &codes::CMYK),
            (traits.alpha, &codes::ALPHA),
            (traits.deep, &codes::DEEP),
            (traits.grey, &codes::GREY),
            (traits.other_profile, &codes::PROFILE),
        ];
        for (_, code) in notes.iter().filter(|(holds, _)| *holds) {
            facts.find(code, format!("{format}, {}", size()));
        }
    }

    /// The whole picture as a square, through the loader's decoder: at the smallest scale at which all of
    /// its coded data are still read.
    fn decode(&mut self, opened: &OpenedImage<'_>) -> Result<PlanarRgb, DecodeError> {
        let Some(processor) = &mut self.processor else {
            return Ok(PlanarRgb::black(0));
        };
        let view = View {
            crop: CropBox {
                x: 0,
                y: 0,
                width: opened.width(),
                height: opened.height(),
            },
            mirrored: false,
        };
        let mut pixels = processor.blank();
        let quality = DecodeQuality::Fast;
        processor.render_opened(&mut self.decoder, opened, &view, quality, pixels.as_mut())?;
        Ok(pixels)
    }

    fn keep(&self, pixels: PlanarRgb, picture: &mut Picture, facts: &mut Facts) {
        let plane = pixels.size() * pixels.size();
        let is_flat = |plane: &[u8]| plane.iter().all(|sample| Some(sample) == plane.first());
        if plane > 0 && pixels.as_bytes().chunks(plane).all(is_flat) {
            facts.find(
                &codes::BLANK,
                format!("{}×{} pixels", picture.width, picture.height),
            );
        }
        let options = &self.inspector.options;
        if options.perceptual {
            let image = pixels.as_batch().to_rgb_image(0);
            let image = image.and_then(|image| {
                image::RgbImage::from_raw(image.width(), image.height(), image.data().to_vec())
            });
            let hash = image.map(|image| self.hasher.hash_image(&image).into_inner());
            picture.perceptual = hash.map(u64::from_le_bytes);
        }
        picture.pixels = (options.keep_side > 0).then_some(pixels);
    }
}

impl Facts {
    fn find(&mut self, code: &'static Code, message: String) {
        let finding = Finding::of_shard(code, &self.id.shard, message);
        self.findings
            .push(finding.at(&self.id.key, self.id.offset_bytes));
    }
}

/// Enough of a digest to tell contents apart.
pub(super) fn first_half(digest: &[u8]) -> [u8; 16] {
    std::array::from_fn(|at| digest[at])
}

/// A sample that could not be put together.
fn of_bad(error: SampleError, findings: Vec<Finding>) -> Facts {
    let code = match error.reason {
        SkipReason::RepeatedMember => &codes::REPEATED_MEMBER,
        SkipReason::RepeatedKey => &codes::SCATTERED,
        SkipReason::SampleTooLarge => &codes::TOO_LARGE_SAMPLE,
        SkipReason::NoImage => &codes::NULL_IMAGE,
        SkipReason::NoCaption => &codes::NULL_CAPTION,
        SkipReason::BadCaption => &codes::NOT_UTF8_CAPTION,
        _ => &codes::DAMAGED,
    };
    let mut facts = Facts {
        id: *error.id,
        picture: None,
        captions: Vec::new(),
        content: None,
        findings,
    };
    facts.find(code, error.message);
    facts
}

fn code_of(error: &DecodeError) -> &'static Code {
    match error {
        DecodeError::UnknownFormat { .. } => &codes::NOT_AN_IMAGE,
        DecodeError::Foreign { format } => match format {
            qf_pipeline::decode::ForeignFormat::Avif => &codes::AVIF,
            qf_pipeline::decode::ForeignFormat::Heic => &codes::HEIC,
            qf_pipeline::decode::ForeignFormat::Other(_) => &codes::UNSUPPORTED_IMAGE,
        },
        DecodeError::Unsupported { .. } => &codes::UNSUPPORTED_IMAGE,
        DecodeError::Broken { message, .. } => {
            let ends = ["ends", "truncated", "missing", "cut", "cannot hold"];
            match ends.iter().any(|word| message.contains(word)) {
                true => &codes::TRUNCATED_IMAGE,
                false => &codes::BROKEN_IMAGE,
            }
        }
        DecodeError::TooLarge { .. } | DecodeError::NoMemory { .. } => &codes::HUGE_IMAGE,
    }
}
