use qf_config::model::{FeaturesConfig, ModelConfig, VisionConfig};
use qf_pipeline::loader::{LoaderState, OrderKey, World};
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::LoaderConfig;
use tch::Device;

use super::*;
use crate::checkpoint;
use crate::collective::SingleProcess;
use crate::optim::AdamWConfig;

fn model() -> (Blip2Qformer, AdamW) {
    let mut config = ModelConfig::tiny();
    config.vision = VisionConfig::Features(FeaturesConfig { width: 8 });
    let sizes = &mut config.qformer;
    (sizes.hidden, sizes.intermediate, sizes.encoder_width) = (16, 16, 8);
    (sizes.vocab_size, sizes.dec_token_id) = (30, 29);
    let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
    let optimizer = AdamW::new(model.params(), &AdamWConfig::default()).unwrap();
    (model, optimizer)
}

fn state(step: u64, best: Option<u64>) -> TrainState {
    let order = OrderKey::new(&LoaderConfig::default(), Vec::new(), World::SINGLE);
    TrainState {
        best: best.map(|step| BestCheckpoint {
            step,
            metric: "loss".into(),
            value: 0.1,
        }),
        ..TrainState::new(step, LoaderState::start(order, 0))
    }
}

fn fill(model: &Blip2Qformer, value: f64) {
    for param in model.params().named_parameters() {
        let _ = param.tensor.detach().fill_(value);
    }
}

fn steps(folder: &Path) -> Vec<u64> {
    let all = list(folder).unwrap();
    all.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn a_save_keeps_the_moment_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (model, optimizer) = model();
    let retention = Retention { newest: 3 };
    let mut writer = CheckpointWriter::start(folder.path().into(), retention).unwrap();
    for step in 1..=3 {
        fill(&model, step as f64);
        let config = format!("steps = {step}\n");
        writer
            .save(
                &model,
                &optimizer,
                &SingleProcess,
                state(step, None),
                config,
                Vec::new(),
            )
            .unwrap();
        // Training goes on while the thread writes.
        fill(&model, -1.0);
    }
    writer.wait().unwrap();
    for step in 1..=3 {
        let found = checkpoint::of_step(folder.path(), step).unwrap().unwrap();
        assert_eq!(found.state, state(step, None));
        let (mut read, mut moments) = self::model();
        checkpoint::load_model(&found.folder, &mut read).unwrap();
        checkpoint::load_optimizer(&found.folder, &mut moments).unwrap();
        for param in read.params().named_parameters() {
            let expected = param.tensor.full_like(step as f64);
            assert_eq!(param.tensor.detach(), expected, "{}", param.name);
        }
        let config = fs::read_to_string(found.folder.join(CONFIG_FILE)).unwrap();
        assert_eq!(config, format!("steps = {step}\n"));
    }
}

#[test]
fn a_frozen_tower_is_in_every_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ModelConfig::tiny();
    config.qformer.vocab_size = 30;
    config.qformer.dec_token_id = 29;
    if let VisionConfig::Small(vit) = &mut config.vision {
        vit.trainable = false;
    }
    let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
    let optimizer = AdamW::new(model.params(), &AdamWConfig::default()).unwrap();
    let retention = Retention { newest: 3 };
    let mut writer = CheckpointWriter::start(folder.path().into(), retention).unwrap();
    for step in 1..=3 {
        writer
            .save(
                &model,
                &optimizer,
                &SingleProcess,
                state(step, None),
                String::new(),
                Vec::new(),
            )
            .unwrap();
    }
    writer.wait().unwrap();
    for step in 1..=3 {
        let found = checkpoint::of_step(folder.path(), step).unwrap().unwrap();
        let mut read = Blip2Qformer::new(&config, Device::Cpu, 2).unwrap();
        checkpoint::load_model(&found.folder, &mut read).unwrap();
        let pairs = model.params().named_parameters().iter();
        for (own, read) in pairs.zip(read.params().named_parameters()) {
            assert_eq!(own.tensor.detach(), read.tensor.detach(), "{}", own.name);
        }
    }
}

#[test]
fn the_newest_and_the_best_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (model, optimizer) = model();
    let save = |newest: usize, steps: &[(u64, Option<u64>)]| {
        let retention = Retention { newest };
        let mut writer = CheckpointWriter::start(folder.path().into(), retention).unwrap();
        for &(step, best) in steps {
            writer
                .save(
                    &model,
                    &optimizer,
                    &SingleProcess,
                    state(step, best),
                    String::new(),
                    Vec::new(),
                )
                .unwrap();
        }
        writer.wait().unwrap();
    };
    let best = || checkpoint::best(folder.path()).unwrap();
    save(2, &[(1, None), (2, Some(2)), (3, Some(2)), (4, Some(2))]);
    assert_eq!(steps(folder.path()), [2, 3, 4]);
    assert_eq!(best().unwrap().state.step, 2);
    save(2, &[(5, Some(2)), (6, Some(6)), (7, Some(6)), (8, Some(6))]);
    assert_eq!(steps(folder.path()), [6, 7, 8]);
    assert_eq!(best().unwrap().state.step, 6);
    save(0, &[(9, Some(9)), (10, Some(9))]);
    assert_eq!(steps(folder.path()), [9, 10]);
    // A run that went back to 9 makes 10 again: the newer one is of no use any more.
    save(1, &[(9, Some(9))]);
    assert_eq!(steps(folder.path()), [9]);
    fs::remove_dir_all(folder.path().join("step-00000009")).unwrap();
    assert_eq!(best(), None);
    assert!(!checkpoint::is_whole(folder.path(), 9).unwrap());
}

#[test]
fn what_goes_wrong_comes_back_and_leaves_the_ones_before() {
    let folder = tempfile::tempdir().unwrap();
    let (model, optimizer) = model();
    let retention = Retention { newest: 1 };
    let mut writer = CheckpointWriter::start(folder.path().into(), retention).unwrap();
    let save = |writer: &mut CheckpointWriter, step: u64| {
        writer.save(
            &model,
            &optimizer,
            &SingleProcess,
            state(step, None),
            String::new(),
            Vec::new(),
        )
    };
    save(&mut writer, 1).unwrap();
    let param = model.params().get("itm_head.bias").unwrap();
    let _ = param.tensor.detach().get(1).fill_(f64::NAN);
    save(&mut writer, 2).unwrap();
    let message = writer.wait().unwrap_err().to_string();
    assert!(
        message.contains("step 2: parameter `itm_head.bias`"),
        "{message}"
    );
    assert_eq!(steps(folder.path()), [1]);

    // The next save tells of the one before it, and the writer goes on.
    let mut writer = CheckpointWriter::start(folder.path().into(), retention).unwrap();
    save(&mut writer, 2).unwrap();
    assert!(save(&mut writer, 3).is_err());
    fill(&model, 1.0);
    save(&mut writer, 3).unwrap();
    writer.wait().unwrap();
    assert_eq!(steps(folder.path()), [3]);

    // A file where the folder should be.
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let mut writer = CheckpointWriter::start(blocked.clone(), retention).unwrap();
    save(&mut writer, 4).unwrap();
    let error = loop {
        match writer.poll() {
            Ok(()) => std::thread::yield_now(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains(&blocked.display().to_string()), "{error}");
    writer.wait().unwrap();
}

#[test]
fn a_checkpoint_carries_its_vocabulary() {
    let tokenizer = |words: [&str; 2]| {
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
        let entries = special.into_iter().chain(words).map(str::to_owned);
        CaptionTokenizer::from_vocab(entries.collect()).unwrap()
    };
    let model = |tokenizer: Option<&CaptionTokenizer>| {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Features(FeaturesConfig { width: 128 });
        (config.qformer.vocab_size, config.qformer.dec_token_id) = (7, 6);
        if let Some(tokenizer) = tokenizer {
            config.qformer.fit_to_tokenizer(tokenizer);
        }
        Blip2Qformer::new(&config, Device::Cpu, 1).unwrap()
    };
    let (own, other) = (tokenizer(["cat", "dog"]), tokenizer(["dog", "cat"]));
    let folder = tempfile::tempdir().unwrap();
    let mut writer =
        CheckpointWriter::start(folder.path().into(), Retention { newest: 3 }).unwrap();
    for (step, tokenizer) in [(1, Some(&own)), (2, None)] {
        let model = model(tokenizer);
        let optimizer = AdamW::new(model.params(), &AdamWConfig::default()).unwrap();
        let state = state(step, None);
        let config = String::new();
        writer
            .save(
                &model,
                &optimizer,
                &SingleProcess,
                state,
                config,
                Vec::new(),
            )
            .unwrap();
    }
    writer.wait().unwrap();
    let load = |step, tokenizer| {
        let found = checkpoint::of_step(folder.path(), step).unwrap().unwrap();
        checkpoint::load_model(&found.folder, &mut model(tokenizer))
    };
    load(1, Some(&own)).unwrap();
    load(1, None).unwrap();
    let error = load(1, Some(&other)).unwrap_err();
    let ModelError::Vocabulary {
        of_weights,
        of_tokenizer,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((of_weights, of_tokenizer), (own.digest(), other.digest()));
    // One that was written without a tokenizer, or by an older version, fits by shape alone.
    load(2, Some(&other)).unwrap();
}
