//! `qftrain bench`: the time of a training step by part, on synthetic data.

use std::time::Instant;

use anyhow::{bail, Context};
use qf_model::config::FeaturesConfig;
use qf_model::context::choose_kernels;
use qf_model::device::{default_precision, open_device, seed};
use qf_model::flops::{matmul_peak, savings, StepFlops, StepShape};
use qf_model::{
    AdamW, Blip2Qformer, ComputeOptions, ModelConfig, NegativeSampling, SingleProcess, StepInput,
    VisionConfig,
};
use qftrain::args::BenchArgs;
use qftrain::settings::Settings;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use qf_cli::output::{remark, say};

/// Token counts of the first captions of the COCO 2017 validation set, `[CLS]` and `[SEP]`
/// included.
const COCO_LENGTHS: [i64; 16] = [
    13, 10, 14, 10, 16, 13, 15, 12, 16, 11, 11, 11, 11, 14, 10, 18,
];

/// Tokens of each caption of a batch.
fn lengths(args: &BenchArgs) -> Vec<i64> {
    let lengths = match args.lengths.is_empty() {
        true => &COCO_LENGTHS[..],
        false => &args.lengths,
    };
    let lengths = lengths.iter().copied().cycle();
    lengths.take(args.batch_size as usize).collect()
}

/// Seconds of one step.
#[derive(Clone, Copy, Serialize)]
struct StepTime {
    forward_s: f64,
    backward_s: f64,
    optimiser_s: f64,
    step_s: f64,
    loss: f64,
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let device = open_device(args.device)?;
    if let Some(threads) = args.threads {
        tch::set_num_threads(i32::try_from(threads).context("--threads")?);
    }
    let mut settings = Settings::preset(&args.preset)?;
    for text in &args.set {
        settings.set_from_text(text)?;
    }
    let config = settings.resolve()?;
    choose_kernels(config.kernels())?;
    let mut model_config = config.model.clone();
    let Some(vit) = config.model.vision.vit() else {
        bail!(
            "--preset {}: needs a vision tower for its sizes",
            args.preset
        );
    };
    let (image_tokens, image_size) = (vit.tokens(), vit.image_size);
    if args.features {
        let width = vit.width;
        model_config.vision = VisionConfig::Features(FeaturesConfig { width });
    }
    let lengths = lengths(args);
    let text_len = match args.all_rows {
        true => config.data.text_len as i64,
        false => lengths.iter().copied().max().unwrap_or(2),
    };
    let most = model_config.qformer.max_positions.min(text_len);
    if lengths.iter().any(|&length| length > most) {
        bail!("--lengths: at most {most} tokens");
    }
    let shape = StepShape {
        lengths: &lengths,
        text_len,
        image_tokens,
    };
    let compute = match args.all_rows {
        true => ComputeOptions::ALL_ROWS,
        false => ComputeOptions::default(),
    };

    let mut model = Blip2Qformer::new(&model_config, device, config.seed)?;
    model.set_compute(compute);
    let precision = args
        .precision
        .or(config.precision)
        .unwrap_or(default_precision(device));
    model.set_precision(precision)?;
    let mut optimizer = AdamW::new(model.params(), &config.optimizer)?;
    let batch = Inputs::new(&model_config, &shape, image_size, device)?;
    let mut times = Vec::new();
    for step in 0..args.warmup + args.steps {
        let time = one_step(&model, &mut optimizer, &batch, device)?;
        if step >= args.warmup {
            if args.json {
                say(format_args!("{}", serde_json::to_string(&time)?))?;
            }
            times.push(time);
        }
    }
    if args.json {
        return Ok(());
    }
    let timed = Timed {
        config: &model_config,
        shape,
        compute,
        times: &times,
        peak: matmul_peak(device, precision)?,
    };
    report(args, &timed)
}

/// A batch that stays the same.
struct Inputs {
    images: Tensor,
    token_ids: Tensor,
    attention_mask: Tensor,
}

impl Inputs {
    fn new(
        config: &ModelConfig,
        shape: &StepShape<'_>,
        image_size: i64,
        device: Device,
    ) -> anyhow::Result<Inputs> {
        seed(0, device)?;
        let batch = shape.lengths.len() as i64;
        let image_shape = match &config.vision {
            VisionConfig::Features(features) => vec![batch, shape.image_tokens, features.width],
            _ => vec![batch, 3, image_size, image_size],
        };
        let images = Tensor::f_randn(image_shape, (Kind::Float, device))?;
        let lengths = Tensor::from_slice(shape.lengths).f_view([batch, 1])?;
        let columns = Tensor::f_arange(shape.text_len, (Kind::Int64, Device::Cpu))?;
        let attention_mask = columns.f_lt_tensor(&lengths)?.f_to_kind(Kind::Int64)?;
        let sizes = [batch, shape.text_len];
        let highest = config.qformer.dec_token_id.max(2);
        let options = (Kind::Int64, Device::Cpu);
        let ids = Tensor::f_randint_low(1, highest, sizes, options)?.f_mul(&attention_mask)?;
        Ok(Inputs {
            images,
            token_ids: ids.f_to_device(device)?,
            attention_mask: attention_mask.f_to_device(device)?,
        })
    }
}

fn one_step(
    model: &Blip2Qformer,
    optimizer: &mut AdamW,
    batch: &Inputs,
    device: Device,
) -> anyhow::Result<StepTime> {
    synchronize(device);
    let start = Instant::now();
    let image_embeds = model.encode_image(&batch.images)?;
    let input = StepInput {
        image_embeds: &image_embeds,
        token_ids: &batch.token_ids,
        attention_mask: &batch.attention_mask,
        image_ids: None,
    };
    let output =
        model.forward_losses(&input, NegativeSampling::Multinomial, &SingleProcess, true)?;
    synchronize(device);
    let forward = Instant::now();
    output.loss.f_backward()?;
    synchronize(device);
    let backward = Instant::now();
    optimizer.step(1e-4)?;
    optimizer.zero_grad()?;
    synchronize(device);
    let end = Instant::now();
    let secs = |from: Instant, to: Instant| (to - from).as_secs_f64();
    Ok(StepTime {
        forward_s: secs(start, forward),
        backward_s: secs(forward, backward),
        optimiser_s: secs(backward, end),
        step_s: secs(start, end),
        loss: f64::try_from(&output.loss)?,
    })
}

fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// What was timed.
struct Timed<'a> {
    config: &'a ModelConfig,
    shape: StepShape<'a>,
    compute: ComputeOptions,
    times: &'a [StepTime],
    /// FLOP/s of a large matrix product.
    peak: f64,
}

fn report(args: &BenchArgs, timed: &Timed<'_>) -> anyhow::Result<()> {
    let shape = &timed.shape;
    remark(format_args!(
        "{}{}: batch {}, {} tokens a caption at most, {} steps, {} threads",
        args.preset,
        if args.features {
            ", image features given"
        } else {
            ""
        },
        shape.lengths.len(),
        shape.lengths.iter().max().unwrap_or(&0),
        timed.times.len(),
        tch::get_num_threads()
    ));
    let ours = StepFlops::step(timed.config, shape, timed.compute);
    let reference_shape = StepShape {
        text_len: 32.max(shape.text_len),
        ..shape.clone()
    };
    let reference = StepFlops::reference(timed.config, &reference_shape);
    print_times(timed, &ours)?;
    print_operations(&reference, &ours)?;
    match timed.compute == ComputeOptions::ALL_ROWS {
        true => Ok(()),
        false => print_savings(timed.config, &reference_shape, &reference),
    }
}

/// Medians of the parts of a step, and the rates that they reach.
fn print_times(timed: &Timed<'_>, ours: &StepFlops) -> anyhow::Result<()> {
    let (times, peak) = (timed.times, timed.peak);
    let (forward, backward) = ours.parts().iter().fold((0.0, 0.0), |(f, b), (_, pass)| {
        (f + pass.forward, b + pass.backward)
    });
    let median_of = |part: fn(&StepTime) -> f64| median(times.iter().map(part));
    say(format_args!(
        "{:<22} {:>10} {:>10} {:>10} {:>14}",
        "part", "median s", "GFLOP", "GFLOP/s", "share of peak"
    ))?;
    let row = |name: &str, seconds: f64, flops: f64| {
        say(format_args!(
            "{name:<22} {seconds:>10.3} {:>10.1} {:>10.1} {:>13.1}%",
            flops / 1e9,
            flops / seconds / 1e9,
            100.0 * flops / seconds / peak
        ))
    };
    row("forward", median_of(|t| t.forward_s), forward)?;
    row("backward", median_of(|t| t.backward_s), backward)?;
    say(format_args!(
        "{:<22} {:>10.3}",
        "optimiser",
        median_of(|t| t.optimiser_s)
    ))?;
    let step = median_of(|t| t.step_s);
    row("step", step, ours.total())?;
    say(format_args!(
        "{:.2} images/s; measured matmul peak {:.1} GFLOP/s",
        timed.shape.lengths.len() as f64 / step,
        peak / 1e9
    ))
}

/// Operations of a step by part, the reference's and ours.
fn print_operations(reference: &StepFlops, ours: &StepFlops) -> anyhow::Result<()> {
    say(format_args!(
        "\n{:<22} {:>16} {:>12} {:>8}",
        "GFLOP a step", "reference", "here", "share"
    ))?;
    let row = |name: &str, theirs: f64, ours: f64| {
        say(format_args!(
            "{name:<22} {:>16.1} {:>12.1} {:>7.1}%",
            theirs / 1e9,
            ours / 1e9,
            100.0 * ours / theirs
        ))
    };
    for ((name, theirs), (_, ours)) in reference.parts().iter().zip(ours.parts()) {
        if theirs.total() > 0.0 {
            row(name, theirs.total(), ours.total())?;
        }
    }
    row("all", reference.total(), ours.total())
}

/// What of the reference's operations a step leaves out.
fn print_savings(
    config: &ModelConfig,
    shape: &StepShape<'_>,
    reference: &StepFlops,
) -> anyhow::Result<()> {
    say(format_args!(
        "\n{:<74} {:>9} {:>8}",
        "saved, GFLOP a step", "", "share"
    ))?;
    for (name, flops) in savings(config, shape) {
        say(format_args!(
            "{name:<74} {:>9.1} {:>7.1}%",
            flops / 1e9,
            100.0 * flops / reference.total()
        ))?;
    }
    Ok(())
}
