//! What training and evaluation share: the run folder's tokenizer and the loader on it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use qf_model::run_dir::RunDir;
use qf_model::train::TrainConfig;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::{CaptionTokenizer, VocabularyOptions};
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::words::counted;
use qftrain::run_config::load_config;
use qftrain::settings::Settings;
use serde::{Deserialize, Serialize};
use tch::Device;

use qf_cli::output::remark;

/// Captions that a vocabulary is trained from, at most: enough for stable counts, read in seconds.
const MAX_VOCABULARY_CAPTIONS: u64 = 200_000;

/// A device, for the user.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("GPU {index}"),
        _ => "the CPU".into(),
    }
}

/// The tokenizer of an existing run.
pub(crate) fn load_tokenizer(run_dir: &RunDir) -> anyhow::Result<Arc<CaptionTokenizer>> {
    let json = run_dir.tokenizer_json();
    let tokenizer = if json.exists() {
        CaptionTokenizer::from_tokenizer_json(&json)
    } else {
        CaptionTokenizer::from_vocab_file(&run_dir.vocabulary())
    };
    Ok(Arc::new(tokenizer.context("the run folder's tokenizer")?))
}

/// A run's tokenizer as it lies in its folder.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct TokenizerFile {
    is_json: bool,
    text: String,
}

impl TokenizerFile {
    /// The tokenizer of an existing run.
    pub(crate) fn read(run_dir: &RunDir) -> anyhow::Result<TokenizerFile> {
        let json = run_dir.tokenizer_json();
        let is_json = json.exists();
        let path = if is_json { json } else { run_dir.vocabulary() };
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(TokenizerFile { is_json, text })
    }
}

/// The tokenizer of a run whose folder is on another machine.
pub(crate) fn tokenizer_from(file: &TokenizerFile) -> anyhow::Result<Arc<CaptionTokenizer>> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let run_dir = RunDir::new(folder.path());
    let path = match file.is_json {
        true => run_dir.tokenizer_json(),
        false => run_dir.vocabulary(),
    };
    write_file(&path, file.text.as_bytes())?;
    load_tokenizer(&run_dir)
}

/// Makes the tokenizer of a new run and keeps it in its folder, so that evaluation and resumption
/// see the same ids whatever becomes of the original. One that a failed start left is removed.
pub(crate) fn create_tokenizer(
    config: &TrainConfig,
    shards: &[ShardLocation],
    run_dir: &RunDir,
) -> anyhow::Result<Arc<CaptionTokenizer>> {
    let clear = || {
        for stale in [run_dir.tokenizer_json(), run_dir.vocabulary()] {
            match std::fs::remove_file(&stale) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", stale.display()))
                }
                _ => {}
            }
        }
        Ok(())
    };
    if let Some(path) = &config.tokenizer {
        CaptionTokenizer::from_file(path)?;
        let is_json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        let copy = if is_json {
            run_dir.tokenizer_json()
        } else {
            run_dir.vocabulary()
        };
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        clear()?;
        write_file(&copy, &bytes)?;
        return load_tokenizer(run_dir);
    }
    let options = VocabularyOptions {
        vocab_size: config.trained_vocab_size,
        ..Default::default()
    };
    let trained = vocabulary_from_shards(
        shards,
        &config.data,
        &options,
        MAX_VOCABULARY_CAPTIONS,
        &Stop::default(),
    )?;
    remark(format_args!(
        "vocabulary: {} trained from {} of the shards (--tokenizer vocab.txt uses a given one)",
        counted(trained.entries.len() as u64, "entry", "entries"),
        counted(trained.captions, "caption", "captions")
    ));
    clear()?;
    write_file(
        &run_dir.vocabulary(),
        (trained.entries.join("\n") + "\n").as_bytes(),
    )?;
    load_tokenizer(run_dir)
}

/// The configuration that a checkpoint was made with; of the first layout, which has none, the run's.
pub(crate) fn saved_config(run_dir: &RunDir, checkpoint: &Path) -> anyhow::Result<TrainConfig> {
    let own = checkpoint.join("config.toml");
    match own.exists() {
        true => Settings::file(&own)?.resolve(),
        false => load_config(run_dir)?.resolve(),
    }
}

/// Writes a whole file or nothing.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.commit()?)
}
