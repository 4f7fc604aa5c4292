use tch::Kind;

use super::*;
use crate::blip2::decode_tests::{opinionated, recomputed};

const SEP: i64 = 1;

fn beam(num_beams: usize, length_penalty: f64) -> GenerateConfig {
    GenerateConfig {
        strategy: Strategy::Beam {
            num_beams,
            length_penalty,
        },
        max_length: 8,
        ..GenerateConfig::default()
    }
}

fn sampling(top_p: f64, top_k: usize, temperature: f64, seed: u64) -> GenerateConfig {
    GenerateConfig {
        strategy: Strategy::Sample {
            top_p,
            top_k,
            temperature,
            seed,
        },
        max_length: 8,
        num_captions: 3,
        ..GenerateConfig::default()
    }
}

/// Log-probabilities of the token after `text` for one image, by a full pass.
fn next_log_probabilities(model: &Blip2Qformer, embeds: &Tensor, text: &[i64]) -> Vec<f64> {
    let ids = Tensor::from_slice(text).view([1, -1]);
    let logits = recomputed(model, embeds, &ids).to_kind(Kind::Double);
    Vec::try_from(logits.log_softmax(1, None).view(-1)).unwrap()
}

fn argmax(values: &[f64]) -> i64 {
    let best = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
    best.unwrap() as i64
}

/// The most probable token, again and again.
fn greedy(model: &Blip2Qformer, embeds: &Tensor, config: &GenerateConfig) -> Vec<i64> {
    let mut text = vec![model.config().qformer.dec_token_id];
    while text.len() < config.max_length {
        let mut scores = next_log_probabilities(model, embeds, &text);
        for (token, score) in scores.iter_mut().enumerate() {
            if text.contains(&(token as i64)) {
                *score *= config.repetition_penalty;
            }
        }
        if text.len() < config.min_length {
            scores[SEP as usize] = f64::NEG_INFINITY;
        }
        let next = argmax(&scores);
        if next == SEP {
            break;
        }
        text.push(next);
    }
    text.split_off(1)
}

#[test]
fn one_beam_is_greedy() {
    let (model, embeds) = opinionated(20);
    for (min_length, repetition_penalty) in [(1, 1.0), (6, 1.0), (1, 1.7), (8, 0.6)] {
        let config = GenerateConfig {
            min_length,
            repetition_penalty,
            ..beam(1, 1.0)
        };
        let got = generate(&model, &embeds, &config, SEP, 0).unwrap();
        assert_eq!(got.len(), 3);
        for (image, captions) in got.iter().enumerate() {
            let embeds = embeds.narrow(0, image as i64, 1);
            let expected = greedy(&model, &embeds, &config);
            assert_eq!(captions[0].token_ids, expected, "{config:?}");
            assert_eq!(captions.len(), 1);
        }
    }
}

/// Every text of at most `room` further tokens, with its log-probability: ended, or cut at the end.
fn all_texts(
    model: &Blip2Qformer,
    embeds: &Tensor,
    text: &mut Vec<i64>,
    log_probability: f64,
    max_length: usize,
    found: &mut Vec<(Vec<i64>, f64)>,
) {
    if text.len() == max_length {
        found.push((text.clone(), log_probability));
        return;
    }
    let scores = next_log_probabilities(model, embeds, text);
    for (token, score) in scores.iter().enumerate() {
        if token as i64 == SEP {
            found.push((text.clone(), log_probability + score));
            continue;
        }
        text.push(token as i64);
        all_texts(
            model,
            embeds,
            text,
            log_probability + score,
            max_length,
            found,
        );
        text.pop();
    }
}

#[test]
fn a_beam_of_everything_finds_the_best_texts_there_are() {
    let (model, embeds) = opinionated(5);
    let mut lengths = Vec::new();
    for image in 0..3 {
        let embeds = embeds.narrow(0, image, 1);
        let mut all = Vec::new();
        all_texts(&model, &embeds, &mut vec![4], 0.0, 4, &mut all);
        assert_eq!(all.len(), 1 + 4 + 16 + 64);
        for length_penalty in [0.0, 1.0, 3.0, -2.0] {
            let score = |(text, log_probability): &(Vec<i64>, f64)| {
                log_probability / (text.len() as f64).powf(length_penalty)
            };
            all.sort_by(|a, b| score(b).total_cmp(&score(a)));
            let config = GenerateConfig {
                max_length: 4,
                num_captions: 10,
                ..beam(100, length_penalty)
            };
            let got = generate(&model, &embeds, &config, SEP, 0).unwrap();
            for (got, expected) in got[0].iter().zip(&all) {
                assert_eq!(got.token_ids, expected.0[1..], "{length_penalty}");
                assert!((got.score - score(expected)).abs() < 1e-4);
            }
            lengths.push(got[0][0].token_ids.len());
        }
    }
    // The penalty is not idle: other lengths win.
    assert!(lengths.iter().any(|&length| length != lengths[0]));
}

#[test]
fn images_of_a_batch_do_not_meet() {
    let (model, embeds) = opinionated(20);
    for config in [beam(4, 1.0), sampling(0.9, 0, 1.0, 7)] {
        let together = generate(&model, &embeds, &config, SEP, 10).unwrap();
        for image in 0..3 {
            let alone = embeds.narrow(0, image as i64, 1);
            let alone = generate(&model, &alone, &config, SEP, 10 + image).unwrap();
            let texts = |captions: &[Generated]| -> Vec<Vec<i64>> {
                captions.iter().map(|c| c.token_ids.clone()).collect()
            };
            assert_eq!(texts(&alone[0]), texts(&together[image as usize]));
        }
    }
}

#[test]
fn sampling_narrows_to_the_greedy_text_and_follows_its_seed() {
    let (model, embeds) = opinionated(20);
    let texts = |config: &GenerateConfig| -> Vec<Vec<i64>> {
        let captions = generate(&model, &embeds, config, SEP, 0).unwrap();
        captions
            .into_iter()
            .flatten()
            .map(|c| c.token_ids)
            .collect()
    };
    let greedy = texts(&beam(1, 1.0));
    for narrow in [
        sampling(1e-9, 0, 1.0, 1),
        sampling(1.0, 1, 1.0, 2),
        sampling(1.0, 0, 1e-4, 3),
    ] {
        let sampled = texts(&narrow);
        assert_eq!(sampled.len(), 9);
        for (index, text) in sampled.iter().enumerate() {
            assert_eq!(text, &greedy[index / 3]);
        }
    }
    let wide = sampling(1.0, 0, 2.0, 4);
    assert_eq!(texts(&wide), texts(&wide));
    assert_ne!(texts(&wide), texts(&sampling(1.0, 0, 2.0, 5)));
    let all = texts(&wide);
    assert!(all[..3].iter().any(|text| text != &all[0]));
}

#[test]
fn draws_follow_the_probabilities_that_are_left() {
    use rand_chacha::rand_core::SeedableRng;
    let scores: Vec<f32> = [0.5f32, 0.05, 0.3, 0.15].map(f32::ln).into();
    let count = |top_p: f64, top_k: usize, temperature: f64| {
        let draw = sample::Draw {
            top_p,
            top_k,
            temperature,
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let mut counts = [0f64; 4];
        for _ in 0..20_000 {
            let (token, log_probability) = draw.draw(&scores, &mut rng).unwrap();
            assert!(log_probability <= 0.0);
            counts[token] += 1.0 / 20_000.0;
        }
        counts
    };
    // 0.5 + 0.3 reach 0.8: the third most probable token is out of 0.79 and in 0.81.
    for (top_p, top_k, temperature, expected) in [
        (1.0, 0, 1.0, [0.5, 0.05, 0.3, 0.15]),
        (0.79, 0, 1.0, [0.625, 0.0, 0.375, 0.0]),
        (0.81, 0, 1.0, [0.5263, 0.0, 0.3158, 0.1579]),
        (1.0, 2, 1.0, [0.625, 0.0, 0.375, 0.0]),
        (1.0, 0, 0.5, [0.6849, 0.0068, 0.2466, 0.0616]),
    ] {
        let counts = count(top_p, top_k, temperature);
        for (got, expected) in counts.iter().zip(expected) {
            // More than four standard deviations: √(0.25 / 20 000) = 0.0035.
            assert!((got - expected).abs() < 0.016, "{top_p}: {counts:?}");
        }
    }
    let none = sample::Draw {
        top_p: 1.0,
        top_k: 0,
        temperature: 1.0,
    };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    assert!(none
        .draw(&[f32::NAN, f32::NEG_INFINITY], &mut rng)
        .is_none());
}

#[test]
fn settings_out_of_range_are_named() {
    let (model, embeds) = opinionated(20);
    let default = GenerateConfig::default;
    let checks = [
        (
            "max_length",
            GenerateConfig {
                max_length: 13,
                ..default()
            },
        ),
        (
            "max_length",
            GenerateConfig {
                max_length: 1,
                ..default()
            },
        ),
        (
            "min_length",
            GenerateConfig {
                min_length: 9,
                ..beam(2, 1.0)
            },
        ),
        (
            "num_captions",
            GenerateConfig {
                num_captions: 3,
                ..beam(2, 1.0)
            },
        ),
        (
            "num_captions",
            GenerateConfig {
                num_captions: 0,
                ..beam(2, 1.0)
            },
        ),
        ("num_beams", beam(0, 1.0)),
        ("length_penalty", beam(2, f64::NAN)),
        (
            "repetition_penalty",
            GenerateConfig {
                repetition_penalty: 0.0,
                ..beam(2, 1.0)
            },
        ),
        ("top_p", sampling(0.0, 0, 1.0, 1)),
        ("top_p", sampling(1.5, 0, 1.0, 1)),
        ("temperature", sampling(0.5, 0, 0.0, 1)),
    ];
    for (setting, config) in checks {
        let error = generate(&model, &embeds, &config, SEP, 0).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("`{setting}`")), "{message}");
    }
    assert!(generate(&model, &embeds, &beam(2, 1.0), 20, 0).is_err());
}
