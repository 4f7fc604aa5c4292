//! Several ranks as real processes over Gloo on the loopback: their gradients against the reference
//! and against one graph of all ranks, and `qftrain` with them, as a user starts it and breaks it.

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

// ---------------------------------------------------------------- the library

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

// ---------------------------------------------------------------- the program

/// `qftrain` as one of the ranks that torchrun would start.
fn rank_command(rank: usize, world: usize, port: u16, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command
        .args(["--join-timeout", "20"])
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The one `error:` line of a rank that must fail.
fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let mut lines = stderr.lines().filter(|line| line.starts_with("error:"));
    let line = lines.next().unwrap_or_else(|| panic!("{stderr}"));
    assert_eq!(lines.next(), None, "{stderr}");
    line.to_string()
}

/// Runs ranks with arguments of their own that must all fail, and returns their errors.
fn errors(port: u16, arguments: &[Vec<&str>]) -> Vec<String> {
    let ranks: Vec<Child> = arguments
        .iter()
        .enumerate()
        .map(|(rank, own)| {
            let mut command = rank_command(rank, arguments.len(), port, own);
            command.spawn().unwrap()
        })
        .collect();
    let outputs = ranks
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    outputs.map(|output| error_line(&output)).collect()
}

#[test]
fn nproc_trains_repeatably_and_resumes_with_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let held = glob("arrow");
    let more = [
        "--nproc",
        "2",
        "--steps",
        "6",
        "--val-shards",
        &held,
        "--val-every",
        "3",
        "--set",
        "validation.rerank=2",
        "--set",
        "accumulate_steps=2",
        "--set",
        "optimizer.max_grad_norm=1.0",
        "--set",
        "optimizer.ema_decay=0.9",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "schedule.init_lr=1e-3",
    ];
    let (one, other) = (path(&folder, "one"), path(&folder, "other"));
    for run_dir in [&one, &other] {
        let stdout = succeeds(&small_run(run_dir, &shards, &more));
        assert!(stdout.contains("done: step 6 of 6"), "{stdout}");
    }
    let (one, other) = (Path::new(&one), Path::new(&other));
    assert_eq!(exact_metrics(one), exact_metrics(other));
    assert!(weights(one, 6) == weights(other, 6));
    let records = metrics(one);
    let losses: Vec<f64> = records
        .iter()
        .filter(|record| record["kind"] == "train")
        .map(|record| record["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 6);
    assert!(losses.iter().all(|loss| loss.is_finite()));
    assert!(losses[5] < losses[0], "{losses:?}");
    let validations = records.iter().filter(|r| r["kind"] == "validation");
    assert_eq!(validations.count(), 2);
    // 2 ranks, 2 batches each, of 4 images.
    assert_eq!(records.last().unwrap()["step"], 6);

    // The same state goes on with two ranks, and with another number of them.
    let again = other.display().to_string();
    let resume = [
        "--run-dir",
        &again,
        "--resume",
        "--allow-changes",
        "--steps",
    ];
    let resume = |more: &[&'static str]| succeeds(&[&resume[..], more].concat());
    resume(&["8", "--nproc", "2"]);
    resume(&["10"]);
    resume(&["12", "--nproc", "4"]);
    assert!(checkpoint(other, 12).is_dir());
    let unbroken = path(&folder, "unbroken");
    let steps = |text: &'static str| {
        let mut more = more;
        more[3] = text;
        more
    };
    succeeds(&small_run(&unbroken, &shards, &steps("8")));
    let (all, resumed) = (exact_metrics(Path::new(&unbroken)), exact_metrics(other));
    // Only the rate depends on the length of the run.
    assert_eq!(all[0], resumed[0]);
    assert_eq!(resumed.len(), 12);
    let message = succeeds(&["--run-dir", &again, "--resume", "--nproc", "2"]);
    assert!(message.contains("all 12 steps are done"), "{message}");
}

/// Runs what must succeed with the lines of the ranks on standard error.
fn says(arguments: &[&str]) -> String {
    let output = qftrain(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// With one rank everything that several do is done: the store, gathers, the reducer's buckets.
#[test]
fn a_group_of_one_trains_as_a_single_process() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    for (name, more) in [
        ("plain", &["--steps", "5"][..]),
        (
            "more",
            &[
                "--steps",
                "4",
                "--set",
                "accumulate_steps=2",
                "--set",
                "optimizer.max_grad_norm=1.0",
            ],
        ),
    ] {
        let alone = path(&folder, name);
        succeeds(&small_run(&alone, &shards, more));
        for group in [&["--force-group"][..], &["--force-group", "--nproc", "1"]] {
            let run_dir = path(&folder, &format!("{name}-{}", group.len()));
            let said = says(&small_run(&run_dir, &shards, &[more, group].concat()));
            assert!(said.contains("[rank 0] training on the CPU"), "{said}");
            let (one, other) = (Path::new(&alone), Path::new(&run_dir));
            same_run(one, other, more[1].parse().unwrap());
        }
    }
}

/// What sharding may not change: a rate that does not depend on the length of the run.
const STEADY: [&str; 6] = [
    "--set",
    "schedule.warmup_steps=0",
    "--set",
    "schedule.init_lr=1e-3",
    "--set",
    "schedule.min_lr=1e-3",
];

const SHARD: [&str; 2] = ["--set", "optimizer.shard_state=true"];
const NO_SHARD: [&str; 2] = ["--set", "optimizer.shard_state=false"];

#[test]
fn sharded_state_changes_no_number_and_resumes_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, held) = (glob("tar"), glob("arrow"));
    let more = [
        "--nproc",
        "2",
        "--val-shards",
        &held,
        "--val-every",
        "3",
        "--set",
        "validation.rerank=2",
        "--set",
        "checkpoint_every_steps=2",
        "--set",
        "accumulate_steps=2",
        "--set",
        "optimizer.max_grad_norm=1.0",
        "--set",
        "optimizer.ema_decay=0.9",
        "--set",
        "optimizer.layer_decay=0.8",
        "--set",
        "freeze=[\"Qformer.bert.embeddings.*\"]",
        "--steps",
    ];
    let run = |run_dir: &str, more: &[&[&str]]| says(&small_run(run_dir, &shards, &more.concat()));
    let (whole, spread) = (path(&folder, "whole"), path(&folder, "spread"));
    let said = run(&whole, &[&more, &["6"], &STEADY]);
    assert!(!said.contains("optimiser state"), "{said}");
    let said = run(&spread, &[&more, &["4"], &STEADY, &SHARD]);
    assert!(
        said.contains("MB of optimiser state on this rank"),
        "{said}"
    );

    // From the same checkpoint, with the state spread over other ranks, or over none.
    let resumed = |name: &str, more: &[&str]| {
        let run_dir = path(&folder, name);
        let copied = Command::new("cp").args(["-r", &spread, &run_dir]).status();
        assert!(copied.unwrap().success());
        let resume = ["--run-dir", &run_dir, "--resume", "--steps", "6"];
        (says(&[&resume[..], more].concat()), run_dir)
    };
    let same = |one: &str, other: &str| same_run(Path::new(one), Path::new(other), 6);
    let (said, again) = resumed("again", &["--nproc", "2"]);
    assert!(said.contains("MB of optimiser state"), "{said}");
    same(&whole, &again);
    let (said, whole_again) = resumed("whole-again", &[&["--nproc", "2"], &NO_SHARD[..]].concat());
    assert!(!said.contains("optimiser state"), "{said}");
    same(&whole, &whole_again);
    let (_, four) = resumed("four", &["--nproc", "4"]);
    let (_, whole_four) = resumed("whole-four", &[&["--nproc", "4"], &NO_SHARD[..]].concat());
    same(&four, &whole_four);
    let (said, one) = resumed("one", &[]);
    assert!(!said.contains("optimiser state"), "{said}");
    assert!(checkpoint(Path::new(&one), 6).is_dir());
    // What was not sharded may become so.
    let resume = [
        "--run-dir",
        &whole,
        "--resume",
        "--steps",
        "8",
        "--nproc",
        "2",
    ];
    says(&[&resume[..], &SHARD].concat());
    let resume = [
        "--run-dir",
        &again,
        "--resume",
        "--steps",
        "8",
        "--nproc",
        "2",
    ];
    says(&resume);
    same_run(Path::new(&whole), Path::new(&again), 8);
}

#[test]
fn sharded_state_with_a_loss_scale_and_with_fewer_parameters_than_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let f16 = [
        "--nproc",
        "2",
        "--set",
        "precision=f16",
        "--set",
        "optimizer.max_grad_norm=0.5",
    ];
    // The temperature and the matching head stay: three tensors.
    let few = [
        "--nproc",
        "4",
        "--set",
        "optimizer.ema_decay=0.5",
        "--set",
        "freeze=[\"Qformer.*\", \"visual_encoder.*\", \"ln_vision.*\", \"*_proj.*\", \"query_tokens\"]",
    ];
    for (name, more) in [("f16", f16), ("few", few)] {
        let [whole, spread] =
            ["whole", "spread"].map(|kind| path(&folder, &format!("{name}-{kind}")));
        for (run_dir, shard) in [(&whole, &[][..]), (&spread, &SHARD[..])] {
            let more = [&more[..], &["--steps", "3"], &STEADY, shard].concat();
            says(&small_run(run_dir, &shards, &more));
        }
        same_run(Path::new(&whole), Path::new(&spread), 3);
    }
}

/// A run of `ranks` processes without end, once it has made a step.
fn endless(
    run_dir: &str,
    nproc: &str,
    more: &[&str],
) -> (Child, BufReader<std::process::ChildStderr>) {
    let shards = glob("tar");
    let more = [&["--nproc", nproc, "--steps", "1000000"], more].concat();
    let mut child = command(&small_run(run_dir, &shards, &more))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let started = Instant::now();
    let has_step = || {
        let text = fs::read_to_string(Path::new(run_dir).join("metrics.jsonl"));
        text.unwrap_or_default().lines().count() > 1
    };
    while !has_step() {
        assert!(started.elapsed() < Duration::from_secs(60), "no step");
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    (child, stderr)
}

/// The processes that `parent` has started, by their rank.
pub(crate) fn ranks_of(parent: &Child) -> Vec<(usize, u32)> {
    let id = parent.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let mut ranks: Vec<(usize, u32)> = children
        .filter_map(|pid: u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let text = String::from_utf8_lossy(&environment).into_owned();
            let rank = text
                .split('\0')
                .find_map(|entry| entry.strip_prefix("RANK="))?;
            Some((rank.parse().unwrap(), pid))
        })
        .collect();
    ranks.sort_unstable();
    ranks
}

pub(crate) fn kill(signal: &str, pid: u32) {
    let script = format!("kill {signal} {pid}");
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.unwrap().success(), "{script}");
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_killed_rank_ends_the_job_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    // A save every step, so that ranks meet in all that they do together.
    let saves = ["--set", "checkpoint_every_steps=1"];
    let sharded = [&saves, &SHARD[..]].concat();
    for (victim, more) in [(1usize, &[][..]), (0, &[]), (2, &sharded), (0, &sharded)] {
        let run_dir = path(&folder, &format!("run-{victim}-{}", more.len()));
        let (mut child, mut stderr) = endless(&run_dir, "3", more);
        let ranks = ranks_of(&child);
        assert_eq!(
            ranks.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        let killed = Instant::now();
        kill("-KILL", ranks[victim].1);
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert!(killed.elapsed() < Duration::from_secs(30), "{text}");
        assert_eq!(status.code(), Some(1), "{text}");
        let word = format!("error: rank {victim} was killed by signal 9");
        assert!(text.contains(&word), "{text}");
        for (rank, pid) in ranks.iter().filter(|(rank, _)| *rank != victim) {
            let word = format!("[rank {rank}] error: rank {victim} is gone");
            assert!(text.contains(&word), "{word}: {text}");
            assert!(is_gone(*pid));
        }
    }
}

#[test]
fn a_signal_saves_and_ends_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    for (signal, to_launcher) in [("-TERM", true), ("-INT", true), ("-TERM", false)] {
        let _ = fs::remove_dir_all(&run_dir);
        let (child, mut stderr) = endless(&run_dir, "2", &[]);
        match to_launcher {
            true => kill(signal, child.id()),
            // Of the ranks only the second is told.
            false => kill(signal, ranks_of(&child)[1].1),
        }
        let told = Instant::now();
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(told.elapsed() < Duration::from_secs(30));
        assert_eq!(output.status.code(), Some(0), "{text}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("interrupted at step"), "{stdout}{text}");
        let steps = metrics(Path::new(&run_dir)).len() as u64;
        assert!(checkpoint(Path::new(&run_dir), steps).is_dir());
    }
    // A launcher that is killed leaves no rank behind.
    let _ = fs::remove_dir_all(&run_dir);
    let (mut child, stderr) = endless(&run_dir, "2", &[]);
    let ranks = ranks_of(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while !ranks.iter().all(|(_, pid)| is_gone(*pid)) {
        assert!(started.elapsed() < Duration::from_secs(30), "orphans");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stderr.lines());
}

fn all_say(errors: &[String], words: &[&str]) {
    for error in errors {
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let arrow = glob("arrow");
    let run = |shards, more: &[&'static str]| -> Vec<&str> {
        let steps = ["--steps", "2"];
        small_run(&run_dir, shards, &[&steps, more].concat())
    };
    // Another setting, other shards: said by all ranks.
    let all = errors(
        free_port(),
        &[run(&tar, &[]), run(&tar, &["--seed", "7"]), run(&tar, &[])],
    );
    all_say(
        &all,
        &["rank 1 differs from rank 0 in", "seed = 7 against 42"],
    );
    let all = errors(free_port(), &[run(&tar, &[]), run(&arrow, &[])]);
    all_say(&all, &["rank 1 differs from rank 0", "shards = ", ".arrow"]);
    // A rank's own mistake is told to the others.
    let all = errors(free_port(), &[run(&tar, &[]), run("/no/such.tar", &[])]);
    all_say(&all, &["/no/such.tar", "does not exist"]);
    all_say(&all[..1], &["rank 1: "]);
    assert!(!Path::new(&run_dir).join("checkpoints").exists());
}

#[test]
fn ranks_that_cannot_meet_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let own = small_run(&run_dir, &tar, &["--steps", "2"]);
    // A port that somebody has.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = rank_command(0, 2, port, &own).output().unwrap();
    let port_text = port.to_string();
    all_say(
        &[error_line(&output)],
        &["rank 0", &port_text, "is in use", "MASTER_PORT"],
    );
    drop(listener);

    // Nobody there, a rank that does not come, a rank too many, another number of ranks.
    let impatient = |rank, world, port: u16| {
        let mut command = command(&own);
        command.args(["--join-timeout", "2"]);
        for (name, value) in [("RANK", rank), ("WORLD_SIZE", world)] {
            command.env(name, value);
        }
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let alone = [
        impatient("1", "2", free_port()),
        impatient("0", "2", free_port()),
    ];
    let alone = alone.map(|child| error_line(&child.wait_with_output().unwrap()));
    all_say(
        &alone[..1],
        &["rank 1", "rank 0 cannot be reached", "MASTER_ADDR"],
    );
    all_say(
        &alone[1..],
        &["rank 0", "1 of 2 ranks did not come in time: 1"],
    );
    let port = free_port();
    let sizes = [impatient("0", "2", port), impatient("1", "3", port)];
    let sizes = sizes.map(|child| error_line(&child.wait_with_output().unwrap()));
    all_say(&sizes, &["WORLD_SIZE"]);
    let port = free_port();
    let twice = [("0", "3"), ("1", "3"), ("1", "3")].map(|(r, w)| impatient(r, w, port));
    let twice = twice.map(|child| error_line(&child.wait_with_output().unwrap()));
    let taken = twice.iter().filter(|e| e.contains("is rank 1 already"));
    assert_eq!(taken.count(), 1, "{twice:?}");
}

#[test]
fn variables_of_ranks_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let own = small_run(&run_dir, &tar, &["--steps", "2"]);
    // Variables that make no sense.
    for (variables, word) in [
        (
            &[("RANK", "0")][..],
            "WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set",
        ),
        (
            &[
                ("RANK", "2"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "1234"),
            ],
            "2 is not below the number of ranks, 2",
        ),
        (
            &[
                ("RANK", "one"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "1234"),
            ],
            "RANK=one",
        ),
    ] {
        let output = command(&own).envs(variables.iter().copied()).output();
        all_say(&[error_line(&output.unwrap())], &[word]);
    }
}

#[test]
fn a_loss_that_is_no_number_on_one_rank_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let exploding = [
        "--steps",
        "40",
        "--set",
        "schedule.init_lr=1e30",
        "--set",
        "schedule.min_lr=1e30",
        "--set",
        "schedule.warmup_steps=0",
    ];
    let own = small_run(&run_dir, &tar, &exploding);
    let all = errors(free_port(), &[own.clone(), own.clone()]);
    for error in &all {
        assert!(error.contains("step 2: "), "{error}");
        assert!(error.contains(" on rank 0 is not finite"), "{error}");
    }
    let skip = [
        "--set",
        "on_non_finite=skip",
        "--set",
        "max_skips_in_a_row=2",
    ];
    let run_dir = path(&folder, "skip");
    let own = small_run(&run_dir, &tar, &[&exploding[..], &skip].concat());
    let all = errors(free_port(), &[own.clone(), own]);
    for error in &all {
        assert!(
            error.contains("the 2 updates before it were skipped"),
            "{error}"
        );
    }
    let skipped = metrics(Path::new(&run_dir));
    let skipped = skipped.iter().filter(|record| record["kind"] == "skipped");
    assert_eq!(skipped.count(), 2);
}
