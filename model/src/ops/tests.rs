//! Against torch's own operations.

use super::*;
use tch::Kind;

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn leaf(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, OPTIONS).set_requires_grad(true)
}

/// Runs both on the same leaves; outputs and all gradients must agree.
fn same(
    leaves: &[Tensor],
    ours: impl Fn(&[Tensor]) -> Tensor,
    torch: impl Fn(&[Tensor]) -> Tensor,
) {
    let run = |f: &dyn Fn(&[Tensor]) -> Tensor| {
        let copies: Vec<Tensor> = leaves
            .iter()
            .map(|leaf| leaf.detach().copy().set_requires_grad(true))
            .collect();
        let output = f(&copies);
        let count = output.numel() as i64;
        let weights = (Tensor::arange(count, OPTIONS) * 0.9)
            .cos()
            .view_as(&output);
        (&output * weights).sum(Kind::Float).backward();
        let gradients: Vec<Tensor> = copies.iter().map(Tensor::grad).collect();
        (output, gradients)
    };
    let (output, gradients) = run(&ours);
    let (expected, expected_gradients) = run(&torch);
    let close = |a: &Tensor, b: &Tensor| {
        let scale = b.abs().max().double_value(&[]).max(1e-3);
        let difference = (a - b).abs().max().double_value(&[]);
        assert!(difference <= 2e-5 * scale, "{difference} of {scale}");
    };
    assert_eq!(output.size(), expected.size());
    close(&output, &expected);
    for (a, b) in gradients.iter().zip(&expected_gradients) {
        close(a, b);
    }
}

#[test]
fn linear_equals_torch_small_and_large() {
    for (rows, inputs, outputs) in [(3, 5, 7), (1, 1, 1), (700, 400, 900), (64, 256, 9000)] {
        let leaves = [
            leaf(&[2, rows, inputs]),
            leaf(&[outputs, inputs]),
            leaf(&[outputs]),
        ];
        same(
            &leaves,
            |t| linear(&t[0], &t[1], Some(&t[2])).unwrap(),
            |t| t[0].linear(&t[1], Some(&t[2])),
        );
        same(
            &leaves[..2],
            |t| linear(&t[0], &t[1], None).unwrap(),
            |t| t[0].linear(&t[1], None::<Tensor>),
        );
    }
    // A transposed input, and other element types.
    let x = Tensor::randn([6, 4], OPTIONS);
    let weight = Tensor::randn([3, 6], OPTIONS);
    let expected = x.transpose(0, 1).linear(&weight, None::<Tensor>);
    assert_eq!(linear(&x.transpose(0, 1), &weight, None).unwrap(), expected);
    let half = |t: &Tensor| t.to_kind(Kind::BFloat16);
    let low = linear(&half(&x.transpose(0, 1)), &half(&weight), None).unwrap();
    assert_eq!(low.kind(), Kind::BFloat16);
    let error = linear(&x, &weight, None).unwrap_err().to_string();
    assert!(error.contains("shapes cannot be multiplied"), "{error}");
}

#[test]
fn norm_of_a_sum_equals_torch() {
    for (rows, width) in [(1, 4), (3, 5), (37, 768), (300, 64)] {
        let leaves = [
            leaf(&[rows, width]),
            leaf(&[rows, width]),
            leaf(&[width]),
            leaf(&[width]),
        ];
        same(
            &leaves,
            |t| dropout_add_norm(&t[0], &t[1], &t[2], &t[3], 1e-12, 0.0).unwrap(),
            |t| {
                let sum = &t[0] + &t[1];
                sum.layer_norm([width], Some(&t[2]), Some(&t[3]), 1e-12, true)
            },
        );
    }
}

#[test]
fn attention_equals_torch_with_every_kind_of_mask() {
    for (batch, heads, length, keys, depth) in [
        (2, 3, 4, 5, 8),
        (1, 1, 1, 1, 1),
        (3, 2, 7, 257, 16),
        (2, 2, 33, 33, 64),
    ] {
        let leaves = [
            leaf(&[batch, heads, length, depth]),
            leaf(&[batch, heads, keys, depth]),
            leaf(&[batch, heads, keys, depth]),
        ];
        let masks = [
            None,
            Some(Tensor::randn([batch, 1, 1, keys], OPTIONS)),
            Some(Tensor::randn([batch, 1, length, keys], OPTIONS) * 10.0),
        ];
        for mask in &masks {
            let mask = mask.as_ref();
            same(
                &leaves,
                |t| attention(&t[0], &t[1], &t[2], mask, 0.0).unwrap(),
                |t| {
                    let scores = t[0].matmul(&t[1].transpose(2, 3)) / (depth as f64).sqrt();
                    let scores = match mask {
                        Some(mask) => scores + mask,
                        None => scores,
                    };
                    scores.softmax(3, None).matmul(&t[2])
                },
            );
        }
    }
}

#[test]
fn masked_keys_count_for_nothing() {
    let query = Tensor::randn([1, 2, 3, 4], OPTIONS);
    let keys = Tensor::randn([1, 2, 6, 4], OPTIONS);
    let mask = Tensor::from_slice(&[0f32, 0.0, 0.0, 0.0, -1e4, -1e4]).view([1, 1, 1, 6]);
    let masked = attention(&query, &keys, &keys, Some(&mask), 0.0).unwrap();
    let short = keys.narrow(2, 0, 4);
    let without = attention(&query, &short, &short, None, 0.0).unwrap();
    assert!(masked.allclose(&without, 1e-6, 1e-7, false));
}

#[test]
fn dropout_keeps_its_share_and_its_mask() {
    const P: f64 = 0.1;
    let ones = Tensor::ones([1000, 768], OPTIONS).set_requires_grad(true);
    let dropped = dropout(&ones, P).unwrap();
    let zeros = dropped.eq(0.0).to_kind(Kind::Float);
    // 768,000 draws: five standard deviations are 0.0017.
    let share = zeros.mean(Kind::Float).double_value(&[]);
    assert!((share - P).abs() < 0.0018, "{share}");
    let kept = dropped.masked_select(&dropped.ne(0.0));
    assert!(kept.allclose(&(kept.ones_like() / (1.0 - P)), 1e-6, 0.0, false));
    // Rows and columns alike, and neighbours independent.
    for dim in [0i64, 1] {
        let means = zeros.mean_dim([dim].as_slice(), false, Kind::Float);
        let n = zeros.size()[dim as usize] as f64;
        let bound = 6.0 * (P * (1.0 - P) / n).sqrt();
        assert!((means - P).abs().max().double_value(&[]) < bound);
        let size = zeros.size()[1 - dim as usize];
        let other = 1 - dim;
        let pairs = zeros.narrow(other, 0, size - 1) * zeros.narrow(other, 1, size - 1);
        let both = pairs.mean(Kind::Float).double_value(&[]);
        assert!((both - P * P).abs() < 0.001, "{both}");
    }
    // The backward pass meets the same mask.
    dropped.sum(Kind::Float).backward();
    assert!(ones.grad().allclose(&dropped.detach(), 1e-6, 0.0, false));
    assert_ne!(dropout(&ones, P).unwrap(), dropped);
    assert_eq!(dropout(&ones, 0.0).unwrap(), ones);
}

/// With the mask read off the output, dropout inside the fused operations is a product.
#[test]
fn fused_dropout_has_the_gradients_of_its_mask() {
    const P: f64 = 0.3;
    let [rows, width] = [20, 96];
    // A constant residual of 0 and x of 1: the sum is the mask itself.
    let x = Tensor::ones([rows, width], OPTIONS).set_requires_grad(true);
    let residual = Tensor::zeros([rows, width], OPTIONS).set_requires_grad(true);
    let weight = Tensor::ones([width], OPTIONS);
    let bias = Tensor::zeros([width], OPTIONS);
    let out = dropout_add_norm(&x, &residual, &weight, &bias, 1e-12, P).unwrap();
    let mask = out.detach().gt(0.0).to_kind(Kind::Float) / (1.0 - P);
    let weights = Tensor::randn([rows, width], OPTIONS);
    (&out * &weights).sum(Kind::Float).backward();
    let other = (Tensor::ones([rows, width], OPTIONS) * &mask).set_requires_grad(true);
    let expected = other.layer_norm([width], Some(&weight), Some(&bias), 1e-12, true);
    assert!(out.allclose(&expected, 1e-5, 1e-5, false));
    (&expected * &weights).sum(Kind::Float).backward();
    assert!(residual.grad().allclose(&other.grad(), 1e-4, 1e-5, false));
    assert!(x
        .grad()
        .allclose(&(other.grad() * &mask), 1e-4, 1e-5, false));

    // Attention with identity values puts the dropped probabilities out.
    let [length, keys] = [5, 70];
    let query = leaf(&[1, 1, length, keys]);
    let key = leaf(&[1, 1, keys, keys]);
    let value = Tensor::eye(keys, OPTIONS)
        .view([1, 1, keys, keys])
        .set_requires_grad(true);
    let out = attention(&query, &key, &value, None, P).unwrap();
    let mask = out.detach().gt(0.0).to_kind(Kind::Float) / (1.0 - P);
    let share = 1.0
        - out
            .detach()
            .gt(0.0)
            .to_kind(Kind::Float)
            .mean(Kind::Float)
            .double_value(&[]);
    assert!((share - P).abs() < 0.15, "{share}");
    let weights = out.randn_like();
    (&out * &weights).sum(Kind::Float).backward();
    let copies = [&query, &key, &value].map(|t| t.detach().copy().set_requires_grad(true));
    let scores = copies[0].matmul(&copies[1].transpose(2, 3)) / (keys as f64).sqrt();
    let expected = (scores.softmax(3, None) * &mask).matmul(&copies[2]);
    assert!(out.allclose(&expected, 1e-4, 1e-6, false));
    (&expected * &weights).sum(Kind::Float).backward();
    for (a, b) in [&query, &key, &value].iter().zip(&copies) {
        assert!(a.grad().allclose(&b.grad(), 1e-3, 1e-5, false));
    }
}

#[test]
fn indices_beyond_the_rows_are_errors() {
    let rows = Tensor::zeros([3, 4], OPTIONS);
    let ints = |values: &[i64]| Tensor::from_slice(values);
    let split = |slots: &[i64], places: &[i64], heads: i64| {
        split_rows(&rows, &ints(slots), &ints(places), (1, 2), heads)
    };
    assert!(split(&[0, 2], &[0, -1, 1], 2).is_ok());
    assert!(split(&[0, 3], &[0, -1, 1], 2).is_err());
    assert!(split(&[0, -2], &[0, -1, 1], 2).is_err());
    assert!(split(&[0, 2], &[0, -1, 2], 2).is_err());
    assert!(split(&[0], &[0, -1, 1], 2).is_err());
    assert!(split(&[0, 2], &[0, 1], 2).is_err());
    assert!(split(&[0, 2], &[0, -1, 1], 3).is_err());
}

#[test]
fn norms_and_averages() {
    let (a, b) = (
        Tensor::from_slice(&[3f32, 0.0]),
        Tensor::from_slice(&[4f32]),
    );
    assert_eq!(global_norm(&[&a, &b]).unwrap().double_value(&[]), 5.0);
    lerp(&[&a], &[&Tensor::from_slice(&[5f32, 4.0])], 0.25).unwrap();
    assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [3.5, 1.0]);
    assert!(lerp(&[&a], &[], 0.5).is_err());
}
