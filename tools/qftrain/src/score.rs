//! `qftrain score`: how well texts fit an image.

use anyhow::bail;
use qf_model::host::DeviceBatch;
use qf_pipeline::image_file::ImageReader;
use qf_pipeline::text::TokenRows;
use qftrain::args::ScoreArgs;
use serde_json::json;
use tch::Kind;

use crate::model_source::{load, ModelSource};
use qf_cli::output::say;

/// One text against the image.
struct Score {
    /// Probability of a match by the matching head.
    match_probability: f64,
    /// Cosine similarity of the text and the best of the image's queries.
    cosine: f64,
}

pub(crate) fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let model = ModelSource::open(&args.model.model)?;
    let data = model.config.data.clone();
    // What the user gave is looked at before the model is loaded.
    let pixels = ImageReader::new(&data)?.read(&args.image)?;
    let loaded = load(&args.model, model)?;
    let processor = loaded.caption_processor()?;
    let mut tokens = TokenRows::with_capacity(data.text_len, args.texts.len());
    for (number, text) in args.texts.iter().enumerate() {
        if processor.is_empty(text) {
            bail!(
                "text {} ({text:?}) is empty after the caption processor; give some words",
                number + 1
            );
        }
        tokens.push(&loaded.tokenizer, &processor.process(text))?;
    }
    let (model, device) = (&loaded.model, loaded.device);
    let DeviceBatch {
        images,
        token_ids,
        attention_mask,
        ..
    } = DeviceBatch::of(pixels.as_batch(), &tokens, device)?;
    let scores = tch::no_grad(|| {
        let embeds = model.encode_image(&images)?; // [1, M, E]
        let queries = model.image_features(&embeds)?.f_squeeze_dim(0)?; // [Q, d]
        let texts = model.text_features(&token_ids, &attention_mask)?; // [N, d]
        let cosine = texts.f_matmul(&queries.f_tr()?)?.f_amax(1, false)?; // [N]
        let index = token_ids.f_select(1, 0)?.f_zeros_like()?; // [N]
        let logits = model.itm_logits_of_pairs(&embeds, &index, &token_ids, &attention_mask)?;
        let numbers = |tensor: tch::Tensor| Vec::<f64>::try_from(tensor.f_to_kind(Kind::Double)?);
        let pairs = numbers(logits.match_probability()?)?
            .into_iter()
            .zip(numbers(cosine)?);
        Ok::<Vec<Score>, qf_model::ModelError>(
            pairs
                .map(|(match_probability, cosine)| Score {
                    match_probability,
                    cosine,
                })
                .collect(),
        )
    })?;
    let temperature = model.temperature()?;
    let image = args.image.display();
    if args.json {
        let scores: Vec<_> = args
            .texts
            .iter()
            .zip(&scores)
            .map(|(text, score)| {
                json!({
                    "text": text,
                    "itm_probability": score.match_probability,
                    "itc_cosine": score.cosine,
                    "itc_over_temperature": score.cosine / temperature,
                })
            })
            .collect();
        let image = image.to_string();
        let json = json!({"image": image, "step": loaded.step, "scores": scores});
        return say(format_args!("{json}"));
    }
    say(format_args!("{image}, model of {}", loaded.origin))?;
    say(format_args!(
        "{:>9} {:>10} {:>11}  text",
        "ITM match", "ITC cosine", "/ temp"
    ))?;
    for (text, score) in args.texts.iter().zip(&scores) {
        say(format_args!(
            "{:>8.1} % {:>9.4} {:>11.3}  {text}",
            100.0 * score.match_probability,
            score.cosine,
            score.cosine / temperature
        ))?;
    }
    Ok(())
}
