//! From presets, files and options to one configuration.

use std::path::Path;

use anyhow::{anyhow, bail, Context};
use qf_model::train::TrainConfig;
use qf_pipeline::mistakes::plain;
use toml::{Table, Value};

/// The configuration files of `configs/`, by name.
pub(crate) const PRESETS: [(&str, &str); 4] = [
    ("tiny", include_str!("../../../configs/tiny.toml")),
    ("small", include_str!("../../../configs/small.toml")),
    (
        "blip2-vit-l",
        include_str!("../../../configs/blip2-vit-l.toml"),
    ),
    (
        "blip2-vit-g",
        include_str!("../../../configs/blip2-vit-g.toml"),
    ),
];

/// A configuration before the options of the command line are applied.
pub(crate) struct Settings(Table);

impl Settings {
    /// A preset by name.
    pub(crate) fn preset(name: &str) -> anyhow::Result<Settings> {
        let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
            let names: Vec<_> = PRESETS.iter().map(|(preset, _)| *preset).collect();
            bail!("no preset `{name}`; take one of {}", names.join(", "));
        };
        Settings::parse(text).with_context(|| format!("preset {name}"))
    }

    /// A file; unknown keys are errors that name the line.
    pub(crate) fn file(path: &Path) -> anyhow::Result<Settings> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Settings::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    /// Without the column names that runs wrote when these were defaults and applied to Arrow shards
    /// alone: as names that were chosen they would hide the `.txt` of tar shards.
    pub(crate) fn without_old_defaults(mut self) -> Settings {
        let Some(Value::Table(data)) = self.0.get_mut("data") else {
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
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(&self.0)?)
    }

    /// From TOML; unknown keys are errors that name the line.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Settings> {
        // Once into the real type: its errors show the line.
        toml::from_str::<TrainConfig>(text).map_err(in_words)?;
        Ok(Settings(toml::from_str(text).map_err(in_words)?))
    }

    /// Sets one key, `data.batch_size` say.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> anyhow::Result<()> {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = &mut self.0;
        for part in parts {
            let entry = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()));
            table = entry
                .as_table_mut()
                .with_context(|| format!("{key}: {part} is no section"))?;
        }
        table.insert(last.to_string(), value.into());
        Ok(())
    }

    /// Sets every key that `over` has.
    pub(crate) fn overlay(&mut self, over: Settings) {
        fn merge(table: &mut Table, over: Table) {
            for (key, value) in over {
                match (table.get_mut(&key), value) {
                    (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
                    (_, value) => drop(table.insert(key, value)),
                }
            }
        }
        merge(&mut self.0, over.0);
    }

    /// What serde says of a setting that it does not know, with the names of those it does.
    #[cfg(test)]
    pub(crate) fn unknown_setting(self) -> Option<String> {
        let error = self.0.try_into::<TrainConfig>().err()?.to_string();
        error.contains("unknown field").then_some(error)
    }

    /// Sets `key=value` as given on the command line; the value is TOML, or else a string.
    pub(crate) fn set_from_text(&mut self, text: &str) -> anyhow::Result<()> {
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
    pub(crate) fn resolve(self) -> anyhow::Result<TrainConfig> {
        self.0.try_into::<TrainConfig>().map_err(in_words)
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

#[cfg(test)]
mod tests {
    use super::*;
    use qf_model::ModelConfig;

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
        assert!(Settings::preset("huge").is_err());
    }

    #[test]
    fn a_file_laid_over_another_leaves_what_it_does_not_name() {
        let mut below = Settings::preset("tiny").unwrap();
        below.set_from_text("data.threads=3").unwrap();
        let over = Settings(toml::from_str("steps = 9\n[data]\nseed = 5\n").unwrap());
        below.overlay(over);
        let config = below.resolve().unwrap();
        assert_eq!(
            (config.steps, config.data.seed, config.data.threads),
            (9, 5, 3)
        );
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
