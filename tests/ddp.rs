//! Several ranks as real processes over Gloo on the loopback: their gradients against the reference
//! and against one graph of all ranks, and `qftrain` with them, as a user starts it and breaks it.

/// `qftrain` with several ranks.
mod program;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use qf_model::collective::{Gradients, Reduction};
use qf_model::config::{FeaturesConfig, ModelConfig, VisionConfig};
use qf_model::device::seed;
use qf_model::params::Init;
use qf_model::{
    AdamW, AdamWConfig, Blip2Qformer, Collective, ComputeOptions, ModelError, NegativeSampling,
    ParamStore, ProcessGroup, RankConfig, RankTimeouts, Ranks, SingleProcess, StepInput,
};
use tch::{Device, Kind, Tensor};

use crate::golden::{
    folder, goldens, is_several_ranks, load_model, under, Line, Rendezvous, Step, ThreadRank,
    COMPUTE,
};
use crate::train_cli::{
    checkpoint, command, exact_metrics, glob, metrics, path, qftrain, same_run, small_run,
    succeeds, weights,
};

pub(crate) use program::{kill, ranks_of};

/// Tells a process of this test binary which rank of which job it is.
const JOB: &str = "QF_TEST_RANK";

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Runs `job` in `world` processes of this test binary and demands that all succeed.
fn in_processes(job: &str, world: i64) {
    let port = free_port();
    let ranks: Vec<Child> = (0..world)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "ddp::as_rank", "--nocapture", "--test-threads=1"])
                .env(JOB, format!("{job} {rank} {world} {port}"))
                .env("OMP_NUM_THREADS", "1")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{job}, rank {rank}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        assert!(text(&output.stdout).contains("1 passed"), "{job}");
    }
}

/// Not a test by itself: what [`in_processes`] starts.
#[test]
#[allow(clippy::disallowed_methods)] // A test's settings come from the environment.
fn as_rank() {
    let Ok(job) = std::env::var(JOB) else {
        return;
    };
    let words: Vec<&str> = job.split(' ').collect();
    let [job, rank, world, port] = words[..] else {
        panic!("{job}");
    };
    let rank: i64 = rank.parse().unwrap();
    let place = RankConfig {
        rank,
        world_size: world.parse().unwrap(),
        host: "127.0.0.1".into(),
        port: port.parse().unwrap(),
        hosts_store: rank == 0,
        attempt: "test".into(),
        interface: None,
    };
    let timeouts = RankTimeouts {
        join: Duration::from_secs(60),
        ..RankTimeouts::default()
    };
    let lost = |cause| panic!("{cause}");
    let group = ProcessGroup::join(place, Device::Cpu, timeouts, lost).unwrap();
    match job {
        "collectives" => collectives(&group),
        "golden" => golden(&group),
        "one_graph" => one_graph(&group),
        "sharded" => sharded(&group),
        // Ends without parting: rank 1 is gone then.
        "gone" => return gone(&group),
        _ => panic!("{job}"),
    }
    group.leave().unwrap();
}

fn collectives(group: &ProcessGroup) {
    let (rank, world) = (group.rank(), group.world_size());
    // A gather, also of truth values and empty tensors.
    let own = Tensor::from_slice(&[rank as f32, 10.0]).view([2, 1]);
    let all = group.all_gather(&own).unwrap();
    let expected: Vec<f32> = (0..world).flat_map(|r| [r as f32, 10.0]).collect();
    assert_eq!(all.size(), [2 * world, 1]);
    assert_eq!(Vec::<f32>::try_from(all.view(-1)).unwrap(), expected);
    let flags = group.all_gather(&Tensor::from_slice(&[rank == 1])).unwrap();
    let expected: Vec<bool> = (0..world).map(|r| r == 1).collect();
    assert_eq!(Vec::<bool>::try_from(flags).unwrap(), expected);

    // Its gradient: rank r's loss is (r + 1) Σ n · x_n, so x of rank k gets k Σ (r + 1).
    let x = Tensor::from(rank as f32).view([1]).set_requires_grad(true);
    let gathered = group.all_gather_with_grad(&x).unwrap();
    let weights = Tensor::arange(world, (Kind::Float, Device::Cpu)) * (rank + 1) as f64;
    (gathered * weights).sum(Kind::Float).backward();
    let ranks = (1..=world).sum::<i64>();
    assert_eq!(x.grad().double_value(&[0]), (rank * ranks) as f64);
    // One whose gradient is expanded, which must not be written to.
    let y = Tensor::from(1f32).view([1]).set_requires_grad(true);
    let sum = group.all_gather_with_grad(&y).unwrap().sum(Kind::Float);
    sum.backward();
    assert_eq!(y.grad().double_value(&[0]), world as f64);
    // Without a gradient to compute there is none.
    assert!(!group.all_gather_with_grad(&own).unwrap().requires_grad());
    assert!(!group.all_gather(&x).unwrap().requires_grad());

    // Agreement.
    assert_eq!(group.max(&[rank, -rank]).unwrap(), [world - 1, 0]);
    let text = "x".repeat(rank as usize * 3);
    let texts = group.gather_bytes(text.as_bytes()).unwrap();
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    assert_eq!(
        lengths,
        (0..world as usize).map(|r| 3 * r).collect::<Vec<_>>()
    );
    let words = format!("rank {rank}");
    assert_eq!(group.broadcast_bytes(words.as_bytes()).unwrap(), b"rank 0");
    assert_eq!(group.broadcast_bytes(b"").unwrap(), b"");
    let mut tensors = [
        Tensor::from_slice(&[rank; 3]),
        Tensor::from(rank as f32).set_requires_grad(true),
    ];
    group.broadcast(&tensors.each_ref()).unwrap();
    for tensor in &mut tensors {
        assert_eq!(tensor.sum(Kind::Float).double_value(&[]), 0.0);
    }
    point_to_point(group);
    averages(group);
}

/// Tensors that travel from their owners, and from one rank to another.
fn point_to_point(group: &ProcessGroup) {
    let (rank, world) = (group.rank(), group.world_size());
    let full = |size: &[i64], value: i64| Tensor::full(size, value, (Kind::Float, Device::Cpu));
    // More than a bucket (25 MiB), a bucket's worth, little, a scalar, a matrix that is transposed.
    let sizes: [&[i64]; 6] = [
        &[7_000_000],
        &[5, 3],
        &[],
        &[3_300_000],
        &[2, 4],
        &[3_300_000],
    ];
    let mut tensors = Vec::new();
    for (index, size) in (0i64..).zip((0..world).flat_map(|_| sizes)) {
        let own = full(size, 100 * rank + index);
        let own = if size == [2, 4] {
            own.transpose(0, 1)
        } else {
            own
        };
        tensors.push((own, (index * 7 + index / 5) % world));
    }
    let owned: Vec<(&Tensor, i64)> = tensors.iter().map(|(t, owner)| (t, *owner)).collect();
    group.share(&owned).unwrap();
    for (index, (tensor, owner)) in (0i64..).zip(&tensors) {
        let expected = (100 * owner + index) as f64;
        let (low, high) = (tensor.min(), tensor.max());
        assert_eq!(low.double_value(&[]), expected, "{index}");
        assert_eq!(high.double_value(&[]), expected, "{index}");
    }
    group.share(&[]).unwrap();
    assert!(group.share(&[(&tensors[0].0, world)]).is_err());

    // Any number from each to rank 0, in the order of each; twice.
    for round in 0..2 {
        let count = |rank: i64| 3 * rank + 1;
        let message = |rank: i64, index: i64| full(&[index, 2], 1000 * round + 100 * rank + index);
        if rank > 0 {
            let all: Vec<Tensor> = (1..=count(rank)).map(|i| message(rank, i)).collect();
            let all: Vec<&Tensor> = all.iter().collect();
            group.send(&all, 0).unwrap();
            continue;
        }
        let mut buffers = Vec::new();
        for index in 1..=count(world) {
            let senders = (1..world).filter(|rank| index <= count(*rank));
            buffers.extend(senders.map(|rank| (full(&[index, 2], -1), rank, index)));
        }
        let into: Vec<(&Tensor, i64)> = buffers.iter().map(|(t, from, _)| (t, *from)).collect();
        group.receive(&into).unwrap();
        for (buffer, from, index) in &buffers {
            assert_eq!(*buffer, message(*from, *index), "{from} {index}");
        }
    }
}

/// The mean of gradients with accumulation and a frozen parameter, with an unused one and without, over
/// several steps; during the backward pass and after it.
fn averages(group: &ProcessGroup) {
    averages_of(group, Gradients::OfSome);
    averages_of(group, Gradients::OfAll);
}

fn averages_of(group: &ProcessGroup, gives: Gradients) {
    let (rank, world) = (group.rank() as f64, group.world_size() as f64);
    let options = (Kind::Float, Device::Cpu);
    let param = |size: i64| Tensor::ones([size], options).set_requires_grad(true);
    // Larger than the first bucket of 1 MiB.
    let (a, b, unused) = (param(400_000), param(3), param(2));
    let frozen = Tensor::ones([3], options);
    let all = [&a, &b, &unused];
    let params = match gives {
        Gradients::OfSome => &all[..],
        Gradients::OfAll => &all[..2],
    };
    let reducer = group.reducer(params, gives).unwrap();
    // Making it leaves nothing.
    assert!(params.iter().all(|param| !param.grad().defined()));
    let loss = |weight: f64| {
        let sum = |t: &Tensor| t.sum(Kind::Float);
        (sum(&a) * 2.0 + sum(&(&b * &frozen))) * weight
    };
    for (step, overlaps) in [(0.0, true), (1.0, true), (2.0, false), (3.0, true)] {
        // Gradients lie in the buckets, so they are zeroed and not taken out of the graph.
        for mut gradient in params.iter().map(|param| param.grad()) {
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        // Only the last of two backward passes is averaged, and what came before it with it.
        loss(rank + 1.0).backward();
        let last = loss(10.0 * (rank + step));
        if overlaps {
            reducer.prepare(&last).unwrap();
            last.backward();
            reducer.check().unwrap();
        } else {
            last.backward();
            group.average_gradients(params).unwrap();
        }
        let mean_rank = (world - 1.0) / 2.0;
        let expected = (mean_rank + 1.0) + 10.0 * (mean_rank + step);
        for (param, factor) in [(&a, 2.0), (&b, 1.0)] {
            let grad = param.grad();
            let (low, high) = (grad.min().double_value(&[]), grad.max().double_value(&[]));
            assert!(
                (low - factor * expected).abs() < 1e-3 && high - low < 1e-6,
                "step {step}: {low} to {high}, not {}",
                factor * expected
            );
        }
        let left = unused.grad();
        assert!(!left.defined() || left.abs().max().double_value(&[]) == 0.0);
    }
}

/// `golden_ddp` with this process as one of its ranks.
fn golden(group: &ProcessGroup) {
    let rank = group.rank();
    let Some(folder) = folder("golden_processes") else {
        return;
    };
    for golden in goldens("golden_processes", &folder, is_several_ranks) {
        if golden.size("world") != group.world_size() {
            continue;
        }
        let tensors = golden.tensors();
        for ((label, compute), overlaps) in
            COMPUTE.into_iter().flat_map(|c| [(c, true), (c, false)])
        {
            let mut model = load_model(&golden, &tensors, Device::Cpu);
            model.set_compute(compute);
            let negatives = ["image", "text"].map(|of| format!("r{rank}.neg.{of}_idx"));
            let step = Step::new(
                &tensors,
                &format!("r{rank}.input."),
                [&negatives[0], &negatives[1]],
                Device::Cpu,
            );
            let images = step.vit_output.copy().set_requires_grad(true);
            let result = step.run(&model, &images, group);
            backward(group, &model, &result.output.loss, overlaps);
            let mut line = Line::new(&format!("{} (rank {rank}, {label})", golden.name));
            result.compare(&mut line, &under(&tensors, &format!("r{rank}.out.")));
            let name = format!("r{rank}.grad.input.vit_output");
            line.gradient(&name, &images.grad(), Some(&tensors[&name]));
            for param in model.params().named_parameters() {
                let name = format!("grad.{}", param.name);
                line.gradient(&name, &param.tensor.grad(), Some(&tensors[&name]));
            }
            line.finish();
        }
    }
}

fn backward(group: &ProcessGroup, model: &Blip2Qformer, loss: &Tensor, overlaps: bool) {
    let params: Vec<&Tensor> = model.params().trainable().map(|p| &p.tensor).collect();
    if overlaps {
        let reducer = group.reducer(&params, Gradients::OfAll).unwrap();
        reducer.prepare(loss).unwrap();
        loss.backward();
        reducer.check().unwrap();
    } else {
        loss.backward();
        group.average_gradients(&params).unwrap();
    }
}

/// Features, ids, mask and negatives of a rank: 3 pairs, texts of other lengths on each rank.
fn inputs(rank: i64, world: i64) -> [Tensor; 5] {
    let (batch, text) = (3, 7);
    let numbers = |count: i64, shift: i64| {
        Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.7 + (rank * 31 + shift) as f64
    };
    let features = numbers(batch * 5 * 24, 0).sin().view([batch, 5, 24]);
    let lengths = Tensor::from_slice(&[3 + rank % 3, 6, 2 + rank % 4]).view([batch, 1]);
    let columns = Tensor::arange(text, (Kind::Int64, Device::Cpu));
    let mask = columns.lt_tensor(&lengths).to_kind(Kind::Int64);
    let ids = (Tensor::arange(batch * text, (Kind::Int64, Device::Cpu)) * 11 + rank * 5)
        .remainder(37)
        .view([batch, text])
        + 1;
    let all = batch * world;
    let negatives = |step: i64| -> Tensor {
        let own = (0..batch).map(|row| (rank * batch + row + step) % all);
        Tensor::from_slice(&own.collect::<Vec<i64>>())
    };
    [
        features,
        &ids * &mask,
        mask,
        negatives(2),
        negatives(all - 1),
    ]
}

/// Losses and gradients of this process against those of one graph of all ranks.
fn one_graph(group: &ProcessGroup) {
    let (rank, world) = (group.rank(), group.world_size());
    let mut config = ModelConfig::tiny();
    config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
    let sizes = &mut config.qformer;
    (sizes.encoder_width, sizes.vocab_size, sizes.dec_token_id) = (24, 50, 49);
    (sizes.hidden, sizes.heads, sizes.intermediate) = (32, 2, 64);
    sizes.dropout = 0.0;
    let step = |rank: i64, ranks: &dyn Collective| {
        let mut model = Blip2Qformer::new(&config, Device::Cpu, 3).unwrap();
        model.set_compute(ComputeOptions::default());
        let [features, ids, mask, image_idx, text_idx] = inputs(rank, world);
        let features = features.set_requires_grad(true);
        let images = model.encode_image(&features).unwrap();
        let input = StepInput {
            image_embeds: &images,
            token_ids: &ids,
            attention_mask: &mask,
            image_ids: None,
        };
        let negatives = NegativeSampling::Given {
            image_idx: &image_idx,
            text_idx: &text_idx,
        };
        let output = model
            .forward_losses(&input, negatives, ranks, true)
            .unwrap();
        (model, features, output.loss)
    };
    let shared = Rendezvous::new(world as usize);
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                let shared = shared.clone();
                let step = &step;
                scope.spawn(move || {
                    let rank_of = ThreadRank {
                        rank: rank as usize,
                        shared,
                    };
                    step(rank, &rank_of)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let losses: Vec<&Tensor> = all.iter().map(|(_, _, loss)| loss).collect();
    Tensor::stack(&losses, 0).sum(Kind::Float).backward();
    for overlaps in [true, false] {
        let (model, features, loss) = step(rank, group);
        let (_, expected_features, expected_loss) = &all[rank as usize];
        let (got, expected) = (loss.double_value(&[]), expected_loss.double_value(&[]));
        assert!((got - expected).abs() < 1e-6 * expected, "{got} {expected}");
        backward(group, &model, &loss, overlaps);
        let close = |name: &str, got: &Tensor, expected: &Tensor| {
            let largest = expected.abs().max().double_value(&[]);
            let error = (got - expected).abs().max().double_value(&[]);
            assert!(
                error <= 1e-5 * largest + 1e-7,
                "{name}: {error} of {largest}"
            );
        };
        close("features", &features.grad(), &expected_features.grad());
        let mut compared = 0;
        for param in model.params().named_parameters() {
            let grads: Vec<Tensor> = all
                .iter()
                .map(|(model, _, _)| model.params().get(&param.name).unwrap().tensor.grad())
                .collect();
            if grads.iter().all(Tensor::defined) {
                let mean = Tensor::stack(&grads, 0).mean_dim([0i64].as_slice(), false, None);
                close(&param.name, &param.tensor.grad(), &mean);
                compared += 1;
            }
        }
        assert!(compared > 50, "{compared}");
    }
}

const OPTIMIZER: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-6,
    weight_decay: 0.05,
    decay_temperature: true,
    max_grad_norm: None,
    layer_decay: 1.0,
    ema_decay: None,
    shard_state: true,
};

/// Parameters with the same values on all ranks; the last is not trained.
fn params(sizes: &[(&str, &[i64])]) -> ParamStore {
    let mut store = ParamStore::new(Device::Cpu, 5);
    let normal = || Init::Normal { std: 0.5 };
    for (name, size) in sizes {
        let _ = store.declare(name, size, normal(), true).unwrap();
    }
    let _ = store.declare("frozen", &[50], normal(), false).unwrap();
    store
}

/// Steps of an optimiser whose state is spread over the ranks, against those of one that keeps all of
/// it: the same parameters and moments, bit for bit.
fn sharded(group: &ProcessGroup) {
    let world = group.world_size();
    let many: [(&str, &[i64]); 7] = [
        ("visual_encoder.blocks.0.w", &[31, 5]),
        ("visual_encoder.blocks.1.w", &[400, 70]),
        ("a.weight", &[100, 30]),
        ("a.bias", &[100]),
        ("temp", &[]),
        ("unused", &[900]),
        ("b.weight", &[1_000_000]),
    ];
    let everything = AdamWConfig {
        max_grad_norm: Some(1.0),
        layer_decay: 0.5,
        ema_decay: Some(0.9),
        decay_temperature: false,
        ..OPTIMIZER
    };
    for (sizes, config, scale) in [
        (&many[..], &OPTIMIZER, None),
        (&many[..], &everything, None),
        (&many[..], &everything, Some(1024.0)),
        // More ranks than parameters.
        (&many[2..3], &everything, None),
    ] {
        let whole = AdamWConfig {
            shard_state: false,
            ..config.clone()
        };
        let (own, other) = (params(sizes), params(sizes));
        let mut spread = AdamW::for_rank(&own, config, group).unwrap();
        let mut single = AdamW::for_rank(&other, &whole, group).unwrap();
        assert!(spread.is_sharded() && !single.is_sharded());
        for step in 0..5 {
            for (store, optimizer) in [(&own, &mut spread), (&other, &mut single)] {
                seed(step, Device::Cpu).unwrap();
                optimizer.zero_grad().unwrap();
                for param in store.trainable().filter(|param| param.name != "unused") {
                    let gradient = Tensor::randn_like(&param.tensor) * scale.unwrap_or(1.0);
                    (&param.tensor * gradient.detach())
                        .sum(Kind::Float)
                        .backward();
                }
                let norm = optimizer.gradient_norm().unwrap() / scale.unwrap_or(1.0);
                let clip = optimizer.clip_divisor(&norm).unwrap();
                let divisor = match (clip, scale) {
                    (Some(clip), Some(scale)) => Some(clip * scale),
                    (clip, _) => clip,
                };
                // One step overflows.
                let skip = scale.map(|_| Tensor::from(f32::from(step == 2)));
                optimizer
                    .step_scaled(0.01, divisor.as_ref(), skip.as_ref())
                    .unwrap();
                optimizer.share_parameters(group).unwrap();
            }
            for (a, b) in own.named_parameters().iter().zip(other.named_parameters()) {
                assert_eq!(a.tensor.detach(), b.tensor.detach(), "{} {step}", a.name);
            }
        }
        let expected: HashMap<String, Tensor> = single.state().unwrap().into_iter().collect();
        let kept = spread.state().unwrap();
        for (name, tensor) in &kept {
            assert_eq!(tensor, &expected[name], "{name}");
        }
        let mut sums = Tensor::from_slice(&[kept.len() as i64, spread.state_bytes() as i64]);
        group.all_reduce(&mut sums, Reduction::Sum).unwrap();
        let all = [expected.len(), single.state_bytes()].map(|sum| sum as i64);
        assert_eq!(Vec::<i64>::try_from(sums).unwrap(), all);
        let largest = sizes.iter().map(|(_, size)| size.iter().product::<i64>());
        let share = all[1] / world + 12 * largest.max().unwrap() + 4 * sizes.len() as i64;
        assert!(spread.state_bytes() as i64 <= share);
        // Ranks that are not those it was made for.
        let error = spread.share_parameters(&SingleProcess).unwrap_err();
        assert!(
            error.to_string().contains("other ranks keep part"),
            "{error}"
        );
    }
}

/// What rank 0 sees when rank 1 ends instead of taking part.
fn gone(group: &ProcessGroup) {
    if group.rank() == 1 {
        return;
    }
    let store = params(&[
        ("a", &[70_000]),
        ("b", &[70_000]),
        ("c", &[70_000]),
        ("d", &[70_000]),
    ]);
    let optimizer = AdamW::for_rank(&store, &OPTIMIZER, group).unwrap();
    let error = optimizer.share_parameters(group).unwrap_err();
    assert!(matches!(error, ModelError::RankLost { .. }), "{error}");
    let buffer = Tensor::zeros([70_000], (Kind::Float, Device::Cpu));
    for error in [group.receive(&[(&buffer, 1)]), group.send(&[&buffer], 1)] {
        let error = error.unwrap_err();
        assert!(matches!(error, ModelError::RankLost { .. }), "{error}");
    }
}

#[test]
fn state_spread_over_processes_makes_the_same_steps() {
    in_processes("sharded", 2);
    in_processes("sharded", 4);
}

#[test]
fn a_rank_that_is_gone_is_an_error_of_the_one_that_shares() {
    in_processes("gone", 2);
}

#[test]
fn collectives_of_two_and_four_processes() {
    in_processes("collectives", 2);
    in_processes("collectives", 4);
}

#[test]
fn golden_processes() {
    let Some(folder) = folder("golden_processes") else {
        return;
    };
    let all = goldens("golden_processes", &folder, is_several_ranks);
    let mut worlds: Vec<i64> = all.iter().map(|golden| golden.size("world")).collect();
    worlds.sort_unstable();
    worlds.dedup();
    for world in worlds {
        in_processes("golden", world);
    }
}

#[test]
fn processes_compute_what_one_graph_of_all_ranks_does() {
    in_processes("one_graph", 2);
    in_processes("one_graph", 4);
}
