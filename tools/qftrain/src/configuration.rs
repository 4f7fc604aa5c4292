//! The configuration of a run: preset, file or the resumed run's own, with the command line on top.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_model::run_dir::RunDir;
use qf_model::train::TrainConfig;
use qf_model::Ranks;
use qf_pipeline::loader::split_spec;
use qf_pipeline::source::ShardSpec;
use qftrain::args::TrainArgs;
use qftrain::run_config::load_config;
use qftrain::settings::Settings;
use tch::Device;

use crate::image_folder::shards_of;
use crate::session::device_name;
use crate::weights::fit_to_bert;
use qf_cli::output::remark;

/// Puts the configuration together; on all ranks of a run, which may not all see its folder.
pub(crate) fn configuration(
    args: &TrainArgs,
    resume: bool,
    run_dir: &RunDir,
    device: Device,
    ranks: &dyn Ranks,
) -> anyhow::Result<TrainConfig> {
    let given = match (&args.config, &args.preset) {
        (Some(path), _) => Some(Settings::file(path)?),
        (None, Some(name)) => Some(Settings::preset(name)?),
        (None, None) => None,
    };
    let mut settings = match (resume, given) {
        (true, given) => {
            let text = match ranks.is_first() {
                true => load_config(run_dir).context("--resume")?.text()?,
                false => String::new(),
            };
            let text = ranks.broadcast_bytes(text.as_bytes())?;
            let mut own = Settings::parse(&String::from_utf8(text)?)?;
            if let Some(given) = given {
                own.overlay(given);
            }
            own
        }
        (false, Some(given)) => given,
        (false, None) => {
            let preset = if device.is_cuda() { "small" } else { "tiny" };
            if ranks.is_first() {
                remark(format_args!(
                    "preset: {preset} (for {}; --preset or --config takes another)",
                    device_name(device)
                ));
            }
            Settings::preset(preset)?
        }
    };
    apply(args, &mut settings)?;
    if !resume {
        fit_to_bert(&mut settings, ranks)?;
    }
    settings.resolve()
}

/// Options over what is there; `--set` comes last.
fn apply(args: &TrainArgs, settings: &mut Settings) -> anyhow::Result<()> {
    if !args.training_data().is_empty() {
        let shards = without_folders(args.training_data())?;
        settings.set("shards", strings(&shards))?;
    }
    if !args.mix.is_empty() {
        let sets: Vec<toml::Value> = args
            .mix
            .iter()
            .map(|text| mixed_set(text))
            .collect::<Result<_, _>>()?;
        settings.set("mix", sets)?;
    }
    if let Some(cache) = &args.cache {
        settings.set("remote.cache", cache.to_string_lossy().into_owned())?;
    }
    args.columns.set(settings)?;
    if let Some(steps) = args.steps {
        settings.set("steps", steps)?;
    }
    if let Some(batch_size) = args.batch_size {
        settings.set("data.batch_size", i64::from(batch_size))?;
    }
    if let Some(lr) = args.lr {
        settings.set("schedule.init_lr", lr)?;
    }
    if let Some(seed) = args.seed {
        settings.set("seed", i64::from(seed))?;
        settings.set("data.seed", i64::from(seed))?;
    }
    if let Some(tokenizer) = &args.tokenizer {
        settings.set("tokenizer", tokenizer.to_string_lossy().into_owned())?;
    }
    if !args.val_shards.is_empty() {
        let held_out = without_folders(&args.val_shards)?;
        settings.set("validation.shards", strings(&held_out))?;
    }
    if let Some(every) = args.val_every {
        settings.set("validation.every_steps", every)?;
    }
    for (key, place) in [
        ("weights.bert", &args.bert),
        ("weights.vision", &args.vision_weights),
        ("weights.checkpoint", &args.weights),
    ] {
        if let Some(place) = place {
            settings.set(key, place.clone())?;
        }
    }
    if let Some(threads) = args.threads {
        settings.set("data.threads", i64::from(threads))?;
    }
    for text in &args.set {
        settings.set_from_text(text)?;
    }
    Ok(())
}

/// Specifications with the shards of each folder in its place.
fn without_folders(specs: &[String]) -> anyhow::Result<Vec<String>> {
    let mut shards = Vec::new();
    for spec in specs {
        shards.extend(shards_of(spec)?);
    }
    Ok(shards)
}

fn strings(values: &[String]) -> Vec<toml::Value> {
    values.iter().cloned().map(toml::Value::String).collect()
}

fn mixed_set(text: &str) -> anyhow::Result<toml::Value> {
    let (name, weight, spec) = split_spec(text)?;
    let mut set = toml::Table::new();
    set.insert("name".into(), name.into());
    set.insert("weight".into(), weight.into());
    set.insert("shards".into(), strings(&[spec.to_string()]).into());
    Ok(set.into())
}

/// Makes every local path of a configuration absolute, so that the run can be continued from anywhere.
///
/// A path that begins in a folder whose name holds characters of patterns stays as it is: with that name
/// before it, it would mean something else.
pub(crate) fn make_paths_absolute(config: &mut TrainConfig) -> anyhow::Result<()> {
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    anchor(config, &here);
    Ok(())
}

fn anchor(config: &mut TrainConfig, here: &Path) {
    const OF_PATTERNS: [char; 6] = ['*', '?', '[', ']', '{', '}'];
    let is_plain = here
        .to_str()
        .is_some_and(|here| !here.contains(OF_PATTERNS));
    if is_plain {
        let sets = config.mix.iter_mut().flat_map(|set| &mut set.shards);
        let held_out = config.validation.iter_mut().flat_map(|v| &mut v.shards);
        for spec in config.shards.iter_mut().chain(sets).chain(held_out) {
            let anchor = |element: &str| match is_relative(element) {
                true => anchored(here, Path::new(element))
                    .to_string_lossy()
                    .into_owned(),
                false => element.to_string(),
            };
            let elements: Vec<_> = spec.elements().into_iter().map(anchor).collect();
            *spec = ShardSpec::from(elements.join("::"));
        }
    }
    let weights = &mut config.weights;
    for place in [
        &mut weights.bert,
        &mut weights.vision,
        &mut weights.checkpoint,
    ] {
        if let Some(place) = place.as_mut().filter(|place| is_relative(place)) {
            *place = anchored(here, Path::new(place.as_str()))
                .to_string_lossy()
                .into_owned();
        }
    }
    for path in [&mut config.tokenizer, &mut config.remote.cache] {
        if let Some(path) = path.as_mut() {
            let names_url = path.to_str().is_some_and(|path| path.contains("://"));
            if path.is_relative() && !names_url {
                *path = anchored(here, path);
            }
        }
    }
}

/// `path` from the folder `here`; a `./` at its beginning goes.
fn anchored(here: &Path, path: &Path) -> PathBuf {
    here.join(path.strip_prefix(".").unwrap_or(path))
}

/// Whether this names something on this machine, from the current folder on.
fn is_relative(spec: &str) -> bool {
    !spec.contains("://") && Path::new(spec).is_relative()
}

/// What to do where the shards of a resumed run are not found, and were named from another folder.
pub(crate) fn check_relative(config: &TrainConfig) -> Option<String> {
    let sets = config.mix.iter().flat_map(|set| &set.shards);
    let spec = config
        .shards
        .iter()
        .chain(sets)
        .find(|spec| spec.elements().into_iter().any(is_relative))?;
    Some(format!(
        "the run was started in another folder, from which it names its shards (`{spec}`); resume it \
         there, or say where they are with --shards or --mix"
    ))
}

/// Refuses options that say how a run starts, where one is continued.
pub(crate) fn check_start_options(args: &TrainArgs) -> Result<(), clap::Error> {
    let given = [
        ("--preset <NAME>", args.preset.is_some()),
        ("--config <FILE>", args.config.is_some()),
        ("--bert <WEIGHTS>", args.bert.is_some()),
        ("--vision-weights <WEIGHTS>", args.vision_weights.is_some()),
        ("--weights <WEIGHTS>", args.weights.is_some()),
    ];
    let Some((option, _)) = given.into_iter().find(|(_, is_given)| *is_given) else {
        return Ok(());
    };
    Err(clap::Error::raw(
        clap::error::ErrorKind::ArgumentConflict,
        format!(
            "the argument '{option}' cannot be used with '--resume': a resumed run has its own \
             configuration and weights ('--resume auto' takes it where there is no run yet)\n"
        ),
    ))
}

/// Refuses to resume with a tokenizer.
pub(crate) fn check_tokenizer(args: &TrainArgs) -> anyhow::Result<()> {
    if args.tokenizer.is_some() {
        bail!("--tokenizer: a resumed run keeps the tokenizer of its folder");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_are_made_absolute_and_nothing_else() {
        let mut settings = Settings::preset("tiny").unwrap();
        for text in [
            "shards=[\"a/*.tar\", \"./b/{000..012}.tar\", \"/c/*.tar::d.tar\", \"s3://bucket/*.tar\"]",
            "tokenizer=vocab.txt",
            "remote.cache=cache",
            "weights.bert=hf://org/name",
            "weights.vision=../eva.pth",
            "validation.shards=[\"held.tar\", \"https://host/x.tar\"]",
        ] {
            settings.set_from_text(text).unwrap();
        }
        let mut config = settings.resolve().unwrap();
        let before = config.clone();
        anchor(&mut config, Path::new("/home/me"));
        let expected = [
            "/home/me/a/*.tar",
            "/home/me/b/{000..012}.tar",
            "/c/*.tar::/home/me/d.tar",
            "s3://bucket/*.tar",
        ];
        assert_eq!(config.shards, expected.map(ShardSpec::from));
        assert_eq!(config.tokenizer.unwrap(), Path::new("/home/me/vocab.txt"));
        assert_eq!(config.remote.cache.unwrap(), Path::new("/home/me/cache"));
        assert_eq!(config.weights.bert.as_deref(), Some("hf://org/name"));
        assert_eq!(
            config.weights.vision.as_deref(),
            Some("/home/me/../eva.pth")
        );
        let held_out = config.validation.unwrap().shards;
        let expected = ["/home/me/held.tar", "https://host/x.tar"];
        assert_eq!(held_out, expected.map(ShardSpec::from));

        // In front of a pattern this folder would be another.
        let mut odd = before.clone();
        anchor(&mut odd, Path::new("/run[1]"));
        assert_eq!(odd.shards, before.shards);
        assert_eq!(
            odd.tokenizer.clone().unwrap(),
            Path::new("/run[1]/vocab.txt")
        );
        assert!(check_relative(&odd).unwrap().contains("a/*.tar"));
    }
}
