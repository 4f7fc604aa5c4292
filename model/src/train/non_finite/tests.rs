use std::sync::Arc;

use qf_config::model::{ModelConfig, VisionConfig, VitConfig};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::{train_vocabulary, CaptionTokenizer, VocabularyOptions};
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{Loader, LoaderConfig};

use super::*;
use crate::feed::{DeviceFeed, ReadyBatch};
use crate::optim::{AdamW, AdamWConfig};
use crate::train::parallel::Peers;
use crate::train::TrainConfig;
use crate::train::{Phases, Trainer};

/// A picture of one colour as a Windows bitmap.
fn bitmap(colour: u8) -> Vec<u8> {
    const SIDE: u32 = 8;
    let mut bytes = b"BM".to_vec();
    let pixels = SIDE * SIDE * 3;
    for field in [
        54 + pixels,
        0,
        54,
        40,
        SIDE,
        SIDE,
        1 | (24 << 16),
        0,
        pixels,
    ] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend([0; 16]);
    bytes.extend(std::iter::repeat_n(colour, pixels as usize));
    bytes
}

/// A feed of batches of 4 without end, and a trainer that fits it.
fn setup(folder: &Path) -> (Trainer, DeviceFeed) {
    setup_of(folder, 4)
}

/// The same for batches of another size.
pub(in crate::train) fn setup_of(folder: &Path, batch_size: usize) -> (Trainer, DeviceFeed) {
    let (trainer, loader) = trainer_and_loader(folder, batch_size);
    (
        trainer,
        DeviceFeed::start(loader, Device::Cpu, None).unwrap(),
    )
}

/// The configuration of a trainer of [`trainer_and_loader`], for batches of this size.
pub(in crate::train) fn config_of(trainer: &Trainer, batch_size: usize) -> TrainConfig {
    let mut table = toml::Table::new();
    table.insert("steps".into(), 1.into());
    let model = toml::Table::try_from(trainer.model.config()).unwrap();
    table.insert("model".into(), model.into());
    let mut config: TrainConfig = table.try_into().unwrap();
    (config.data.batch_size, config.data.image_size) = (batch_size, 32);
    config
}

/// The same with the loader itself.
pub(in crate::train) fn trainer_and_loader(folder: &Path, batch_size: usize) -> (Trainer, Loader) {
    let path = folder.join("colours.tar");
    let mut writer = ShardWriter::create(&path, &ShardOptions::new(ShardFormat::Tar)).unwrap();
    for number in 0..8u8 {
        writer
            .write(&ShardSample {
                key: number.to_string(),
                extension: "bmp".into(),
                image: bitmap(number * 30),
                captions: vec![format!("colour number {number}")],
                text_member: true,
                json: None,
                members: Vec::new(),
            })
            .unwrap();
    }
    writer.finish().unwrap();
    let captions = ["colour number 0 1 2 3 4 5 6 7".to_string()].into_iter();
    let vocabulary = train_vocabulary(captions, &VocabularyOptions::default());
    let tokenizer = Arc::new(CaptionTokenizer::from_vocab(vocabulary).unwrap());
    let mut config = ModelConfig::tiny();
    config.vision = VisionConfig::Small(VitConfig {
        image_size: 32,
        patch_size: 16,
        width: 16,
        depth: 1,
        heads: 2,
        mlp: 32,
        trainable: true,
        drop_path: 0.0,
        checkpoint_activations: false,
    });
    let sizes = &mut config.qformer;
    (sizes.hidden, sizes.intermediate, sizes.encoder_width) = (32, 64, 16);
    sizes.vocab_size = tokenizer.vocab_size() as i64;
    sizes.dec_token_id = tokenizer.dec_id();
    let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
    let optimizer = AdamW::new(model.params(), &AdamWConfig::default()).unwrap();
    let trainer = Trainer {
        model,
        optimizer,
        scaler: None,
        step: 0,
        best: None,
    };
    let data = LoaderConfig {
        batch_size,
        image_size: 32,
        threads: 1,
        ..LoaderConfig::default()
    };
    let shards = resolve_shards(&[path.to_string_lossy()]).unwrap();
    let loader = Loader::builder(data)
        .shards(shards)
        .batches(tokenizer)
        .unwrap();
    (trainer, loader)
}

/// Makes a step with one entry of a parameter replaced for as long as it takes.
fn step_with(
    trainer: &mut Trainer,
    feed: &mut DeviceFeed,
    guard: &mut Guard<'_>,
    poison: Option<(&str, f64)>,
) -> Result<Verdict, ModelError> {
    let batch = feed.next_batch().unwrap().unwrap();
    let entry = poison.map(|(name, value)| {
        let param = &trainer.model.params().get(name).unwrap().tensor;
        let entry = param.detach().view(-1).get(0);
        let old = entry.copy();
        let _ = entry.shallow_clone().fill_(value);
        (entry, old)
    });
    let result = trainer.train_step(
        vec![batch],
        3,
        1e-3,
        &Peers::SINGLE,
        guard,
        &mut Phases::start(),
    );
    if let Some((mut entry, old)) = entry {
        entry.copy_(&old);
    }
    result
        .map(|done| done.verdict)
        .map_err(|failure| *failure.error)
}

fn values(trainer: &Trainer) -> Vec<Tensor> {
    let params = trainer.model.params().named_parameters().iter();
    params.map(|param| param.tensor.detach().copy()).collect()
}

fn same(one: &[Tensor], other: &[Tensor]) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}

#[test]
fn a_bad_step_is_skipped_and_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, mut feed) = setup(folder.path());
    let kept = folder.path().join("non-finite");
    let mut guard = Guard::new(OnNonFinite::Skip, 2, kept.clone(), Device::Cpu);
    let mut step = |trainer: &mut Trainer, guard: &mut Guard, poison| {
        step_with(trainer, &mut feed, guard, poison)
    };
    let bad = Some(("temp", f64::NAN));
    assert!(matches!(
        step(&mut trainer, &mut guard, None).unwrap(),
        Verdict::Update
    ));
    let before = values(&trainer);
    for number in [2, 3] {
        let Verdict::Skip(record) = step(&mut trainer, &mut guard, bad).unwrap() else {
            panic!("not skipped");
        };
        assert_eq!((record.step, trainer.step), (number, number));
        assert_eq!(record.first_tensor, "`sim_i2t` (as is parameter `temp`)");
        assert_eq!(record.samples.len(), 4);
        assert!(record.batch.unwrap().join("batch.json").is_file());
        assert!(same(&before, &values(&trainer)));
    }
    // A good step ends the row of skips, and moves the weights.
    assert!(matches!(
        step(&mut trainer, &mut guard, None).unwrap(),
        Verdict::Update
    ));
    assert!(!same(&before, &values(&trainer)));
    for _ in 0..2 {
        assert!(step(&mut trainer, &mut guard, bad).is_ok());
    }
    let message = step(&mut trainer, &mut guard, bad)
        .err()
        .unwrap()
        .to_string();
    for word in ["step 7:", "sim_i2t", "2 updates before it", "colours.tar#"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 5);
}

#[test]
fn the_first_bad_tensor_is_named() {
    let head = "Qformer.cls.predictions.bias";
    // A step that is looked at later is watched by its losses and the norm of its gradients alone.
    for (parameter, value, expected, watched) in [
        ("query_tokens", f64::NAN, "`image_feats`", "`loss_itc`"),
        (
            "vision_proj.bias",
            f64::INFINITY,
            "`image_feats`",
            "`loss_itc`",
        ),
        ("text_proj.bias", f64::NAN, "`text_feat`", "`loss_itc`"),
        ("itm_head.bias", f64::NAN, "`itm_logits`", "`loss_itm`"),
        (head, f64::NAN, "`loss_lm`", "`loss_lm`"),
        (
            "visual_encoder.cls_token",
            f64::NAN,
            "`image_embeds`",
            "`loss_itc`",
        ),
    ] {
        for (defers, expected) in [(false, expected), (true, watched)] {
            let folder = tempfile::tempdir().unwrap();
            let (mut trainer, mut feed) = setup(folder.path());
            let kept = folder.path().join("non-finite");
            let mut guard = Guard::new(OnNonFinite::Stop, 1, kept, Device::Cpu);
            guard.defers = defers;
            let mut step = |trainer: &mut Trainer, guard: &mut Guard, poison| {
                step_with(trainer, &mut feed, guard, poison)
            };
            step(&mut trainer, &mut guard, None).unwrap();
            let result = step(&mut trainer, &mut guard, Some((parameter, value)));
            let error = if defers {
                // It went unseen, and so does what follows, until the numbers are needed.
                assert!(result.is_ok());
                step(&mut trainer, &mut guard, None).unwrap();
                guard.settle().unwrap_err()
            } else {
                result.err().unwrap()
            };
            let message = error.to_string();
            assert!(
                message.starts_with(&format!("step 2: {expected}")),
                "{message}"
            );
            let names_parameter = message.contains(&format!("parameter `{parameter}`"));
            assert_eq!(names_parameter, !defers, "{message}");
            assert!(message.contains("non-finite/step-00000002"), "{message}");
        }
    }
}

#[test]
fn gradients_count_and_waiting_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, mut feed) = setup(folder.path());
    let kept = folder.path().join("non-finite");
    let mut guard = Guard::new(OnNonFinite::Stop, 1, kept, Device::Cpu);
    guard.defers = true;
    for _ in 0..20 {
        step_with(&mut trainer, &mut feed, &mut guard, None).unwrap();
        assert!(guard.pending.len() < MAX_PENDING);
    }
    guard.settle().unwrap();
    assert!(guard.pending.is_empty());

    // A loss that is finite with a gradient that is not.
    step_with(&mut trainer, &mut feed, &mut guard, None).unwrap();
    let batch = feed.next_batch().unwrap().unwrap();
    guard.pending.clear();
    let name = "Qformer.bert.encoder.layer.0.attention.self.query.weight";
    let param = &trainer.model.params().get(name).unwrap().tensor;
    let _ = param.grad().fill_(f64::INFINITY);
    let ReadyBatch { host, input, .. } = batch;
    let embeds = trainer.model.encode_image(&input.images).unwrap();
    let output = tch::no_grad(|| {
        let input = crate::StepInput {
            image_embeds: &embeds,
            token_ids: &input.token_ids,
            attention_mask: &input.attention_mask,
            image_ids: None,
        };
        let negatives = crate::NegativeSampling::Multinomial;
        let model = &trainer.model;
        model.forward_losses(&input, negatives, &crate::SingleProcess, false)
    })
    .unwrap();
    let norm = trainer.optimizer.gradient_norm().unwrap();
    let done = [MicroStep {
        batch: host,
        input,
        image_embeds: embeds,
        output,
    }];
    let view = StepView {
        step: 22,
        batches: &done,
        model: &trainer.model,
        gradient_norm: Some(&norm),
    };
    for (defers, expected) in [
        (
            false,
            format!("step 22: the gradient of `{name}` is not finite"),
        ),
        (
            true,
            "step 22: the norm of all gradients is not finite".into(),
        ),
    ] {
        guard.defers = defers;
        let error = match guard.judge(&view) {
            Err(error) => error,
            Ok(_) => guard.settle().unwrap_err(),
        };
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}
