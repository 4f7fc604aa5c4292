//! What every setting means, from `settings.toml`: the texts behind `qftrain config explain` and
//! docs/reference/configuration.md.

use anyhow::{bail, Context};
use qf_pipeline::mistakes::nearest;
use serde::Deserialize;

/// Settings that the user may have meant by `key`, quoted, for a message; `None` where there is none, or where
/// `key` is a setting.
pub(crate) fn meant_by(key: &str) -> Option<String> {
    let reference = Reference::load().ok()?;
    if reference.has(key) {
        return None;
    }
    reference.about(key)
}

/// The texts of all settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    #[serde(rename = "section")]
    sections: Vec<Section>,
}

/// A section of the page, with its settings in the page's order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    title: String,
    #[serde(default)]
    intro: String,
    #[serde(rename = "setting")]
    settings: Vec<Setting>,
}

/// One setting, in words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setting {
    /// Its name in a configuration file, with its sections: `optimizer.beta2`.
    pub(crate) key: String,
    /// Its value where a configuration does not name it: `required`, `none`, a value, or words.
    #[serde(default)]
    pub(crate) default: String,
    /// What the number counts; empty for those without unit.
    #[serde(default)]
    unit: String,
    meaning: String,
    /// When another value is better; empty for sections.
    #[serde(default)]
    change: String,
    /// LAVIS's value, or what takes its place there; empty for sections.
    #[serde(default)]
    lavis: String,
}

impl Reference {
    /// The texts that this program carries.
    pub(crate) fn load() -> anyhow::Result<Reference> {
        toml::from_str(include_str!("settings.toml")).context("the texts of the settings")
    }

    pub(crate) fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.sections.iter().flat_map(|section| &section.settings)
    }

    /// The settings that `text` names: one by its name or by the end of it (`beta2`), or all of a section
    /// (`optimizer`).
    ///
    /// # Errors
    /// One that names the nearest where there is none, and all where there are several.
    pub(crate) fn find(&self, text: &str) -> anyhow::Result<Vec<&Setting>> {
        let whole: Vec<_> = self.settings().filter(|s| s.key == text).collect();
        let within = format!("{text}.");
        let section: Vec<_> = (self.settings())
            .filter(|setting| setting.key.starts_with(&within))
            .collect();
        if !section.is_empty() {
            return Ok(section);
        }
        if !whole.is_empty() {
            return Ok(whole);
        }
        let ending = format!(".{text}");
        let ends: Vec<_> = (self.settings())
            .filter(|setting| setting.key.ends_with(&ending))
            .collect();
        match ends[..] {
            [] => bail!("{}", self.unknown(text)),
            [_] => Ok(ends),
            _ => {
                let keys: Vec<_> = ends.iter().map(|setting| setting.key.as_str()).collect();
                bail!(
                    "several settings are called `{text}`; take one of {}",
                    keys.join(", ")
                )
            }
        }
    }

    fn unknown(&self, text: &str) -> String {
        let keys: Vec<&str> = self.settings().map(|s| s.key.as_str()).collect();
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let names: Vec<String> = keys.iter().map(|key| last(key)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let near = nearest(text, &keys).map(str::to_owned).or_else(|| {
            let near = nearest(&last(text), &names)?;
            let at = names.iter().position(|name| *name == near)?;
            Some(keys.get(at)?.to_string())
        });
        match (near, self.about(text)) {
            (Some(near), _) => format!("there is no setting `{text}`; did you mean `{near}`?"),
            (None, None) => {
                format!("there is no setting `{text}`; `qftrain config explain` lists all")
            }
            (None, Some(about)) => format!("there is no setting `{text}`; see {about}"),
        }
    }

    /// Whether `key` is a setting, a section, or a value within a setting.
    fn has(&self, key: &str) -> bool {
        let is_within = |inner: &str, outer: &str| {
            let rest = inner.strip_prefix(outer);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.settings().any(|setting| {
            is_within(&setting.key, key) || (!setting.is_section() && is_within(key, &setting.key))
        })
    }

    /// The settings of the name that `text` ends with, else those that its words are about: `lr` and
    /// `learning_rate` give `schedule.init_lr, schedule.min_lr, ...`. `None` where there is none.
    fn about(&self, text: &str) -> Option<String> {
        const MOST: usize = 8;
        let text = text.to_lowercase();
        let name = text.rsplit('.').next().unwrap_or_default();
        let words = name.replace(['_', '-'], " ");
        let last = |setting: &&Setting| setting.key.rsplit('.').next() == Some(name);
        let in_name = |setting: &&Setting| {
            let key = format!(" {} ", setting.key.replace(['.', '_'], " "));
            key.contains(&format!(" {words} "))
        };
        let in_meaning =
            |setting: &&Setting| words.len() > 3 && first_clause(&setting.meaning).contains(&words);
        let keys = |is_one: &dyn Fn(&&Setting) -> bool| -> Vec<&str> {
            let found = self.settings().filter(is_one).take(MOST);
            found.map(|setting| setting.key.as_str()).collect()
        };
        let found = [keys(&last), keys(&in_name), keys(&in_meaning)];
        let found = found.into_iter().find(|keys| !keys.is_empty())?;
        Some(format!("`{}`", found.join("`, `")))
    }

    /// All settings with the first words of what they mean, a line each.
    pub(crate) fn list(&self) -> String {
        let width = self.settings().map(|s| s.key.len()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for section in &self.sections {
            lines.push(format!("{}:", section.title));
            let settings = section.settings.iter().filter(|s| !s.is_section());
            lines.extend(settings.map(|setting| {
                let meaning = plain(&setting.meaning);
                format!("  {:width$}  {}", setting.key, first_clause(&meaning))
            }));
        }
        lines.join("\n")
    }

    /// docs/reference/configuration.md.
    pub(crate) fn page(&self) -> String {
        let mut page = HEAD.to_owned();
        for section in &self.sections {
            let level = if section.title == "Filters" {
                "###"
            } else {
                "##"
            };
            page += &format!("\n{level} {}\n\n", section.title);
            if !section.intro.is_empty() {
                page += &format!("{}\n\n", section.intro);
            }
            page +=
                "| setting | default | meaning | change it when | LAVIS |\n|---|---|---|---|---|\n";
            for setting in &section.settings {
                page += &setting.row();
            }
        }
        page
    }
}

impl Setting {
    /// Whether it stands for the settings of a section.
    fn is_section(&self) -> bool {
        self.meaning.starts_with("[section]")
    }

    fn row(&self) -> String {
        let cell = |text: &str| match text {
            "" => " ".to_owned(),
            text => format!(" {} ", text.replace('|', "\\|")),
        };
        // Most meanings name it already.
        let is_named = self.meaning.contains(self.unit.trim_end_matches('s'));
        let unit = match self.unit.as_str() {
            "" => String::new(),
            _ if is_named => String::new(),
            unit => format!(" ({unit})"),
        };
        format!(
            "| `{}` |{}|{}|{}|{}|\n",
            self.key,
            cell(&self.default),
            cell(&format!("{}{unit}", self.meaning)),
            cell(&self.change),
            cell(&self.lavis)
        )
    }

    /// For a terminal, wrapped.
    pub(crate) fn in_words(&self) -> String {
        let mut text = format!("{}\n", self.key);
        for (name, value) in [
            ("meaning", &self.meaning),
            ("unit", &self.unit),
            ("default", &self.default),
            ("change when", &self.change),
            ("LAVIS", &self.lavis),
        ] {
            if !value.is_empty() {
                text += &wrapped(&format!("  {name:<13}"), &plain(value));
            }
        }
        text.trim_end().to_owned()
    }
}

/// Without Markdown.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        match link.split_once("](") {
            // A link, not a list of values.
            Some((words, after)) if !words.contains(']') => {
                let (_, after) = after.split_once(')').unwrap_or(("", after));
                plain += before;
                plain += words;
                rest = after;
            }
            _ => {
                plain += before;
                plain.push('[');
                rest = link;
            }
        }
    }
    plain += rest;
    plain.replace('`', "")
}

fn first_clause(text: &str) -> &str {
    text.split(['(', ':', ';', ','])
        .next()
        .unwrap_or(text)
        .trim_end()
}

/// `text` in lines of at most 96 characters, the first behind `label`, the others below it.
fn wrapped(label: &str, text: &str) -> String {
    const WIDTH: usize = 96;
    let indent = label.chars().count();
    let mut lines = vec![label.to_owned()];
    let mut length = indent;
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        if length > indent && length + 1 + letters > WIDTH {
            lines.push(" ".repeat(indent));
            length = indent;
        }
        if let Some(line) = lines.last_mut() {
            if length > indent {
                line.push(' ');
                length += 1;
            }
            line.push_str(word);
            length += letters;
        }
    }
    lines.join("\n") + "\n"
}

const HEAD: &str = "\
<!-- Written by `make reference` from tools/qftrain/front/settings.toml. -->

# Configuration

A configuration file is TOML. Every setting can also be given as `--set KEY=VALUE`, several times; unknown names are errors that
suggest the nearest one. `RUN_DIR/config.toml` holds the resolved configuration of a run. The files in [`configs/`](../../configs) are the
presets. `qftrain config explain KEY` prints what this page says of a setting, `qftrain config check FILE` checks a file, and
`qftrain config diff A B` compares two runs, files or presets.

Defaults are those of a configuration that does not name the setting; a preset may name another value. The last column says what
[LAVIS](https://github.com/salesforce/LAVIS) does (the paper: [arXiv 2301.12597](https://arxiv.org/abs/2301.12597)).
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use qf_config::TrainConfig;
    use toml::{Table, Value};

    use super::*;
    use crate::settings::flatten;
    use crate::settings::Settings;

    #[test]
    fn the_page_is_what_the_program_writes() {
        let page = include_str!("../../../docs/reference/configuration.md");
        let written = Reference::load().unwrap().page();
        assert!(
            page == written,
            "write docs/reference/configuration.md anew: make reference"
        );
    }

    /// A configuration that names only what has to be named.
    fn bare() -> TrainConfig {
        let mut table: Table =
            toml::from_str(&Settings::preset("tiny").unwrap().text().unwrap()).unwrap();
        let Some(Value::Table(mut model)) = table.remove("model") else {
            panic!("the preset has no model");
        };
        let reference = Reference::load().unwrap();
        for part in ["vision", "qformer"] {
            let named: Vec<String> = (reference.settings())
                .filter(|s| s.default == "required" || s.default == "from the tokenizer")
                .filter_map(|s| Some(s.key.strip_prefix(&format!("model.{part}."))?.to_owned()))
                .collect();
            let Some(Value::Table(values)) = model.get_mut(part) else {
                panic!("no {part}");
            };
            values.retain(|key, _| key == "type" || named.iter().any(|name| name == key));
        }
        let mut bare = Table::new();
        bare.insert("steps".into(), 1.into());
        bare.insert("model".into(), model.into());
        bare.insert("validation".into(), Table::new().into());
        bare.try_into().unwrap()
    }

    /// `64 MiB`, `178,956,970` or a value of TOML, as TOML prints it.
    fn value(text: &str) -> Option<String> {
        let text = text.trim_matches('`');
        let number = |text: &str| text.replace(',', "").parse::<f64>().ok();
        for (unit, factor) in [(" MiB", 1024.0 * 1024.0), (" GB", 1e9)] {
            if let Some(count) = text.strip_suffix(unit).and_then(number) {
                return Some(format!("{}", count * factor));
            }
        }
        if let Some(number) = number(text) {
            return Some(format!("{number}"));
        }
        match text {
            "" => Some("\"\"".into()),
            _ => Some(text.to_owned()),
        }
    }

    #[test]
    fn defaults_are_those_of_the_program() {
        let mut actual = BTreeMap::new();
        flatten("", &Value::try_from(bare()).unwrap(), &mut actual);
        let reference = Reference::load().unwrap();
        let mut compared = 0;
        for setting in reference.settings().filter(|s| !s.is_section()) {
            let actual = actual.get(&setting.key);
            match setting.default.as_str() {
                "required" | "from the tokenizer" => continue,
                "none" | "by name" | "by the first samples" => {
                    let none = actual.is_none_or(|actual| actual == "[]");
                    assert!(none, "{}: {actual:?}", setting.key)
                }
                // Said in words: what takes the place of a value that is absent.
                words if words.contains(" on a GPU") || words == "`data.batch_size`" => {
                    assert_eq!(actual, None, "{}", setting.key)
                }
                // A section that names nothing is not written.
                "false" if actual.is_none() && setting.key.starts_with("weights.") => {}
                default => {
                    let unquoted = actual.map(|actual| match actual.trim_matches('"') {
                        "" => "\"\"".to_owned(),
                        text => value(text).unwrap(),
                    });
                    let expected = value(default);
                    let close = || -> Option<bool> {
                        let list = |text: &str| -> Option<Vec<f64>> {
                            let inner = text.trim_matches(['[', ']']);
                            inner.split(',').map(|n| n.trim().parse().ok()).collect()
                        };
                        let (a, b) = (list(unquoted.as_ref()?)?, list(expected.as_ref()?)?);
                        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4 * b.abs().max(1e-9);
                        Some(a.len() == b.len() && a.iter().zip(&b).all(near))
                    };
                    assert!(
                        unquoted == expected || close() == Some(true),
                        "{}: the page says {default}, the program {actual:?}",
                        setting.key
                    );
                }
            }
            compared += 1;
        }
        assert!(compared > 80, "{compared}");
    }

    #[test]
    fn every_setting_is_explained() {
        for setting in Reference::load().unwrap().settings() {
            if !setting.is_section() {
                for text in [&setting.default, &setting.change, &setting.lavis] {
                    assert!(!text.is_empty(), "{}", setting.key);
                }
            }
        }
    }

    #[test]
    fn settings_are_found_by_what_people_type() {
        let reference = Reference::load().unwrap();
        let keys = |text: &str| -> Result<Vec<String>, String> {
            let found = reference.find(text).map_err(|error| error.to_string())?;
            Ok(found.into_iter().map(|s| s.key.clone()).collect())
        };
        assert_eq!(keys("optimizer.beta2").unwrap(), ["optimizer.beta2"]);
        assert_eq!(keys("beta2").unwrap(), ["optimizer.beta2"]);
        assert!(keys("schedule").unwrap().len() == 4);
        let several = keys("batch_size").unwrap_err();
        assert!(
            several.contains("data.batch_size, validation.batch_size"),
            "{several}"
        );
        for (typed, meant) in [
            ("optimiser.beta2", "optimizer.beta2"),
            ("batchsize", "batch_size"),
            ("data.shufle", "data.shuffle"),
        ] {
            let message = keys(typed).unwrap_err();
            assert!(message.contains(&format!("{meant}`?")), "{message}");
        }
        assert!(keys("zzzzzzzzz").unwrap_err().contains("lists all"));
        for words in ["lr", "learning_rate"] {
            let message = keys(words).unwrap_err();
            assert!(message.contains("`schedule.init_lr`"), "{message}");
        }
        assert!(reference.has("optimizer.beta2") && reference.has("optimizer"));
        assert!(!reference.has("optimizer.lr") && !reference.has("opti"));
    }

    #[test]
    fn explanations_are_plain_text() {
        let reference = Reference::load().unwrap();
        for setting in reference.settings() {
            let text = setting.in_words();
            assert!(!text.contains('`') && !text.contains("]("), "{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= 100),
                "{text}"
            );
        }
        let text = plain("see [image quality](../x.md#y): `[0.5, 1.0]` and [a](b)");
        assert_eq!(text, "see image quality: [0.5, 1.0] and a");
    }
}
