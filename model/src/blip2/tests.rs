//! A step on small networks, every way of computing it.

use qf_config::model::{FeaturesConfig, QformerConfig, VisionConfig, VitConfig};

use super::*;
use crate::collective::SingleProcess;

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn config(queries: i64, layers: i64, freq: i64) -> ModelConfig {
    ModelConfig {
        vision: VisionConfig::Features(FeaturesConfig { width: 12 }),
        qformer: QformerConfig {
            hidden: 16,
            layers,
            heads: 2,
            intermediate: 20,
            cross_attention_freq: freq,
            num_queries: queries,
            encoder_width: 12,
            vocab_size: 40,
            max_positions: 10,
            embed_dim: 8,
            dec_token_id: 39,
            dropout: 0.1,
            ..ModelConfig::tiny().qformer
        },
    }
}

/// Image features, ids of `tokens` tokens and padding, and mask.
fn batch(batch: i64, length: i64, tokens: i64) -> (Tensor, Tensor, Tensor) {
    let images = Tensor::randn([batch, 5, 12], OPTIONS);
    let mask = Tensor::zeros([batch, length], (Kind::Int64, Device::Cpu));
    let _ = mask.narrow(1, 0, tokens).fill_(1);
    let ids = Tensor::randint_low(1, 38, [batch, length], (Kind::Int64, Device::Cpu)) * &mask;
    (images, ids, mask)
}

fn step<'a>(images: &'a Tensor, ids: &'a Tensor, mask: &'a Tensor) -> StepInput<'a> {
    StepInput {
        image_embeds: images,
        token_ids: ids,
        attention_mask: mask,
        image_ids: None,
    }
}

fn run(model: &Blip2Qformer, input: &StepInput<'_>) -> Result<StepOutput, ModelError> {
    model.forward_losses(input, NegativeSampling::Multinomial, &SingleProcess, true)
}

#[test]
fn any_sizes_give_finite_losses_and_a_gradient_everywhere() {
    for (b, queries, layers, freq, length) in [
        (2, 1, 1, 1, 2),
        (2, 3, 2, 2, 10),
        (5, 4, 3, 1, 7),
        (3, 2, 4, 3, 4),
    ] {
        let model = Blip2Qformer::new(&config(queries, layers, freq), Device::Cpu, 1).unwrap();
        let (images, ids, mask) = batch(b, length, length.min(6));
        let images = model.encode_image(&images).unwrap();
        let output = run(&model, &step(&images, &ids, &mask)).unwrap();
        assert!(output.loss.double_value(&[]).is_finite());
        assert_eq!(output.sim_i2t.size(), [b, b]);
        assert_eq!(output.itm_logits.size(), [3 * b, 2]);
        let drawn = Vec::<i64>::try_from(&output.negative_image_idx).unwrap();
        assert!(drawn
            .iter()
            .enumerate()
            .all(|(row, &index)| index != row as i64));
        output.loss.backward();
        for param in model.params().named_parameters() {
            assert!(param.tensor.grad().defined(), "{}", param.name);
        }
    }
}

/// A tower of one layer for images of 8 × 8.
fn vit(trainable: bool) -> VitConfig {
    VitConfig {
        image_size: 8,
        patch_size: 4,
        width: 12,
        depth: 1,
        heads: 2,
        mlp: 16,
        trainable,
        drop_path: 0.0,
        checkpoint_activations: false,
    }
}

#[test]
fn frozen_towers_get_no_gradient_and_trainable_ones_do() {
    for trainable in [false, true] {
        let mut config = config(2, 1, 1);
        config.vision = VisionConfig::Eva(vit(trainable));
        let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
        let pixels = Tensor::randn([2, 3, 8, 8], OPTIONS);
        let (_, ids, mask) = batch(2, 5, 4);
        let images = model.encode_image(&pixels).unwrap();
        assert_eq!(images.size(), [2, 5, 12]);
        run(&model, &step(&images, &ids, &mask))
            .unwrap()
            .loss
            .backward();
        for param in model.params().named_parameters() {
            let expected = trainable || !param.name.starts_with("visual_encoder.");
            assert_eq!(param.trainable, expected, "{}", param.name);
            assert_eq!(param.tensor.grad().defined(), expected, "{}", param.name);
        }
    }
}

#[test]
fn rows_of_one_image_are_no_negatives_of_each_other() {
    let model = Blip2Qformer::new(&config(2, 1, 1), Device::Cpu, 1).unwrap();
    let (images, ids, mask) = batch(4, 5, 4);
    let image_ids = Tensor::from_slice(&[7i64, 8, 7, 9]);
    let input = StepInput {
        image_ids: Some(&image_ids),
        ..step(&images, &ids, &mask)
    };
    let output = run(&model, &input).unwrap();
    for weights in [&output.weights_i2t, &output.weights_t2i] {
        for (row, column) in [(0, 0), (0, 2), (2, 0), (1, 1), (3, 3)] {
            assert_eq!(weights.double_value(&[row, column]), 0.0);
        }
        assert!(weights.double_value(&[1, 0]) > 0.0);
    }
    assert!(output.loss.double_value(&[]).is_finite());
}

#[test]
fn inference_equals_the_passes_of_a_step() {
    let model = Blip2Qformer::new(&config(3, 2, 2), Device::Cpu, 1).unwrap();
    let (images, ids, mask) = batch(3, 6, 4);
    let input = step(&images, &ids, &mask);
    let output = model
        .forward_losses(&input, NegativeSampling::Multinomial, &SingleProcess, false)
        .unwrap();
    let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-6, false), "{a} {b}");
    let image_feats = model.image_features(&images).unwrap();
    close(&image_feats, &output.image_feats);
    close(
        &model.text_features(&ids, &mask).unwrap(),
        &output.text_feat,
    );
    let matched = output.itm_logits.narrow(0, 0, 3);
    close(
        model.itm_logits(&images, &ids, &mask).unwrap().both(),
        &matched,
    );
    assert!(!image_feats.requires_grad());
    let norms = image_feats
        .square()
        .sum_dim_intlist([2i64].as_slice(), false, None);
    close(&norms, &norms.ones_like());
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let model = Blip2Qformer::new(&config(2, 1, 1), Device::Cpu, 1).unwrap();
    let (images, ids, mask) = batch(3, 5, 4);
    let check = |images: &Tensor, ids: &Tensor, mask: &Tensor, message: &str| {
        let error = run(&model, &step(images, ids, mask))
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    };
    let floats = |shape: &[i64]| Tensor::zeros(shape, OPTIONS);
    let ints = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int64, Device::Cpu));
    check(
        &floats(&[3, 5, 13]),
        &ids,
        &mask,
        "image features: expected shape [B, M, 12]",
    );
    check(&floats(&[3, 0, 12]), &ids, &mask, "B, M > 0");
    check(&ints(&[3, 5, 12]), &ids, &mask, "floating-point elements");
    check(
        &images,
        &ids.to_kind(Kind::Int),
        &mask,
        "64-bit integer elements",
    );
    check(
        &images,
        &ints(&[2, 5]),
        &ints(&[2, 5]),
        "3 images but 2 texts",
    );
    check(&images, &ids, &ints(&[3, 4]), "attention mask");
    check(
        &images,
        &ints(&[3, 11]),
        &ints(&[3, 11]),
        "max_positions = 10",
    );
    check(&images, &ints(&[3, 0]), &ints(&[3, 0]), "T from 1");
    check(&images, &ints(&[3, 1]), &ints(&[3, 1]), "2 or more");
    check(&images, &(&ids + 40), &mask, "libtorch: ");
    let one = |t: &Tensor| t.narrow(0, 0, 1);
    check(&one(&images), &one(&ids), &one(&mask), "batch of 2 or more");

    let (near, far) = (ints(&[3]), &ints(&[3]) + 3);
    for (image_idx, text_idx) in [(&far, &near), (&near, &far), (&ids, &near)] {
        let negatives = NegativeSampling::Given {
            image_idx,
            text_idx,
        };
        let input = step(&images, &ids, &mask);
        assert!(model
            .forward_losses(&input, negatives, &SingleProcess, true)
            .is_err());
    }
}

/// Numbers in [-1, 1] that no other test's draws change: torch's generator is one for all.
fn waves(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, OPTIONS) * 1.7).sin().view(shape)
}

/// Losses and gradients by parameter under `compute`, texts of 3, 6, 2 and 5 tokens; the second
/// tower is trained.
fn losses_and_gradients(
    compute: ComputeOptions,
    trainable: bool,
    products: Option<Kind>,
) -> (Vec<f64>, Vec<(String, Tensor)>) {
    let mut config = config(3, 3, 2);
    config.qformer.dropout = 0.0;
    config.vision = VisionConfig::Small(vit(trainable));
    let mut model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
    model.set_compute(compute);
    if let Some(kind) = products {
        model.multiply_in(kind).unwrap();
    }
    // Gain and shift of ln_vision away from 1 and 0, so that folding them in shows.
    tch::no_grad(|| {
        for name in ["ln_vision.weight", "ln_vision.bias"] {
            let mut param = model.params().get(name).unwrap().tensor.shallow_clone();
            let offset = Tensor::linspace(-0.5, 0.8, 12, OPTIONS);
            let _ = param.f_add_(&offset).unwrap();
        }
    });
    let pixels = waves(&[4, 3, 8, 8]);
    let ids = (Tensor::arange(28, (Kind::Int64, Device::Cpu)) * 11)
        .remainder(37)
        .view([4, 7])
        + 1;
    let columns = Tensor::arange(7, (Kind::Int64, Device::Cpu));
    let tokens = Tensor::from_slice(&[3i64, 6, 2, 5]).view([4, 1]);
    let mask = columns.lt_tensor(&tokens).to_kind(Kind::Int64);
    let ids = ids * &mask;
    let (image_idx, text_idx) = (
        Tensor::from_slice(&[1i64, 0, 3, 1]),
        Tensor::from_slice(&[2i64, 2, 1, 0]),
    );
    let images = model.encode_image(&pixels).unwrap();
    let input = step(&images, &ids, &mask);
    let negatives = NegativeSampling::Given {
        image_idx: &image_idx,
        text_idx: &text_idx,
    };
    let output = model
        .forward_losses(&input, negatives, &SingleProcess, true)
        .unwrap();
    output.loss.backward();
    let losses = [
        &output.loss,
        &output.loss_itc,
        &output.loss_itm,
        &output.loss_lm,
    ];
    let params = model.params().trainable();
    (
        losses.map(|loss| loss.double_value(&[])).to_vec(),
        params.map(|p| (p.name.clone(), p.tensor.grad())).collect(),
    )
}

/// Largest errors of losses and of gradients, of each parameter against its largest entry.
fn same(
    (losses, gradients): &(Vec<f64>, Vec<(String, Tensor)>),
    (expected, expected_gradients): &(Vec<f64>, Vec<(String, Tensor)>),
    [tolerance, gradient_tolerance]: [f64; 2],
    what: &str,
) {
    for (got, expected) in losses.iter().zip(expected) {
        let error = (got - expected).abs();
        assert!(
            error <= tolerance * expected.abs(),
            "{what}: {got} {expected}"
        );
    }
    for ((name, got), (_, expected)) in gradients.iter().zip(expected_gradients) {
        let largest = expected.abs().max().double_value(&[]);
        let error = (got - expected).abs().max().double_value(&[]);
        assert!(
            error <= gradient_tolerance * largest + 1e-2 * gradient_tolerance,
            "{name}: {error} of {largest}, {what}"
        );
    }
}

#[test]
fn leaving_out_rows_changes_neither_losses_nor_gradients() {
    for trainable in [false, true] {
        let all = losses_and_gradients(ComputeOptions::ALL_ROWS, trainable, None);
        for (skip_padding, skip_unread) in [(true, false), (false, true), (true, true)] {
            let compute = ComputeOptions {
                skip_padding,
                skip_unread,
            };
            let what = format!("{compute:?}");
            let got = losses_and_gradients(compute, trainable, None);
            same(&got, &all, [1e-6, 1e-5], &what);
            // What a GPU computes: joint products, texts with their padding. In 32 bits to the
            // last digits, though sums have another order; in 16 near.
            let got = losses_and_gradients(compute, trainable, Some(Kind::Float));
            same(&got, &all, [1e-6, 3e-5], &format!("{what}, joint products"));
            let got = losses_and_gradients(compute, trainable, Some(Kind::BFloat16));
            same(&got, &all, [1e-2, 0.1], &format!("{what}, bf16"));
        }
    }
}

#[test]
fn recomputing_the_tower_changes_no_gradient() {
    for vision in [VisionConfig::Small, VisionConfig::Eva, VisionConfig::Clip] {
        let gradients = |checkpoint_activations: bool| {
            let mut config = config(2, 1, 1);
            config.qformer.dropout = 0.0;
            config.vision = vision(VitConfig {
                image_size: 8,
                patch_size: 4,
                width: 12,
                depth: 3,
                heads: 2,
                mlp: 16,
                trainable: true,
                drop_path: 0.0,
                checkpoint_activations,
            });
            let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
            // With two pairs the negatives are certain.
            let pixels = waves(&[2, 3, 8, 8]);
            let ids = Tensor::from_slice2(&[[3i64, 4, 5, 6, 0], [3, 7, 9, 6, 0]]);
            let mask = ids.ne(0).to_kind(Kind::Int64);
            let images = model.encode_training_image(&pixels).unwrap();
            let output = run(&model, &step(&images.features, &ids, &mask)).unwrap();
            output.loss.backward();
            model.finish_backward(&images).unwrap();
            let params = model.params().trainable();
            let gradients: Vec<_> = params.map(|p| (p.name.clone(), p.tensor.grad())).collect();
            (output.loss.double_value(&[]), gradients)
        };
        let (plain, recomputed) = (gradients(false), gradients(true));
        assert_eq!(plain.0, recomputed.0);
        for ((name, a), (_, b)) in plain.1.iter().zip(&recomputed.1) {
            assert!(a.allclose(b, 1e-4, 1e-7, false), "{name}");
        }
    }
}

#[test]
fn switches_away_from_the_reference() {
    let losses = |change: &dyn Fn(&mut QformerConfig)| {
        let mut config = config(2, 1, 1);
        config.qformer.dropout = 0.0;
        change(&mut config.qformer);
        let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
        let images = waves(&[4, 5, 12]);
        // Texts 0 and 2 are the same.
        let ids = [
            [3i64, 4, 5, 6, 0],
            [3, 7, 9, 6, 0],
            [3, 4, 5, 6, 0],
            [3, 8, 8, 6, 0],
        ];
        let ids = Tensor::from_slice2(&ids);
        let mask = ids.ne(0).to_kind(Kind::Int64);
        model.clamp_temperature().unwrap();
        let images = model.encode_image(&images).unwrap();
        let output = run(&model, &step(&images, &ids, &mask)).unwrap();
        output.loss_itc.backward();
        let query_grad = model
            .params()
            .get("vision_proj.weight")
            .unwrap()
            .tensor
            .grad();
        (output, query_grad, model.temperature().unwrap())
    };
    let (plain, plain_grad, temp) = losses(&|_| {});
    assert!((temp - 0.07).abs() < 1e-6);
    assert!(plain.weights_i2t.double_value(&[0, 2]) > 0.0);
    let (excluded, _, _) = losses(&|c| c.exclude_equal_texts = true);
    for weights in [&excluded.weights_i2t, &excluded.weights_t2i] {
        assert_eq!(weights.double_value(&[0, 2]), 0.0);
        assert_eq!(weights.double_value(&[2, 0]), 0.0);
        assert!(weights.double_value(&[0, 1]) > 0.0);
    }
    assert_eq!(excluded.loss_itc, plain.loss_itc);
    let (both_sides, grad, _) = losses(&|c| c.itc_gather_gradient = true);
    assert_eq!(both_sides.loss_itc, plain.loss_itc);
    assert!(!grad.allclose(&plain_grad, 1e-3, 1e-9, false));
    let (_, _, temp) = losses(&|c| c.temp_range = Some([0.1, 0.5]));
    assert!((temp - 0.1).abs() < 1e-6);
}

#[test]
fn masks_that_are_no_plain_padding_are_computed_in_full() {
    let model = Blip2Qformer::new(&config(2, 2, 1), Device::Cpu, 1).unwrap();
    let ids = Tensor::from_slice2(&[[5i64, 6, 7, 0], [5, 6, 0, 0]]);
    let lengths = |mask: &[[i64; 4]; 2]| {
        let mask = Tensor::from_slice2(mask);
        model.lengths(&ids, &mask).unwrap()
    };
    assert_eq!(lengths(&[[1, 1, 1, 0], [1, 1, 0, 0]]), Some(vec![3, 2]));
    for odd in [
        [[1, 0, 1, 0], [1, 1, 0, 0]],
        [[1, 1, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 1], [1, 1, 0, 0]],
        [[0, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 2, 0], [1, 1, 0, 0]],
    ] {
        assert_eq!(lengths(&odd), None, "{odd:?}");
    }
}

#[test]
fn the_published_size_has_the_published_parameters() {
    let mut config = ModelConfig::vit_g();
    // The tower is frozen and not part of the count.
    config.vision = VisionConfig::Features(FeaturesConfig { width: 1408 });
    let model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
    let params = model.params().named_parameters();
    assert_eq!(params.len(), 343);
    let numbers: usize = params.iter().map(|param| param.tensor.numel()).sum();
    assert_eq!(numbers, 186_705_470);
}
