//! Settings of the loader, as written in TOML and as checked.

use serde::{Deserialize, Serialize};

use crate::augment::ImageTransform;
use crate::captions::{CaptionLines, CaptionSource};
use crate::decode::{DecodeLimits, DecodeMemory, DecodeQuality, OnTruncated};
use crate::error::PipelineError;
use crate::filter::Filters;
use crate::image_ids::ImageIds;
use crate::order::ShuffleMode;
use crate::shard::read::{ReadOptions, DEFAULT_MAX_MEMBERS, DEFAULT_MAX_RATIO};
pub use crate::shard::verify::Verify;
use crate::shard::zstd_frames::DEFAULT_MAX_WINDOW_LOG;
use crate::shard::zstd_frames::{MAX_WINDOW_LOG, MIN_WINDOW_LOG};

/// What becomes of a bad sample or shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBad {
    /// Counted by reason and passed over.
    Skip,
    /// The same, and a line in the log.
    Warn,
    /// The run stops with an error that names it.
    Error,
}

/// Which image processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processing {
    /// Random resized crop and flip, `blip2_image_train` of the reference.
    Train,
    /// Resize to the square, `blip_image_eval` of the reference.
    Eval,
}

/// Which captions of a sample are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionChoice {
    /// One, drawn anew at each visit.
    Draw,
    /// All of them, in stored order: one caption row each.
    All,
    /// None: captions are not looked at, and a sample without any is good. For captioning images.
    Ignore,
}

/// Settings of a [`Loader`](crate::loader::Loader).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Images per batch. Default 16.
    pub batch_size: usize,
    /// Side of the square images that come out, in pixels. Default 224.
    pub image_size: usize,
    /// Token ids per caption, padding included. Default 32 (35 for retrieval evaluation).
    pub text_len: usize,
    /// Words of a caption that are kept before tokenisation. Default 50.
    pub max_words: usize,
    /// Put in front of every caption. Default empty.
    pub prompt: String,
    /// Fixes the order of samples, the crop and the caption of each. Default 42.
    pub seed: u64,
    /// How the samples of an epoch are shuffled. Default `buffer`.
    pub shuffle: ShuffleMode,
    /// Consecutive samples that are mixed with each other, with `shuffle = "buffer"`. Default 1024.
    pub shuffle_buffer_samples: usize,
    /// Bytes of samples that wait in memory for their turn in a shuffled order: beyond that they wait
    /// on disk, or are read later. No effect on the order. Default 64 MiB.
    pub shuffle_buffer_bytes: usize,
    /// Passes over the data; 0 means without end. Default 0.
    pub epochs: u64,
    /// Whether the positions at the end of an epoch that do not fill a batch of all ranks are dropped
    /// (and counted as `dropped_last`): one process drops good samples that fill no batch, several
    /// ranks drop positions before they are read. Default true; evaluation needs false, which makes
    /// smaller batches of them, on some ranks none.
    pub drop_last: bool,
    /// Which good samples are left out. Default none.
    pub filters: Filters,
    /// Members that come with each sample beside image and captions: extensions in a tar shard
    /// (`json`, `cls`), column names in an Arrow shard. Default none.
    pub extra_members: Vec<String>,
    /// Where ids come from that tell which samples show the same image: `none`, `field` (`image_id` of the
    /// `json` member, or a member or column of this name) or `digest` (the image's bytes). In training
    /// samples of an image share their contrastive target. Default `none`.
    pub image_ids: ImageIds,
    /// Image processing. Default `train`.
    pub processing: Processing,
    /// Area of a random crop as a share of the image, low and high. Default `[0.5, 1.0]`.
    pub crop_scale: (f64, f64),
    /// Aspect ratio (width / height) of a random crop, low and high. Default `[0.75, 1.3333]`.
    pub crop_ratio: (f64, f64),
    /// Probability that an image is mirrored. Default 0.5.
    pub flip_probability: f64,
    /// How far a JPEG may be reduced while it is decoded: `exact`, `balanced` or `fast`. Default
    /// `balanced`; without effect on `eval` processing, which is always exact.
    pub decode_quality: DecodeQuality,
    /// What becomes of an image that ends early or is damaged: `error` (a bad sample) or `grey` (what
    /// is missing is grey in a JPEG, black in a PNG or GIF, as with PIL's `LOAD_TRUNCATED_IMAGES`).
    /// Default `error`.
    pub on_truncated: OnTruncated,
    /// Which captions are used. Default `draw`.
    pub captions: CaptionChoice,
    /// What holds the image: the column of an Arrow shard; of a tar shard, the extension to take where
    /// a sample has several images. Default: found by name, see [`crate::captions::names`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// What holds the captions: the column of an Arrow shard; of a tar shard, the extension, or a field
    /// of the `json` member. Default: found by name, see [`crate::captions::names`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_column: Option<String>,
    /// What a text member (`.txt`) holds: `each` (every line is a caption) or `one` (the whole text is
    /// one). Default: decided for each data set by its first samples, see [`crate::survey`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_lines: Option<CaptionLines>,
    /// Threads that decode, augment and tokenise; 0 means one per core. Default 0.
    pub threads: usize,
    /// Threads that read and decompress; 0 means 2, or 8 where shards are remote. Default 0.
    pub io_threads: usize,
    /// Finished batches held ready. Default 4.
    pub prefetch_batches: usize,
    /// Bytes of samples read ahead of decoding, all I/O threads together. Default 32 MiB.
    pub read_ahead_bytes: usize,
    /// The largest window that a zstd frame may need, as a power of two of bytes, 10 to 31: each I/O
    /// thread takes that much memory for it. Default 27 (128 MiB), as `zstd -d`.
    pub max_zstd_window_log: u32,
    /// What becomes of a bad sample. Default `warn`.
    pub on_bad_sample: OnBad,
    /// Greatest share of a data set's samples that may be bad, once 1,000 were looked at; beyond it the
    /// run ends. What filters leave out does not count. 1 allows any. Default 0.1.
    pub max_bad_share: f64,
    /// What becomes of the rest of a shard that cannot be read on. Default `error`.
    pub on_bad_shard: OnBad,
    /// What of shards with an index is compared with it: `off`, `index` or `samples`. Default `samples`: a
    /// sample whose bytes are not those that were indexed is skipped.
    pub verify: Verify,
    /// A sample with more bytes than this is skipped. Default 128 MiB.
    pub max_sample_bytes: u64,
    /// A sample of a tar shard of which more members than this are loaded is skipped. Default 16,384.
    pub max_sample_members: usize,
    /// A compressed shard that expands to more than this many times its size is bad, from the first GiB on.
    /// Default 1,032, what gzip can reach.
    pub max_decompression_ratio: u64,
    /// An image with a side longer than this, in pixels, is skipped. Default 65,535.
    pub max_image_side: u32,
    /// An image with more pixels than this is skipped. Default 178,956,970, where PIL refuses too.
    pub max_image_pixels: u64,
    /// Bytes that all threads together use for images of which decoding takes more than 16 MiB: they
    /// wait for each other, and one that takes more than all of it is skipped. Default 512 MiB.
    pub decode_memory_bytes: u64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            batch_size: 16,
            image_size: 224,
            text_len: 32,
            max_words: 50,
            prompt: String::new(),
            seed: 42,
            shuffle: ShuffleMode::Buffer,
            shuffle_buffer_samples: 1024,
            shuffle_buffer_bytes: 64 << 20,
            epochs: 0,
            drop_last: true,
            filters: Filters::default(),
            extra_members: Vec::new(),
            image_ids: ImageIds::None,
            processing: Processing::Train,
            crop_scale: (0.5, 1.0),
            crop_ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip_probability: 0.5,
            decode_quality: DecodeQuality::Balanced,
            on_truncated: OnTruncated::Error,
            captions: CaptionChoice::Draw,
            image_column: None,
            caption_column: None,
            caption_lines: None,
            threads: 0,
            io_threads: 0,
            prefetch_batches: 4,
            read_ahead_bytes: 32 << 20,
            max_zstd_window_log: DEFAULT_MAX_WINDOW_LOG,
            on_bad_sample: OnBad::Warn,
            max_bad_share: 0.1,
            on_bad_shard: OnBad::Error,
            verify: Verify::default(),
            max_sample_bytes: 128 << 20,
            max_sample_members: DEFAULT_MAX_MEMBERS,
            max_decompression_ratio: DEFAULT_MAX_RATIO,
            max_image_side: 65_535,
            max_image_pixels: 178_956_970,
            decode_memory_bytes: DecodeMemory::DEFAULT_BYTES,
        }
    }
}

impl LoaderConfig {
    /// One pass in stored order, every caption, the last batch whole or not: what evaluation reads.
    pub fn for_evaluation(self) -> Self {
        LoaderConfig {
            shuffle: ShuffleMode::None,
            epochs: 1,
            drop_last: false,
            processing: Processing::Eval,
            captions: CaptionChoice::All,
            image_ids: ImageIds::None,
            // A report on what there is, with what was skipped beside it.
            max_bad_share: 1.0,
            ..self
        }
    }

    /// What these settings say of reading shards.
    pub fn read_options(&self) -> ReadOptions {
        let mut extra_members = self.extra_members.clone();
        if !self.filters.metadata.is_empty() {
            extra_members.push("json".into());
        }
        let of_ids = self.image_ids.members().iter();
        extra_members.extend(of_ids.map(|&name| name.to_owned()));
        ReadOptions {
            all_members: false,
            extra_members,
            max_sample_bytes: self.max_sample_bytes,
            max_sample_members: self.max_sample_members,
            max_decompression_ratio: self.max_decompression_ratio,
            image_column: self.image_column.clone(),
            caption_column: self.caption_column.clone(),
            needs_captions: true,
            other_columns: Default::default(),
            max_zstd_window_log: self.max_zstd_window_log,
            verify: self.verify,
        }
    }

    /// Where these settings look for captions, in samples of a data set whose texts hold `lines`.
    pub fn caption_source(&self, lines: CaptionLines) -> CaptionSource<'_> {
        CaptionSource {
            column: self.caption_column.as_deref(),
            lines,
        }
    }

    /// How images are decoded for these settings.
    pub fn effective_decode_quality(&self) -> DecodeQuality {
        match self.processing {
            Processing::Train => self.decode_quality,
            Processing::Eval => DecodeQuality::Exact,
        }
    }

    /// What these settings let images cost; decoders share a budget that is made anew at each call.
    pub fn decode_limits(&self) -> DecodeLimits {
        DecodeLimits {
            max_pixels: self.max_image_pixels,
            max_side: self.max_image_side,
            memory: DecodeMemory::new(self.decode_memory_bytes),
        }
    }

    /// The image transform that these settings describe.
    pub fn image_transform(&self) -> ImageTransform {
        // `validate` bounds the size.
        let size = u32::try_from(self.image_size).unwrap_or(u32::MAX);
        match self.processing {
            Processing::Train => ImageTransform::Train {
                size,
                scale: self.crop_scale,
                ratio: self.crop_ratio,
                flip_probability: self.flip_probability,
            },
            Processing::Eval => ImageTransform::eval(size),
        }
    }

    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`PipelineError::Config`] naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), PipelineError> {
        self.check_batches()?;
        self.check_reading()
    }

    /// What a batch holds, and how it is drawn.
    fn check_batches(&self) -> Result<(), PipelineError> {
        check(
            (1..=65_536).contains(&self.batch_size),
            "batch_size",
            "must be 1 to 65536",
        )?;
        check(
            (1..=4096).contains(&self.image_size),
            "image_size",
            "must be 1 to 4096 pixels",
        )?;
        check(
            (3..=512).contains(&self.text_len),
            "text_len",
            "must be 3 (one word between [CLS] and [SEP]) to 512, the positions of the Q-Former",
        )?;
        check(self.max_words > 0, "max_words", "must be at least 1")?;
        check(
            0.0 < self.crop_scale.0
                && self.crop_scale.0 <= self.crop_scale.1
                && self.crop_scale.1 <= 1.0,
            "crop_scale",
            "must be two numbers, 0 < low <= high <= 1",
        )?;
        check(
            0.0 < self.crop_ratio.0
                && self.crop_ratio.0 <= self.crop_ratio.1
                && self.crop_ratio.1.is_finite(),
            "crop_ratio",
            "must be two numbers, 0 < low <= high",
        )?;
        check(
            (0.0..=1.0).contains(&self.flip_probability),
            "flip_probability",
            "must be 0 to 1",
        )
    }

    /// Threads, budgets, shards, and what becomes of bad samples.
    fn check_reading(&self) -> Result<(), PipelineError> {
        for (setting, limit) in [
            ("max_sample_members", self.max_sample_members as u64),
            ("max_decompression_ratio", self.max_decompression_ratio),
            ("max_image_side", self.max_image_side.into()),
        ] {
            check(limit > 0, setting, "must be at least 1")?;
        }
        check(self.threads <= 1024, "threads", "must be at most 1024")?;
        check(self.io_threads <= 256, "io_threads", "must be at most 256")?;
        check(
            self.shuffle_buffer_samples <= 1 << 24,
            "shuffle_buffer_samples",
            "must be at most 16777216",
        )?;
        for (setting, bytes) in [
            ("shuffle_buffer_bytes", self.shuffle_buffer_bytes),
            ("read_ahead_bytes", self.read_ahead_bytes),
        ] {
            check(bytes <= 1 << 40, setting, "must be at most 1 TiB")?;
        }
        for (setting, name) in [
            ("image_column", &self.image_column),
            ("caption_column", &self.caption_column),
        ] {
            let is_empty = name.as_ref().is_some_and(String::is_empty);
            check(
                !is_empty,
                setting,
                "must name a column; leave it out to have it found",
            )?;
        }
        check(
            (MIN_WINDOW_LOG..=MAX_WINDOW_LOG).contains(&self.max_zstd_window_log),
            "max_zstd_window_log",
            "must be 10 (1 KiB) to 31 (2 GiB)",
        )?;
        self.filters.validate()?;
        check(
            (1..=1024).contains(&self.prefetch_batches),
            "prefetch_batches",
            "must be 1 to 1024",
        )?;
        check(
            (0.0..=1.0).contains(&self.max_bad_share),
            "max_bad_share",
            "must be 0 to 1, e.g. 0.1 for a tenth",
        )?;
        check(
            self.max_sample_bytes > 0,
            "max_sample_bytes",
            "must be at least 1",
        )?;
        check(
            self.max_image_pixels > 0,
            "max_image_pixels",
            "must be at least 1",
        )?;
        check(
            self.decode_memory_bytes >= 1 << 20,
            "decode_memory_bytes",
            "must be at least 1048576",
        )
    }
}

/// An error that names the setting, unless what must hold does.
fn check(holds: bool, setting: &'static str, message: &str) -> Result<(), PipelineError> {
    match holds {
        true => Ok(()),
        false => Err(PipelineError::Config {
            setting,
            message: message.to_string(),
        }),
    }
}
