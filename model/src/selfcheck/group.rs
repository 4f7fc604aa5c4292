//! A group of one process: the calls of data parallelism, which must change no number.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use qf_config::model::Precision;
use tch::{Device, Kind, Tensor};

use super::check::{Bench, Fault, NotOk, ADVICE};
use super::compare::{same_bits, Comparison, F32};
use super::network::{config, model, Inputs, Tower};
use super::step::{against, forward, note, numbers};
use crate::blip2::ComputeOptions;
use crate::collective::{
    carries_nccl, Collective, Gradients, ProcessGroup, RankConfig, RankTimeouts, Ranks, Reduction,
    SingleProcess,
};

/// A group that has not come about by then never will: there is one process, on this machine.
const JOIN_SECS: u64 = 20;

pub(super) fn of_one(bench: &mut Bench) -> Result<(), NotOk> {
    let backend = match bench.device {
        Device::Cuda(_) if !carries_nccl() => {
            return Err(NotOk::Skipped(
                "this program carries no NCCL, which several GPUs need; run `make setup QF_NCCL=1` and \
                 build it again"
                    .into(),
            ));
        }
        Device::Cuda(_) => "NCCL",
        _ => "Gloo",
    };
    bench.note("backend", backend);
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let place = RankConfig {
        rank: 0,
        world_size: 1,
        host: "127.0.0.1".into(),
        port,
        hosts_store: true,
        attempt: "selfcheck".into(),
        interface: None,
    };
    let timeouts = RankTimeouts {
        join: Duration::from_secs(JOIN_SECS),
        ..RankTimeouts::default()
    };
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = is_lost.clone();
    let group = ProcessGroup::join(place, bench.device, timeouts, move |_| {
        lost.store(true, Ordering::SeqCst);
    })?;
    collectives(&group, bench.device)?;
    step(&group, bench)?;
    reducer(&group, bench.device)?;
    group.leave()?;
    match is_lost.load(Ordering::SeqCst) {
        false => Ok(()),
        true => Err(NotOk::Fault(Fault {
            what: "the watch over the group".into(),
            got: "a lost rank".into(),
            expected: "none".into(),
            advice: ADVICE.into(),
        })),
    }
}

/// What is gathered, summed and sent by one is what it was.
fn collectives(group: &ProcessGroup, device: Device) -> Result<(), Fault> {
    let values = Tensor::f_arange(10_000, (Kind::Float, device))?.f_view([100, 100])?;
    for (name, reduction) in [("sum", Reduction::Sum), ("maximum", Reduction::Max)] {
        let mut reduced = values.f_detach_copy()?;
        group.all_reduce(&mut reduced, reduction)?;
        same_bits(&format!("all_reduce, {name} of one"), &reduced, &values)?;
    }
    same_bits("all_gather of one", &group.all_gather(&values)?, &values)?;
    let sent = values.f_detach_copy()?;
    let version = sent.f_internal_version()?;
    group.broadcast(&[&sent])?;
    group.share(&[(&sent, 0)])?;
    same_bits("broadcast of one", &sent, &values)?;
    // Copies in 16 bits are made anew by the version of what they are copies of.
    if sent.f_internal_version()? < version + 2 {
        return Err(Fault {
            what: "the version of a tensor that was received twice".into(),
            got: format!("{} after {version}", sent.f_internal_version()?),
            expected: "two more".into(),
            advice: ADVICE.into(),
        });
    }
    let leaf = values.f_detach_copy()?.f_set_requires_grad(true)?;
    let gathered = group.all_gather_with_grad(&leaf)?;
    gathered.f_mul(&values)?.f_sum(Kind::Float)?.f_backward()?;
    same_bits(
        "gradient through all_gather of one",
        &leaf.f_grad()?,
        &values,
    )?;
    // What agreements travel by, beside the device.
    let bytes = group.gather_bytes(b"one")?;
    match bytes[..] == [b"one".to_vec()] {
        true => Ok(()),
        false => Err(Fault {
            what: "gather_bytes of one".into(),
            got: format!("{bytes:?}"),
            expected: "the bytes that were given".into(),
            advice: ADVICE.into(),
        }),
    }
}

/// A step whose losses gather over the group.
fn step(group: &ProcessGroup, bench: &mut Bench) -> Result<(), Fault> {
    let inputs = Inputs::new(0, bench.device, Kind::Float)?;
    let make = |ranks: &dyn Collective| {
        let config = config(Tower::FrozenEva);
        let model = model(
            &config,
            bench.device,
            Precision::F32,
            ComputeOptions::default(),
        )?;
        numbers(&model, &inputs, ranks)
    };
    let (alone, in_group) = (make(&SingleProcess)?, make(group)?);
    let mut comparison = Comparison::new(F32);
    against(&mut comparison, "in a group of one", &in_group, &alone)?;
    note(bench, &comparison);
    comparison.end()
}

/// Gradients that the reducer averaged during two backward passes, against those without it.
fn reducer(group: &ProcessGroup, device: Device) -> Result<(), Fault> {
    let config = config(Tower::Eva);
    let alone = model(&config, device, Precision::F32, ComputeOptions::default())?;
    let reduced = model(&config, device, Precision::F32, ComputeOptions::default())?;
    let params: Vec<&Tensor> = reduced.params().trainable().map(|p| &p.tensor).collect();
    let reducer = group.reducer(&params, Gradients::OfAll)?;
    for number in 0..2 {
        let inputs = Inputs::new(number, device, Kind::Float)?;
        let expected = numbers(&alone, &inputs, &SingleProcess)?;
        let (_, output) = forward(&reduced, &inputs, &SingleProcess)?;
        reducer.prepare(&output.loss)?;
        output.loss.f_backward()?;
        reducer.check()?;
        let mut comparison = Comparison::new(F32);
        for ((name, expected), param) in expected.gradients.iter().zip(&params) {
            let what = format!("{name}, averaged in backward pass {number}");
            let is_zero = super::reference::is_zero_gradient(name);
            comparison.gradient(&what, &param.f_grad()?, expected, is_zero, 1.0)?;
        }
        comparison.end()?;
        for params in [alone.params(), reduced.params()] {
            let params: Vec<&Tensor> = params.trainable().map(|p| &p.tensor).collect();
            crate::ops::clear_gradients(&params)?;
        }
    }
    Ok(())
}
