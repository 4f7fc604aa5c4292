//! What the command line may say.

use std::path::PathBuf;

use clap::Args;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::order::ShuffleMode;

use crate::data::{CaptionLinesArg, InputArgs};
use crate::order::parse_shuffle;
use crate::profile::parse_quality;

/// Show a batch as the model sees it: a picture, a page, an array.
///
/// The pixels, captions and token ids are those of the loader's own batch, after the training transform
/// or, with --eval, the evaluation transform. Image files, and folders of them, take the same path, with
/// the captions of a .txt or .json beside each. Files that exist are replaced.
#[derive(Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    pub(super) data: InputArgs,

    #[command(flatten)]
    pub(super) lines: CaptionLinesArg,

    /// PNG to write: the images in a grid, with key, caption and tokens
    #[arg(long, default_value = "preview.png", value_name = "FILE")]
    pub(super) out: PathBuf,

    /// Write a page too: one file, to be opened in any browser
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,

    /// Write the pixels too, as NumPy array [B, 3, S, S] of u8, RGB, before normalisation
    #[arg(long, value_name = "FILE")]
    pub(super) npy: Option<PathBuf>,

    /// Evaluation transform (the whole image, resized), all captions, stored order
    #[arg(long)]
    pub(super) eval: bool,

    /// Take the `data` settings of a run: its config.toml, or a file of configs/; a tokenizer beside it is used
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// vocab.txt or tokenizer.json [default: none; token ids are not shown]
    #[arg(long, value_name = "FILE")]
    pub(super) tokenizer: Option<PathBuf>,

    /// Images per batch [default: 16; of image files all, up to 64]
    #[arg(long, value_name = "IMAGES")]
    pub(super) batch_size: Option<usize>,

    /// Which batch of the epoch, from 0; those before it are read, too
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub(super) batch: u64,

    /// Which epoch, from 0
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..1 << 32))]
    pub(super) epoch: u64,

    /// Seed of order, crops and captions [default: 42]
    #[arg(long)]
    pub(super) seed: Option<u64>,

    /// Side of the square images, pixels [default: 224]
    #[arg(long, value_name = "PIXELS")]
    pub(super) image_size: Option<usize>,

    /// Token ids per caption, padding included [default: 32]
    #[arg(long, value_name = "TOKENS")]
    pub(super) text_len: Option<usize>,

    /// How samples are shuffled: none, shards, buffer or full [default: buffer; none with --eval]
    #[arg(long, value_parser = parse_shuffle)]
    pub(super) shuffle: Option<ShuffleMode>,

    /// JPEG decoding in training: exact, balanced or fast [default: balanced]
    #[arg(long, value_name = "MODE", value_parser = parse_quality)]
    pub(super) decode_quality: Option<DecodeQuality>,

    /// Images side by side in the PNG [default: as many as make it about square]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) columns: Option<u32>,

    /// Print one JSON object: samples, captions, tokens, crops, where tiles are
    #[arg(long)]
    pub(super) json: bool,
}
