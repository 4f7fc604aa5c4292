//! What a resumed run has other than before: every changed setting is said, and what would make it
//! another run needs `--allow-changes`.

use std::collections::BTreeMap;

use anyhow::bail;
use qf_config::TrainConfig;
use toml::Value;

use crate::settings::flatten;
use qf_cli::output::remark;

/// What another value of a setting does to a run that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It changes no number of training: speed, what is kept, how data are reached, what ends the run.
    None,
    /// Learning rates of the steps to come, if any.
    Schedule,
    /// Pixels of images.
    Pixels,
    /// Captions and token ids.
    Text,
    /// Which samples are used.
    Samples,
    /// Losses, gradients or updates.
    Numbers,
    /// It mattered at the start alone.
    Start,
    /// The order of samples, or random numbers: the checkpoint holds them, and is refused with others.
    Order,
    /// Found out anew, from the tokenizer.
    Derived,
}

impl Effect {
    /// What it changes, where that needs the user's word.
    fn breaks(self) -> Option<&'static str> {
        match self {
            Effect::Schedule => Some("learning rates"),
            Effect::Pixels => Some("pixels"),
            Effect::Text => Some("texts"),
            Effect::Samples => Some("which samples are used"),
            Effect::Numbers => Some("losses or updates"),
            Effect::None | Effect::Start | Effect::Order | Effect::Derived => None,
        }
    }
}

/// Every setting, by its name in the configuration file or, with a dot at its end, a whole section; the
/// first that fits counts.
const EFFECTS: &[(&str, Effect)] = &[
    ("shards", Effect::None), // Names and sizes of shards are part of the loader's state.
    ("mix", Effect::Order),
    ("remote.", Effect::None),
    ("steps", Effect::Schedule),
    ("steps_per_epoch", Effect::Schedule),
    ("schedule.", Effect::Schedule),
    ("seed", Effect::Order),
    ("tokenizer", Effect::Start),
    ("trained_vocab_size", Effect::Start),
    ("weights.", Effect::Start),
    ("log_every_steps", Effect::None),
    ("checkpoint_every_steps", Effect::None),
    ("keep_checkpoints", Effect::None),
    ("on_non_finite", Effect::None),
    ("max_skips_in_a_row", Effect::None),
    ("accumulate_steps", Effect::Numbers),
    ("precision", Effect::Numbers),
    ("allow_tf32", Effect::Numbers),
    ("deterministic", Effect::None), // Other bits on a GPU, from kernels that promise none.
    ("tower_ahead", Effect::None),
    ("cuda_graphs", Effect::None),
    ("freeze", Effect::Numbers),
    ("validation.", Effect::None),
    ("optimizer.shard_state", Effect::None),
    ("optimizer.", Effect::Numbers),
    ("model.qformer.vocab_size", Effect::Derived),
    ("model.qformer.dec_token_id", Effect::Derived),
    ("model.qformer.pad_token_id", Effect::Derived),
    ("model.qformer.vocabulary_sha256", Effect::Derived),
    ("model.", Effect::Numbers),
    ("data.batch_size", Effect::Order),
    ("data.seed", Effect::Order),
    ("data.shuffle", Effect::Order),
    ("data.shuffle_buffer_samples", Effect::Order),
    ("data.drop_last", Effect::Order),
    ("data.epochs", Effect::None),
    ("data.image_size", Effect::Pixels),
    ("data.processing", Effect::Pixels),
    ("data.crop_scale", Effect::Pixels),
    ("data.crop_ratio", Effect::Pixels),
    ("data.flip_probability", Effect::Pixels),
    ("data.decode_quality", Effect::Pixels),
    ("data.on_truncated", Effect::Pixels),
    ("data.text_len", Effect::Text),
    ("data.max_words", Effect::Text),
    ("data.prompt", Effect::Text),
    ("data.image_ids", Effect::Numbers),
    ("data.captions", Effect::Text),
    ("data.caption_column", Effect::Text),
    ("data.caption_lines", Effect::Order),
    ("data.image_column", Effect::Samples),
    ("data.filters.", Effect::Samples),
    ("data.max_sample_bytes", Effect::Samples),
    ("data.max_sample_members", Effect::Samples),
    ("data.max_decompression_ratio", Effect::Samples),
    ("data.max_image_side", Effect::Samples),
    ("data.max_image_pixels", Effect::Samples),
    ("data.decode_memory_bytes", Effect::Samples),
    ("data.max_zstd_window_log", Effect::Samples),
    ("data.extra_members", Effect::None),
    ("data.shuffle_buffer_bytes", Effect::None),
    ("data.read_ahead_bytes", Effect::None),
    ("data.threads", Effect::None),
    ("data.io_threads", Effect::None),
    ("data.prefetch_batches", Effect::None),
    ("data.on_bad_sample", Effect::None),
    ("data.on_bad_shard", Effect::None),
    ("data.verify", Effect::None),
    ("data.max_bad_share", Effect::None),
];

/// Characters of a value that a message shows.
const SHOWN: usize = 80;

/// Points of a schedule that are compared, at most.
const COMPARED_RATES: u64 = 10_000;

fn effect(setting: &str) -> Option<Effect> {
    let fits = |(name, _): &&(&str, Effect)| match name.strip_suffix('.') {
        Some(section) => (setting.strip_prefix(section)).is_some_and(|rest| rest.starts_with('.')),
        None => *name == setting,
    };
    EFFECTS.iter().find(fits).map(|(_, effect)| *effect)
}

/// A setting with another value than before.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name in a configuration file.
    pub setting: String,
    /// As TOML; `unset` where it was not set.
    pub before: String,
    /// The same of now.
    pub now: String,
    effect: Effect,
}

/// The settings in which two runs differ, by name.
pub fn differences(a: &TrainConfig, b: &TrainConfig) -> anyhow::Result<Vec<Change>> {
    changes(a, b, 0)
}

/// Says what a run that goes on after `step` has other than the one that saved it.
///
/// # Errors
/// One that names the settings which make it another run, unless `allows_changes`; and those that only
/// a new run can have.
pub fn check_changes(
    saved: &TrainConfig,
    now: &TrainConfig,
    step: u64,
    allows_changes: bool,
) -> anyhow::Result<()> {
    let changes = changes(saved, now, step)?;
    let is_said = |change: &&Change| !matches!(change.effect, Effect::Derived | Effect::Order);
    let said: Vec<String> = changes.iter().filter(is_said).map(in_words).collect();
    if said.is_empty() {
        return Ok(());
    }
    remark(format_args!(
        "changed since step {step}: {}",
        said.join("; ")
    ));
    let of_start: Vec<&str> = names(&changes, |change| change.effect == Effect::Start);
    if !of_start.is_empty() {
        bail!(
            "--resume: {} says how a run starts and changes nothing of one that goes on; leave it as it \
             was, or start a new run with --weights and the folder of this one",
            of_start.join(", ")
        );
    }
    let breaking = names(&changes, |change| change.effect.breaks().is_some());
    if breaking.is_empty() || allows_changes {
        return Ok(());
    }
    bail!(
        "--resume: with another {} the run does not go on as it began; leave it as it was, or add \
         --allow-changes",
        breaking.join(", ")
    );
}

fn names(changes: &[Change], wanted: impl Fn(&Change) -> bool) -> Vec<&str> {
    let wanted = changes.iter().filter(|change| wanted(change));
    wanted.map(|change| change.setting.as_str()).collect()
}

fn in_words(change: &Change) -> String {
    let Change {
        setting,
        before,
        now,
        effect,
    } = change;
    match effect.breaks() {
        Some(what) => format!("{setting} {before} → {now} (changes {what})"),
        None => format!("{setting} {before} → {now}"),
    }
}

fn changes(saved: &TrainConfig, now: &TrainConfig, step: u64) -> anyhow::Result<Vec<Change>> {
    let flat = |config: &TrainConfig| -> anyhow::Result<BTreeMap<String, String>> {
        let mut settings = BTreeMap::new();
        flatten("", &Value::try_from(config)?, &mut settings);
        Ok(settings)
    };
    let (before, after) = (flat(saved)?, flat(now)?);
    let same_rates = has_same_rates(saved, now, step);
    let mut settings: Vec<&String> = before.keys().chain(after.keys()).collect();
    settings.sort();
    settings.dedup();
    let shown = |value: Option<&String>| match value {
        None => "unset".to_string(),
        Some(value) => match value.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value.clone(),
        },
    };
    let changed = settings
        .into_iter()
        .filter(|setting| before.get(*setting) != after.get(*setting));
    let changed = changed.map(|setting| Change {
        setting: setting.clone(),
        before: shown(before.get(setting)),
        now: shown(after.get(setting)),
        // What is not in the table may change anything.
        effect: match effect(setting).unwrap_or(Effect::Numbers) {
            Effect::Schedule if same_rates => Effect::None,
            effect => effect,
        },
    });
    Ok(changed.collect())
}

/// Whether every step to come has the learning rate that it would have had.
fn has_same_rates(saved: &TrainConfig, now: &TrainConfig, step: u64) -> bool {
    let rate = |config: &TrainConfig, step: u64| {
        let TrainConfig {
            steps,
            steps_per_epoch,
            ..
        } = config;
        config.schedule.lr(step, *steps, *steps_per_epoch)
    };
    let left = now.steps.saturating_sub(step);
    let stride = (left / COMPARED_RATES).max(1) as usize;
    let last = now.steps.saturating_sub(1).max(step);
    let mut compared = (step..now.steps).step_by(stride).chain([last]);
    compared.all(|step| rate(saved, step) == rate(now, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn config(options: &[&str]) -> TrainConfig {
        let mut settings = Settings::preset("tiny").unwrap();
        for option in options {
            settings.set_from_text(option).unwrap();
        }
        settings.resolve().unwrap()
    }

    /// Settings that serde takes in this section, from what it says of one that it does not.
    fn known(section: &[&str]) -> Vec<String> {
        let path = [section, &["no_such_setting"]].concat().join(".");
        let mut settings = Settings::preset("tiny").unwrap();
        settings.set(&path, 0).unwrap();
        let message = settings.unknown_setting().unwrap();
        assert!(message.contains("no_such_setting"), "{message}");
        let (_, list) = message.split_once(", expected ").unwrap();
        let list = list.lines().next().unwrap();
        let names = list.split('`').skip(1).step_by(2);
        names
            .map(|name| [section, &[name]].concat().join("."))
            .collect()
    }

    #[test]
    fn every_setting_has_an_effect() {
        let mut missing = Vec::new();
        let sections = [
            "remote",
            "data",
            "model",
            "weights",
            "optimizer",
            "validation",
            "schedule",
        ];
        for setting in known(&[]) {
            match sections.contains(&setting.as_str()) {
                // Of a section every setting.
                true if setting == "data" => {
                    let filters = "data.filters".to_string();
                    let all = known(&["data"]).into_iter().filter(|name| *name != filters);
                    missing.extend(all.filter(|name| effect(name).is_none()));
                }
                true => missing.extend(
                    Some(format!("{setting}.anything")).filter(|name| effect(name).is_none()),
                ),
                false => missing.extend(Some(setting).filter(|name| effect(name).is_none())),
            }
        }
        assert!(
            missing.is_empty(),
            "EFFECTS lacks {missing:?}: what does another value do to a run that is resumed?"
        );
    }

    #[test]
    fn the_reference_lists_every_setting() {
        let page = include_str!("../../../docs/reference/configuration.md");
        let listed = page.lines().filter_map(|line| {
            let name = line.strip_prefix("| `")?;
            Some(name.split('`').next().unwrap_or_default().to_string())
        });
        let mut listed: Vec<String> = listed.collect();
        let sections: [&[&str]; 10] = [
            &[],
            &["remote"],
            &["data"],
            &["data", "filters"],
            &["validation"],
            &["model", "vision"],
            &["model", "qformer"],
            &["weights"],
            &["optimizer"],
            &["schedule"],
        ];
        let mut settings: Vec<String> = sections.into_iter().flat_map(known).collect();
        listed.sort();
        settings.sort();
        assert_eq!(listed, settings);
    }

    fn effects(saved: &[&str], now: &[&str], step: u64) -> Vec<(String, Effect)> {
        let changes = changes(&config(saved), &config(now), step).unwrap();
        changes.into_iter().map(|c| (c.setting, c.effect)).collect()
    }

    #[test]
    fn changes_are_found_with_what_they_do() {
        assert_eq!(effects(&["steps=9"], &["steps=9"], 3), []);
        let now = [
            "data.decode_quality=fast",
            "data.threads=3",
            "data.filters.min_side=9",
            "optimizer.beta2=0.5",
            "optimizer.shard_state=true",
            "optimizer.max_grad_norm=1.0",
            "model.qformer.label_smoothing=0.2",
            "data.seed=3",
            "remote.outage_secs=3",
            "model.qformer.vocab_size=77",
            "weights.bert=x",
        ];
        let expected = [
            ("data.decode_quality", Effect::Pixels),
            ("data.filters.min_side", Effect::Samples),
            ("data.seed", Effect::Order),
            ("data.threads", Effect::None),
            ("model.qformer.label_smoothing", Effect::Numbers),
            ("model.qformer.vocab_size", Effect::Derived),
            ("optimizer.beta2", Effect::Numbers),
            ("optimizer.max_grad_norm", Effect::Numbers),
            ("optimizer.shard_state", Effect::None),
            ("remote.outage_secs", Effect::None),
            ("weights.bert", Effect::Start),
            ("weights.fresh_head", Effect::Start),
        ];
        let expected = expected.map(|(name, effect)| (name.to_string(), effect));
        assert_eq!(effects(&[], &now, 0), expected);
    }

    #[test]
    fn the_length_matters_only_to_a_schedule_that_looks_at_it() {
        let constant = [
            "schedule.init_lr=1e-3",
            "schedule.min_lr=1e-3",
            "schedule.warmup_steps=0",
        ];
        let with = |more: &[&'static str]| [&constant[..], more].concat();
        let steps = |effect| vec![("steps".to_string(), effect)];
        let (eight, twelve) = (with(&["steps=8"]), with(&["steps=12"]));
        assert_eq!(effects(&eight, &twelve, 5), steps(Effect::None));
        let (warm_8, warm_12) = (["steps=8"], ["steps=12"]);
        // The preset warms up for 200 steps, whatever comes after them.
        assert_eq!(effects(&warm_8, &warm_12, 5), steps(Effect::None));
        let cosine = |steps| ["schedule.warmup_steps=0", steps];
        let (eight, twelve) = (cosine("steps=8"), cosine("steps=12"));
        assert_eq!(effects(&eight, &twelve, 5), steps(Effect::Schedule));
        assert_eq!(effects(&eight, &twelve, 8), steps(Effect::Schedule));
        // A warm-up that is over is over.
        let warm = |lr: &'static str| with(&["schedule.warmup_steps=4", lr]);
        let (low, high) = (
            warm("schedule.warmup_lr=1e-5"),
            warm("schedule.warmup_lr=1e-4"),
        );
        let warmup = |effect| vec![("schedule.warmup_lr".to_string(), effect)];
        assert_eq!(effects(&low, &high, 2), warmup(Effect::Schedule));
        assert_eq!(effects(&low, &high, 4), warmup(Effect::None));
    }

    #[test]
    fn what_makes_another_run_needs_a_word() {
        let base = config(&["steps=100"]);
        let check = |options: &[&str], allows| {
            let now = config(&[&["steps=100"], options].concat());
            check_changes(&base, &now, 10, allows).map_err(|error| error.to_string())
        };
        assert_eq!(
            check(&["data.threads=7", "log_every_steps=9"], false),
            Ok(())
        );
        let message = check(&["data.decode_quality=fast", "schedule.init_lr=0.5"], false);
        let message = message.unwrap_err();
        for word in ["data.decode_quality", "schedule.init_lr", "--allow-changes"] {
            assert!(message.contains(word), "{message}");
        }
        assert_eq!(check(&["data.decode_quality=fast"], true), Ok(()));
        let message = check(&["weights.bert=x"], true).unwrap_err();
        assert!(message.contains("weights.bert"), "{message}");
        // The loader judges these, by the checkpoint.
        assert_eq!(check(&["data.seed=7"], false), Ok(()));
    }
}
