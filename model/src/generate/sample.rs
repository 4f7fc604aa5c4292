//! Sampling: temperature, top-k, top-p, in the order of transformers' logits warpers.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::config::GenerateConfig;
use super::rules::{apply_rules, last_tokens, Generated};
use crate::blip2::Blip2Qformer;
use crate::error::ModelError;

/// From which tokens is drawn.
pub(super) struct Draw {
    pub(super) top_p: f64,
    pub(super) top_k: usize,
    pub(super) temperature: f64,
}

impl Draw {
    /// Draws from scores `[V]`; returns the token and its log-probability among those it was drawn
    /// from. `None` when no token has a finite score.
    pub(super) fn draw(&self, scores: &[f32], rng: &mut ChaCha8Rng) -> Option<(usize, f64)> {
        let mut candidates: Vec<(usize, f64)> = scores
            .iter()
            .enumerate()
            .map(|(token, &score)| (token, f64::from(score) / self.temperature))
            .filter(|(_, score)| score.is_finite())
            .collect();
        // Equal scores in the order of ids, whatever the sort does.
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            candidates.truncate(self.top_k);
        }
        let best = candidates.first()?.1;
        for candidate in &mut candidates {
            candidate.1 = (candidate.1 - best).exp();
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        // The fewest tokens whose probability reaches top_p: one that begins beyond it is out.
        let mut reached = 0.0;
        let kept = candidates
            .iter()
            .take_while(|(_, weight)| {
                let before = reached;
                reached += weight / total;
                before < self.top_p
            })
            .count();
        candidates.truncate(kept.max(1));
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        // 53 bits: uniform in [0, 1).
        let uniform = (rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
        let mut left = uniform * total;
        let drawn = candidates.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        let &(token, weight) = drawn.or(candidates.last())?;
        Some((token, (weight / total).ln()))
    }
}

pub(super) fn sample(
    model: &Blip2Qformer,
    image_embeds: &Tensor,
    config: &GenerateConfig,
    draw: &Draw,
    seed: u64,
    sep_token_id: i64,
    first_image: u64,
) -> Result<Vec<Vec<Generated>>, ModelError> {
    let copies = config.num_captions;
    let mut cache = model.start_decoding(image_embeds, copies as i64)?;
    let rows = cache.rows() as usize;
    let mut texts = vec![vec![model.config().qformer.dec_token_id]; rows];
    let mut log_probabilities = vec![0.0; rows];
    let mut ended = vec![false; rows];
    let mut generators: Vec<ChaCha8Rng> = (0..rows)
        .map(|row| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            // A stream of its own for each caption: neither batch nor neighbours matter.
            generator.set_stream((first_image << 16).wrapping_add(stream(row, copies)));
            generator
        })
        .collect();
    for _ in 1..config.max_length {
        let logits = model.decode_next(&last_tokens(&texts, image_embeds)?, &mut cache)?; // [R, V]
        let scores = apply_rules(logits.f_to_kind(Kind::Float)?, &texts, config, sep_token_id)?;
        let scores = Vec::<Vec<f32>>::try_from(scores)?;
        for (row, scores) in scores.iter().enumerate() {
            let drawn = match ended[row] {
                true => None,
                false => draw.draw(scores, &mut generators[row]),
            };
            match drawn {
                Some((token, log_probability)) => {
                    log_probabilities[row] += log_probability;
                    texts[row].push(token as i64);
                    ended[row] = token as i64 == sep_token_id;
                }
                // All rows stay of one length; what follows the end is not read.
                None => {
                    texts[row].push(sep_token_id);
                    ended[row] = true;
                }
            }
        }
        if ended.iter().all(|&ended| ended) {
            break;
        }
    }
    let mut captions = texts
        .into_iter()
        .zip(log_probabilities)
        .map(|(text, score)| {
            let body = text.get(1..).unwrap_or_default().iter();
            Generated {
                token_ids: body.copied().take_while(|&id| id != sep_token_id).collect(),
                score,
            }
        });
    let images = rows / copies.max(1);
    Ok((0..images)
        .map(|_| captions.by_ref().take(copies).collect())
        .collect())
}

/// Image of the batch in the upper bits, its caption in the lower 16.
fn stream(row: usize, copies: usize) -> u64 {
    let (image, copy) = (row / copies.max(1), row % copies.max(1));
    ((image as u64) << 16) | copy as u64
}
