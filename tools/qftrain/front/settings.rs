//! From presets, files and options to one configuration.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail, Context};
use qf_config::TrainConfig;
use qf_pipeline::mistakes::{nearest, plain};
use toml::{Table, Value};

use crate::reference::meant_by;

/// The configuration files of `configs/`, by name.
pub const PRESETS: [(&str, &str); 6] = [
    ("tiny", include_str!("../../../configs/tiny.toml")),
    ("small", include_str!("../../../configs/small.toml")),
    ("vit-b16", include_str!("../../../configs/vit-b16.toml")),
    (
        "blip2-vit-l",
        include_str!("../../../configs/blip2-vit-l.toml"),
    ),
    (
        "blip2-vit-g",
        include_str!("../../../configs/blip2-vit-g.toml"),
    ),
    (
        "coco-finetune",
        include_str!("../../../configs/coco-finetune.toml"),
    ),
];

/// A configuration before the options of the command line are applied.
pub struct Settings {
    table: Table,
    /// Whether the table began as a preset, whose values nobody chose one by one.
    is_preset: bool,
    /// Settings that were set since.
    chosen: Vec<String>,
}

impl Settings {
    /// The file of a preset.
    pub fn preset_text(name: &str) -> anyhow::Result<&'static str> {
        let names = PRESETS.map(|(preset, _)| preset);
        match PRESETS.iter().find(|(preset, _)| *preset == name) {
            Some((_, text)) => Ok(text),
            None => {
                let near = match nearest(name, &names) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                bail!("no preset `{name}`; take one of {}{near}", names.join(", "))
            }
        }
    }

    /// A preset by name.
    pub fn preset(name: &str) -> anyhow::Result<Settings> {
        let settings = Settings::parse(Settings::preset_text(name)?);
        Ok(Settings {
            is_preset: true,
            ..settings.with_context(|| format!("preset {name}"))?
        })
    }

    /// A file; unknown keys are errors that name the line.
    pub fn file(path: &Path) -> anyhow::Result<Settings> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Settings::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    /// Without the column names that runs wrote when these were defaults and applied to Arrow shards
    /// alone: as names that were chosen they would hide the `.txt` of tar shards.
    pub fn without_old_defaults(mut self) -> Settings {
        let Some(Value::Table(data)) = self.table.get_mut("data") else {
            return self;
        };
        let is = |key: &str, name: &str| data.get(key).and_then(Value::as_str) == Some(name);
        if is("image_column", "image") && is("caption_column", "caption") {
            data.remove("image_column");
            data.remove("caption_column");
        }
        self
    }

    /// As TOML.
    pub fn text(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(&self.table)?)
    }

    /// From TOML; unknown keys are errors that name the line.
    pub fn parse(text: &str) -> anyhow::Result<Settings> {
        // Once into the real type: its errors show the line.
        toml::from_str::<TrainConfig>(text).map_err(in_words)?;
        Ok(Settings::of(toml::from_str(text).map_err(in_words)?))
    }

    /// A table all of whose values were chosen.
    fn of(table: Table) -> Settings {
        Settings {
            table,
            is_preset: false,
            chosen: Vec::new(),
        }
    }

    /// Sets one key, `data.batch_size` say.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> anyhow::Result<()> {
        self.chosen.push(key.to_owned());
        self.insert(key, value.into())
    }

    /// Sets one key unless the file or an earlier [`set`](Settings::set) names it. True if that
    /// changes anything.
    pub fn propose(&mut self, key: &str, value: impl Into<Value>) -> anyhow::Result<bool> {
        let (value, present) = (value.into(), self.get(key));
        let is_set = self.chosen.iter().any(|chosen| {
            let rest = key.strip_prefix(chosen.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        let is_chosen = is_set || (!self.is_preset && present.is_some());
        if is_chosen || present == Some(&value) {
            return Ok(false);
        }
        self.insert(key, value)?;
        Ok(true)
    }

    /// A setting that is a string.
    pub fn text_of(&self, key: &str) -> Option<String> {
        Some(self.get(key)?.as_str()?.to_owned())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &self.table;
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            table = table.get(part)?.as_table()?;
        }
        table.get(last)
    }

    fn insert(&mut self, key: &str, value: Value) -> anyhow::Result<()> {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = &mut self.table;
        for part in parts {
            let entry = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()));
            table = entry
                .as_table_mut()
                .with_context(|| format!("{key}: {part} is no section"))?;
        }
        table.insert(last.to_string(), value);
        Ok(())
    }

    /// Sets every key that `over` has.
    pub fn overlay(&mut self, over: Settings) {
        fn merge(table: &mut Table, over: Table) {
            for (key, value) in over {
                match (table.get_mut(&key), value) {
                    (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
                    (_, value) => drop(table.insert(key, value)),
                }
            }
        }
        merge(&mut self.table, over.table);
    }

    /// What serde says of a setting that it does not know, with the names of those it does.
    #[cfg(test)]
    pub(crate) fn unknown_setting(self) -> Option<String> {
        let error = self.table.try_into::<TrainConfig>().err()?.to_string();
        error.contains("unknown field").then_some(error)
    }

    /// Sets `key=value` as given on the command line; the value is TOML, or else a string.
    pub fn set_from_text(&mut self, text: &str) -> anyhow::Result<()> {
        let (key, value) = text.split_once('=').with_context(|| {
            format!("--set {text}: expected KEY=VALUE, e.g. data.batch_size=32")
        })?;
        let key = key.trim();
        let parsed: Result<Table, _> = toml::from_str(&format!("value = {value}"));
        let value = match parsed.ok().and_then(|mut table| table.remove("value")) {
            Some(value) => value,
            None => Value::String(value.trim().to_string()),
        };
        self.set(key, value)
    }

    /// The checked type.
    pub fn resolve(self) -> anyhow::Result<TrainConfig> {
        let chosen = self.chosen;
        let resolved = self.table.try_into::<TrainConfig>();
        resolved.map_err(|error| {
            let error = in_words(error);
            match chosen.iter().find_map(|key| meant_by(key)) {
                Some(meant) if !error.to_string().contains("did you mean") => {
                    anyhow!("{error}; elsewhere: {meant}")
                }
                _ => error,
            }
        })
    }
}

/// What is wrong with settings, after where it is.
fn in_words(error: toml::de::Error) -> anyhow::Error {
    let message = plain(error.to_string().trim_end());
    match message.split_once("\nin `") {
        Some((message, place)) => anyhow!("`{}: {message}", place.trim_end()),
        None => anyhow!(message),
    }
}

/// Every setting by its full name, with its value as TOML.
pub fn flatten(prefix: &str, value: &Value, settings: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let full = match prefix {
                    "" => name.clone(),
                    _ => format!("{prefix}.{name}"),
                };
                flatten(&full, value, settings);
            }
        }
        value => {
            settings.insert(prefix.to_string(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qf_config::ModelConfig;

    #[test]
    fn every_preset_is_valid_and_has_the_published_shape() {
        for (name, _) in PRESETS {
            Settings::preset(name)
                .unwrap()
                .resolve()
                .unwrap()
                .validate()
                .unwrap();
        }
        for (name, model) in [
            ("tiny", ModelConfig::tiny()),
            ("blip2-vit-l", ModelConfig::vit_l()),
            ("blip2-vit-g", ModelConfig::vit_g()),
        ] {
            let config = Settings::preset(name).unwrap().resolve().unwrap();
            assert_eq!(config.model, model, "{name}");
        }
        let unknown = |name: &str| Settings::preset(name).err().unwrap().to_string();
        assert!(unknown("huge").contains("coco-finetune"));
        assert!(unknown("vit-b-16").contains("did you mean `vit-b16`?"));
    }

    #[test]
    fn a_file_laid_over_another_leaves_what_it_does_not_name() {
        let mut below = Settings::preset("tiny").unwrap();
        below.set_from_text("data.threads=3").unwrap();
        let over = Settings::of(toml::from_str("steps = 9\n[data]\nseed = 5\n").unwrap());
        below.overlay(over);
        let config = below.resolve().unwrap();
        assert_eq!(
            (config.steps, config.data.seed, config.data.threads),
            (9, 5, 3)
        );
    }

    #[test]
    fn a_proposal_gives_way_to_what_was_chosen() {
        let key = "model.qformer.hidden";
        let value = |settings: &Settings| settings.get(key).and_then(Value::as_integer);
        let mut preset = Settings::preset("tiny").unwrap();
        assert!(!preset.propose(key, 128).unwrap(), "it is that already");
        assert!(preset.propose(key, 384).unwrap());
        assert_eq!(value(&preset), Some(384));
        for chosen in [key, "model.qformer"] {
            let mut preset = Settings::preset("tiny").unwrap();
            let table = preset.get(chosen).unwrap().clone();
            preset.set(chosen, table).unwrap();
            assert!(!preset.propose(key, 384).unwrap(), "{chosen}");
            assert_eq!(value(&preset), Some(128));
            assert!(preset.propose("seed", 7).unwrap());
        }
        let mut preset = Settings::preset("tiny").unwrap();
        preset.set("model.qformer.hidden_", 1).unwrap();
        assert!(preset.propose(key, 384).unwrap(), "another name");
        // All that a file says was chosen; what it leaves out was not.
        let text = Settings::preset("tiny").unwrap().text().unwrap();
        let mut file = Settings::parse(&text).unwrap();
        assert!(!file.propose(key, 384).unwrap());
        assert!(file.propose("model.qformer.eps", 1e-6).unwrap());
    }

    #[test]
    fn options_override_and_mistakes_are_named() {
        let resolve = |options: &[&str]| {
            let mut settings = Settings::preset("tiny").unwrap();
            for option in options {
                settings.set_from_text(option)?;
            }
            settings.resolve()
        };
        let config = resolve(&["steps=7", "data.shuffle = none", "schedule.init_lr=0.5"]).unwrap();
        assert_eq!(config.steps, 7);
        assert_eq!(config.data.shuffle, qf_pipeline::order::ShuffleMode::None);
        let fails = |option: &str, word: &str| {
            let message = format!("{:#}", resolve(&[option]).unwrap_err());
            assert!(message.contains(word), "{message}");
        };
        fails(
            "data.batchsize=8",
            "`data`: there is no setting `batchsize`",
        );
        fails("data.batchsize=8", "did you mean `batch_size`?");
        fails("stepz=8", "did you mean `steps`?");
        fails("optimizer.lr=1e-4", "elsewhere: `schedule.init_lr`");
        fails("batch_size=8", "elsewhere: `data.batch_size`");
        fails("steps=many", "`steps`: expected a whole number");
        fails("steps=-1", "got -1");
        fails("data.flip_probability=often", "expected a number");
        fails("data.crop_scale=[1]", "a list of 2");
        fails("data.on_bad_sample=wran", "did you mean `warn`?");
        fails("schedule.type=cosin", "did you mean `cosine`?");
        fails("data=3", "expected a section of settings");
        fails("steps", "KEY=VALUE");
        fails("steps.x=1", "no section");
        let dir = std::env::temp_dir();
        let path = dir.join(format!("qf-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "steps = 3\nstepz = 4\n").unwrap();
        let message = format!("{:#}", Settings::file(&path).err().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(
            message.contains("stepz") && message.contains("line 2"),
            "{message}"
        );
    }
}
