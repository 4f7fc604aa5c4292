use tch::Kind;

use super::compare::{Comparison, BF16, F32};
use super::network::{config, model, Inputs, Tower};
use super::reference::reference;
use super::step::{against, numbers};
use super::*;
use crate::blip2::{Blip2Qformer, ComputeOptions};
use crate::collective::SingleProcess;
use crate::context::CHOOSING;
use crate::error::ModelError;

fn settings() -> SelfCheck {
    SelfCheck {
        device: Device::Cpu,
        precision: Precision::F32,
        golden: None,
    }
}

#[test]
fn a_cpu_passes() {
    let _alone = CHOOSING.lock();
    let mut names = Vec::new();
    let reports = run(&settings(), &mut |report| names.push(report.name));
    assert_eq!(names, CHECKS.map(|(name, _)| name));
    for report in &reports {
        match report.name {
            "reference" => assert!(matches!(report.outcome, Outcome::Skipped { .. })),
            _ => assert_eq!(report.outcome, Outcome::Ok, "{report:?}"),
        }
    }
    // Whole towers and Q-Formers were looked at.
    let quantities = reports[1].figures["quantities"].as_u64().unwrap();
    assert!(quantities > 500, "{quantities}");
}

/// The fault that a step of `model` has.
fn fault_of(model: &Blip2Qformer, tower: Tower, tolerance: compare::Tolerance) -> Option<Fault> {
    let inputs = Inputs::new(0, Device::Cpu, Kind::Float).unwrap();
    let got = numbers(model, &inputs, &SingleProcess).unwrap();
    let (reference, kind) = reference(&config(tower)).unwrap();
    let inputs = Inputs::new(0, Device::Cpu, kind).unwrap();
    let expected = numbers(&reference, &inputs, &SingleProcess).unwrap();
    let mut comparison = Comparison::new(tolerance);
    against(&mut comparison, "step", &got, &expected).unwrap();
    comparison.end().err()
}

/// One number that is wrong anywhere, and every parameter counts.
#[test]
fn a_wrong_number_anywhere_is_found() {
    let tower = Tower::Eva;
    let config = config(tower);
    let make = || {
        let compute = ComputeOptions::default();
        model(&config, Device::Cpu, Precision::F32, compute).unwrap()
    };
    assert_eq!(fault_of(&make(), tower, F32), None);
    let count = make().params().named_parameters().len();
    // Every seventh: each takes a step.
    for index in (0..count).step_by(7) {
        let model = make();
        let param = &model.params().named_parameters()[index];
        if reference::is_zero_gradient(&param.name) {
            continue;
        }
        // All of it: the rows of words and positions that no text has matter to nobody.
        let _ = tch::no_grad(|| param.tensor.shallow_clone().f_mul_scalar_(1.02)).unwrap();
        assert!(fault_of(&model, tower, F32).is_some(), "{}", param.name);
    }
}

/// What is wrong by far more than bfloat16 rounds is found in bfloat16.
#[test]
fn bfloat16_is_no_excuse() {
    let config = config(Tower::FrozenEva);
    let compute = ComputeOptions::default();
    let model = model(&config, Device::Cpu, Precision::Bf16, compute).unwrap();
    assert_eq!(fault_of(&model, Tower::FrozenEva, BF16), None);
    let name = "Qformer.bert.encoder.layer.0.crossattention.self.value.weight";
    let param = &model.params().get(name).unwrap().tensor;
    let _ = tch::no_grad(|| param.shallow_clone().f_mul_scalar_(1.2)).unwrap();
    assert!(fault_of(&model, Tower::FrozenEva, BF16).is_some());
}

#[test]
fn a_check_that_breaks_ends_no_other() {
    // Short for the check that hangs alone: a busy machine may be late with the others.
    let failed = |check: Check, limit: Duration, words: &str| {
        let report = make("broken", check, &settings(), limit);
        let Outcome::Failed(fault) = report.outcome else {
            panic!("{report:?}");
        };
        assert!(fault.to_string().contains(words), "{fault}");
    };
    failed(
        |_| panic!("out of order"),
        TIME_LIMIT,
        "a panic (out of order)",
    );
    failed(
        |_| {
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        },
        Duration::from_millis(300),
        "no answer within 0.3 s",
    );
    failed(
        |_| Err(ModelError::Stopped.into()),
        TIME_LIMIT,
        "a call that should succeed: stopped on request",
    );
    let fine = make("fine", |_| Ok(()), &settings(), TIME_LIMIT);
    assert_eq!(fine.outcome, Outcome::Ok);
}

/// Which is why the ranks of a run need not look for those without a gradient in every step.
#[test]
fn every_trained_parameter_gets_a_gradient() {
    use crate::collective::unreached;
    for tower in [Tower::FrozenEva, Tower::Eva, Tower::Clip, Tower::Small] {
        for precision in [Precision::F32, Precision::Bf16] {
            let compute = ComputeOptions::default();
            let model = model(&config(tower), Device::Cpu, precision, compute).unwrap();
            let inputs = Inputs::new(0, Device::Cpu, Kind::Float).unwrap();
            let (_, output) = step::forward(&model, &inputs, &SingleProcess).unwrap();
            let params: Vec<&tch::Tensor> = model
                .params()
                .trainable()
                .map(|param| &param.tensor)
                .collect();
            assert_eq!(unreached(&params, &output.loss).unwrap(), 0, "{tower:?}");
            // Not all belong to each loss.
            assert!(
                unreached(&params, &output.loss_itc).unwrap() > 2,
                "{tower:?}"
            );
            let other = tch::Tensor::ones([2], (Kind::Float, Device::Cpu));
            let other = other.set_requires_grad(true).sum(Kind::Float);
            assert_eq!(unreached(&params, &other).unwrap(), params.len());
            // A loss without a graph reaches nothing.
            assert_eq!(
                unreached(&params, &output.loss.detach()).unwrap(),
                params.len()
            );
        }
    }
}
