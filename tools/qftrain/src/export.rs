//! `qftrain export`: a trained model for other programs.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_model::weights::{export_hugging_face, export_lavis};
use qf_model::Blip2Qformer;
use qf_pipeline::text::CaptionTokenizer;
use qftrain::args::{ExportArgs, ExportFormat};

use crate::model_source::ModelSource;
use crate::session::write_file;
use qf_cli::output::say;

pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let out = &args.out;
    let is_taken = match args.format {
        ExportFormat::Hf => {
            out.exists() && std::fs::read_dir(out).map_or(true, |mut d| d.next().is_some())
        }
        ExportFormat::Lavis => out.exists(),
    };
    if is_taken {
        bail!("{} is there already; name a new one", out.display());
    }
    let source = ModelSource::open(&args.model)?;
    let vocabulary = match args.format {
        ExportFormat::Hf => None, // In the folder.
        ExportFormat::Lavis => vocabulary_beside(out, &source.tokenizer)?,
    };
    let loaded = source.load()?;
    let model = &loaded.model;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    // Under its name only when it is whole.
    let part = out.with_file_name(format!(
        ".{}.partial",
        out.file_name().unwrap_or_default().to_string_lossy()
    ));
    let written = match args.format {
        ExportFormat::Hf => write_folder(model, &loaded.tokenizer, &part, args.max_shard_bytes),
        ExportFormat::Lavis => export_lavis(model, &part).map_err(Into::into),
    };
    if let Err(error) = written {
        let _ = std::fs::remove_dir_all(&part);
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    // First, so that there are no weights without it.
    if let Some(path) = vocabulary {
        write_file(&path, vocabulary_text(&loaded.tokenizer).as_bytes())?;
    }
    std::fs::rename(&part, out).with_context(|| format!("cannot write {}", out.display()))?;
    say(format_args!(
        "exported {} to {}",
        loaded.origin,
        out.display()
    ))
}

/// The vocab.txt that belongs beside the file `out`; `None` if it is there already.
///
/// # Errors
/// Naming one that is there and is another vocabulary.
fn vocabulary_beside(out: &Path, tokenizer: &CaptionTokenizer) -> anyhow::Result<Option<PathBuf>> {
    let path = out.with_file_name("vocab.txt");
    if !path.exists() {
        return Ok(Some(path));
    }
    let is_same = CaptionTokenizer::from_vocab_file(&path)
        .is_ok_and(|found| found.digest() == tokenizer.digest());
    if is_same {
        return Ok(None);
    }
    bail!(
        "{} is another vocabulary than this model's, which belongs beside {}; export into another \
         folder",
        path.display(),
        out.display()
    );
}

/// A vocab.txt, `[DEC]` included.
fn vocabulary_text(tokenizer: &CaptionTokenizer) -> String {
    tokenizer
        .entries()
        .flat_map(|entry| [entry, "\n"])
        .collect()
}

fn write_folder(
    model: &Blip2Qformer,
    tokenizer: &CaptionTokenizer,
    folder: &Path,
    max_shard_bytes: u64,
) -> anyhow::Result<()> {
    let vocabulary = vocabulary_text(tokenizer);
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    export_hugging_face(model, Some(&vocabulary), folder, max_shard_bytes)?;
    Ok(())
}
