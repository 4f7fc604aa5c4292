//! `qftrain search`: the images of a file of embeddings that are most like a text.

use std::cmp::Ordering;

use anyhow::bail;
use qftrain::args::SearchArgs;
use serde_json::json;

use crate::embed::{embed_texts, Embeddings, ImageRow};
use crate::model_source::{load, ModelSource};
use qf_cli::output::{remark, say};

/// An image and how like the text it is.
struct Found {
    cosine: f32,
    shard: String,
    key: String,
}

pub(crate) fn run(args: &SearchArgs) -> anyhow::Result<()> {
    let embeddings = Embeddings::open(&args.embeddings)?;
    let loaded = load(&args.model, ModelSource::open(&args.model.model)?)?;
    let features = embed_texts(&loaded, &args.texts)?; // [N, d]
    let features = Vec::<Vec<f32>>::try_from(features.f_to_kind(tch::Kind::Float)?)?;
    let width = features.first().map_or(0, Vec::len);
    if width != embeddings.shape[1] {
        bail!(
            "{}: its embeddings have {} numbers, the model's {width}; embed the images with this model",
            args.embeddings.display(),
            embeddings.shape[1]
        );
    }
    if let Some(model) = embeddings
        .model
        .as_ref()
        .filter(|model| **model != loaded.origin)
    {
        remark(format_args!(
            "{}: made by the model of {model}, and searched with that of {}",
            args.embeddings.display(),
            loaded.origin
        ));
    }
    let mut best: Vec<Best> = features
        .iter()
        .map(|_| Best::new(args.top as usize))
        .collect();
    embeddings.for_each(&mut |row| {
        for (text, best) in features.iter().zip(&mut best) {
            best.offer(similarity(&row, text), &row);
        }
        Ok(())
    })?;
    for (text, best) in args.texts.iter().zip(best) {
        print(args, text, &best.finish(), embeddings.rows)?;
    }
    Ok(())
}

/// The greatest cosine of a text with an image's queries.
fn similarity(image: &ImageRow, text: &[f32]) -> f32 {
    let queries = image.values.chunks_exact(text.len());
    let cosines = queries.map(|query| query.iter().zip(text).map(|(a, b)| a * b).sum::<f32>());
    cosines.fold(f32::NEG_INFINITY, f32::max)
}

/// The best so far, in a list that is cut whenever it is twice as long as wanted.
struct Best {
    wanted: usize,
    found: Vec<Found>,
    /// What is worse than this is among no best.
    least: f32,
}

impl Best {
    fn new(wanted: usize) -> Best {
        Best {
            wanted,
            found: Vec::new(),
            least: f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, cosine: f32, row: &ImageRow) {
        if cosine.is_nan() || (self.found.len() >= self.wanted && cosine <= self.least) {
            return;
        }
        self.found.push(Found {
            cosine,
            shard: row.shard.clone(),
            key: row.key.clone(),
        });
        if self.found.len() >= 2 * self.wanted {
            self.cut();
        }
    }

    /// Stable: of equal ones, the earlier stays first.
    fn cut(&mut self) {
        let order =
            |a: &Found, b: &Found| b.cosine.partial_cmp(&a.cosine).unwrap_or(Ordering::Equal);
        self.found.sort_by(order);
        self.found.truncate(self.wanted);
        if self.found.len() == self.wanted {
            self.least = self
                .found
                .last()
                .map_or(f32::NEG_INFINITY, |found| found.cosine);
        }
    }

    fn finish(mut self) -> Vec<Found> {
        self.cut();
        self.found
    }
}

fn print(args: &SearchArgs, text: &str, found: &[Found], of: usize) -> anyhow::Result<()> {
    if args.json {
        let images: Vec<_> = found
            .iter()
            .map(
                |found| json!({"shard": found.shard, "key": found.key, "itc_cosine": found.cosine}),
            )
            .collect();
        return say(format_args!("{}", json!({"text": text, "images": images})));
    }
    say(format_args!("{text} (of {of} images)"))?;
    for Found { cosine, shard, key } in found {
        match shard.is_empty() {
            true => say(format_args!("{cosine:>9.4}  {key}"))?,
            false => say(format_args!("{cosine:>9.4}  {shard}#{key}"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_found_in_any_order() {
        let row = |key: usize| ImageRow {
            shard: String::new(),
            key: key.to_string(),
            values: Vec::new(),
        };
        for wanted in [1, 3, 10, 500] {
            let mut best = Best::new(wanted);
            let cosine = |key: usize| (key * 7919 % 101) as f32 / 101.0;
            for key in 0..101 {
                best.offer(cosine(key), &row(key));
            }
            best.offer(f32::NAN, &row(200));
            let mut expected: Vec<usize> = (0..101).collect();
            expected.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
            expected.truncate(wanted);
            let found = best.finish();
            let found: Vec<usize> = found.iter().map(|f| f.key.parse().unwrap()).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_image_is_as_like_a_text_as_its_best_query() {
        let image = ImageRow {
            shard: String::new(),
            key: String::new(),
            values: vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0],
        };
        assert_eq!(similarity(&image, &[0.6, 0.8]), 0.8);
        assert_eq!(similarity(&image, &[-1.0, 0.0]), 1.0);
    }
}
