//! What is shown, in words.

use qf_pipeline::augment::ImageTransform;
use qf_pipeline::config::Processing;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::words::counted;

use super::request::Request;
use super::shown::Shown;

/// What is shown, in one line.
pub(super) fn title(request: &Request, shown: &Shown) -> String {
    let Request {
        config,
        epoch,
        batch,
        ..
    } = request;
    let transform = match config.processing {
        Processing::Train => format!("training transform, seed {}", config.seed),
        Processing::Eval => "evaluation transform".to_string(),
    };
    format!(
        "{}, {2} × {2} pixels, batch {batch} of epoch {epoch}, {1}",
        shown.origin,
        transform,
        shown.image_size()
    )
}

/// How the batch came to be, for people.
pub(super) fn facts(request: &Request, shown: &Shown) -> Vec<(&'static str, String)> {
    let config = &request.config;
    let size = config.image_size;
    let transform = match config.image_transform() {
        ImageTransform::Eval { .. } => "evaluation: the whole image, resized".to_string(),
        ImageTransform::Train {
            scale,
            ratio,
            flip_probability,
            ..
        } => format!(
            "training: a random crop of {:.0} to {:.0} % of the area, width / height {:.2} to {:.2}; \
             {:.0} % mirrored",
            100.0 * scale.0,
            100.0 * scale.1,
            ratio.0,
            ratio.1,
            100.0 * flip_probability
        ),
    };
    let tokenizer = match &request.tokenizer {
        Some(path) => path.display().to_string(),
        None => "none (token ids need --tokenizer)".to_string(),
    };
    let mut facts = vec![
        ("transform", transform),
        ("size", format!("{size} × {size} pixels")),
        ("batch", request.batch.to_string()),
        ("epoch", request.epoch.to_string()),
        ("seed", config.seed.to_string()),
        (
            "decoding",
            quality_name(config.effective_decode_quality()).to_string(),
        ),
        (
            "captions",
            format!(
                "{} token ids, {} words at most",
                config.text_len, config.max_words
            ),
        ),
        ("tokenizer", tokenizer),
    ];
    // Files are shown in the order in which they were given.
    if shown.samples.iter().any(|sample| sample.shard.is_some()) {
        facts.push(("shuffle", config.shuffle.name().to_string()));
    }
    facts
}

fn quality_name(quality: DecodeQuality) -> &'static str {
    match quality {
        DecodeQuality::Exact => "exact",
        DecodeQuality::Balanced => "balanced",
        DecodeQuality::Fast => "fast",
    }
}

/// How many samples are missing from what is shown.
pub(super) fn passed_over(count: u64) -> String {
    let samples = counted(count, "bad sample was", "bad samples were");
    format!("{samples} passed over")
}
