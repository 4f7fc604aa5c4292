//! From presets, files and options to one configuration.

use std::path::Path;

use anyhow::{bail, Context};
use qf_model::train::TrainConfig;
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

    /// As TOML.
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(&self.0)?)
    }

    /// From TOML; unknown keys are errors that name the line.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Settings> {
        // Once into the real type: its errors show the line.
        toml::from_str::<TrainConfig>(text)?;
        Ok(Settings(toml::from_str(text)?))
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
        Ok(self.0.try_into::<TrainConfig>()?)
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
        fails("data.batchsize=8", "batchsize");
        fails("stepz=8", "stepz");
        fails("steps=many", "steps");
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
