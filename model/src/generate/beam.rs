//! Beam search, as transformers' `beam_search` with a `BeamSearchScorer` does it.

use qf_config::model::QformerConfig;
use tch::{Kind, Tensor};

use super::config::GenerateConfig;
use super::rules::{apply_rules, last_tokens, log_probabilities, Generated};
use crate::blip2::Blip2Qformer;
use crate::error::ModelError;

/// Score of the beams that an image has not begun yet: all but the first, which is `[DEC]` alone.
const NOT_BEGUN: f64 = -1e9;

/// The finished texts of one image, best first, at most as many as there are beams.
struct Finished {
    texts: Vec<Generated>,
    room: usize,
    length_penalty: f64,
    done: bool,
}

impl Finished {
    /// `text` begins with `[DEC]`.
    fn add(&mut self, text: &[i64], log_probability: f64) {
        let score = log_probability / (text.len() as f64).powf(self.length_penalty);
        let at = self.texts.partition_point(|other| other.score >= score);
        let token_ids = text.get(1..).unwrap_or_default().to_vec();
        self.texts.insert(at, Generated { token_ids, score });
        self.texts.truncate(self.room);
    }

    /// Whether no text under way, the best of which has `best` as log-probability at `length`, is
    /// expected to beat those that are finished.
    fn is_complete(&self, best: f64, length: usize) -> bool {
        // One beam is greedy search: the first end is the end.
        if self.room == 1 && !self.texts.is_empty() {
            return true;
        }
        let Some(worst) = self.texts.last().filter(|_| self.texts.len() >= self.room) else {
            return false;
        };
        worst.score >= best / (length as f64).powf(self.length_penalty)
    }
}

/// Texts under way, `num_beams` an image, and those that are finished.
struct Beams {
    num_beams: usize,
    vocab_size: i64,
    sep_token_id: i64,
    /// `[R]`, R = images × beams: the tokens of each text, and its log-probability.
    texts: Vec<Vec<i64>>,
    scores: Vec<f64>,
    /// Of each image.
    finished: Vec<Finished>,
}

impl Beams {
    fn new(
        sizes: &QformerConfig,
        (images, num_beams): (usize, usize),
        length_penalty: f64,
        sep_token_id: i64,
    ) -> Beams {
        let begun = |row: usize| {
            if row.is_multiple_of(num_beams) {
                0.0
            } else {
                NOT_BEGUN
            }
        };
        let finished = || Finished {
            texts: Vec::new(),
            room: num_beams,
            length_penalty,
            done: false,
        };
        Beams {
            num_beams,
            vocab_size: sizes.vocab_size,
            sep_token_id,
            texts: vec![vec![sizes.dec_token_id]; images * num_beams],
            scores: (0..images * num_beams).map(begun).collect(),
            finished: (0..images).map(|_| finished()).collect(),
        }
    }

    /// Goes on with the best candidates of each image, `[B][candidates]`: log-probabilities, and indices
    /// into `[beams · V]`. Gives the row that each text continues.
    fn extend(&mut self, best: &[Vec<f64>], indices: &[Vec<i64>], length: usize) -> Vec<i64> {
        let mut next_texts = Vec::with_capacity(self.texts.len());
        let mut next_scores = Vec::with_capacity(self.texts.len());
        let mut kept_rows = Vec::with_capacity(self.texts.len());
        for (image, finished) in self.finished.iter_mut().enumerate() {
            let first_row = image * self.num_beams;
            let candidates = best[image].iter().zip(&indices[image]);
            let before = next_texts.len();
            for (rank, (&score, &index)) in candidates.enumerate() {
                let full = next_texts.len() - before == self.num_beams;
                if finished.done || full || score < NOT_BEGUN / 2.0 {
                    break;
                }
                let row = first_row + (index / self.vocab_size) as usize;
                let token = index % self.vocab_size;
                if token == self.sep_token_id {
                    // An end among the lesser half of the candidates is no result of the beam.
                    if rank < self.num_beams {
                        finished.add(&self.texts[row], score);
                    }
                    continue;
                }
                next_texts.push([&self.texts[row][..], &[token]].concat());
                next_scores.push(score);
                kept_rows.push(row as i64);
            }
            // Rows of a finished image, and of a vocabulary smaller than the beam, go on unread.
            while next_texts.len() - before < self.num_beams {
                next_texts.push([&self.texts[first_row][..], &[self.sep_token_id]].concat());
                next_scores.push(f64::NEG_INFINITY);
                kept_rows.push(first_row as i64);
            }
            let top = best[image].first().copied().unwrap_or(f64::NEG_INFINITY);
            finished.done |= finished.is_complete(top, length + 1);
        }
        (self.texts, self.scores) = (next_texts, next_scores);
        kept_rows
    }

    /// The best texts of each image; those under way count where the length ran out.
    fn into_captions(mut self, num_captions: usize) -> Vec<Vec<Generated>> {
        for (image, finished) in self.finished.iter_mut().enumerate() {
            if finished.done {
                continue;
            }
            let rows = image * self.num_beams..(image + 1) * self.num_beams;
            for (text, &score) in self.texts[rows.clone()].iter().zip(&self.scores[rows]) {
                if score > NOT_BEGUN / 2.0 {
                    finished.add(text, score);
                }
            }
        }
        let captions = self.finished.into_iter().map(|mut finished| {
            finished.texts.truncate(num_captions);
            finished.texts
        });
        captions.collect()
    }
}

pub(super) fn search(
    model: &Blip2Qformer,
    image_embeds: &Tensor,
    config: &GenerateConfig,
    num_beams: usize,
    length_penalty: f64,
    sep_token_id: i64,
) -> Result<Vec<Vec<Generated>>, ModelError> {
    let mut cache = model.start_decoding(image_embeds, num_beams as i64)?;
    let sizes = &model.config().qformer;
    let images = cache.rows() as usize / num_beams;
    let mut beams = Beams::new(sizes, (images, num_beams), length_penalty, sep_token_id);
    // Twice as many candidates as beams: even if half of them end, the beams go on.
    let num_candidates = (2 * num_beams as i64).min(num_beams as i64 * sizes.vocab_size);

    for length in 1..config.max_length {
        let last = last_tokens(&beams.texts, image_embeds)?;
        let logits = model.decode_next(&last, &mut cache)?; // [R, V]
        let next = log_probabilities(&logits)?;
        let next = apply_rules(next, &beams.texts, config, sep_token_id)?;
        let so_far = Tensor::f_from_slice(&beams.scores)?
            .f_to_device(next.device())?
            .f_unsqueeze(1)?; // [R, 1]
        let totals = next
            .f_to_kind(Kind::Double)?
            .f_add(&so_far)?
            .f_view([images as i64, -1])?; // [B, beams · V]
        let (best, indices) = totals.f_topk(num_candidates, 1, true, true)?;
        let best = Vec::<Vec<f64>>::try_from(best)?;
        let indices = Vec::<Vec<i64>>::try_from(indices)?;
        let kept_rows = beams.extend(&best, &indices, length);
        if beams.finished.iter().all(|finished| finished.done) {
            break;
        }
        cache.select(&Tensor::f_from_slice(&kept_rows)?.f_to_device(image_embeds.device())?)?;
    }
    Ok(beams.into_captions(config.num_captions))
}
