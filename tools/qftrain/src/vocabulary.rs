//! Which tokenizer belongs to which weights. An id is a row of the word embeddings, so another
//! vocabulary gives every word another meaning, and no shape shows it.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use qf_model::run_dir::RunDir;
use qf_model::weights::{first_difference, WeightsFile};
use qf_pipeline::text::CaptionTokenizer;

/// The tokenizer that may lie beside weights, the preferred first.
const TOKENIZERS: [&str; 2] = ["vocab.txt", "tokenizer.json"];

/// The folder that a run keeps its checkpoints in.
const CHECKPOINTS: &str = "checkpoints";

/// The tokenizer of the weights at `path`: beside them, or that of the run of which they are a
/// checkpoint. `None` if there is neither.
pub(crate) fn tokenizer_of(path: &Path) -> Option<PathBuf> {
    let folder = match path.is_dir() {
        true => Some(path),
        false => path.parent(),
    };
    let run = run_of(path);
    let folders = [folder, run.as_ref().map(RunDir::path)];
    let mut paths = folders
        .into_iter()
        .flatten()
        .flat_map(|folder| TOKENIZERS.map(|name| folder.join(name)));
    paths.find(|path| path.exists())
}

/// The run that a folder is, or of which it, or the file in it, is a checkpoint.
pub(crate) fn run_of(path: &Path) -> Option<RunDir> {
    let of_checkpoint = path.ancestors().skip(1).take(2);
    let of_checkpoint = of_checkpoint
        .filter(|folder| folder.file_name().is_some_and(|name| name == CHECKPOINTS))
        .filter_map(Path::parent);
    // A checkpoint has a copy of its run's configuration: its run comes first.
    let mut runs = of_checkpoint.chain([path]).map(RunDir::new);
    runs.find(|run| run.config().exists())
}

/// Weights whose vocabulary is not there.
pub(crate) fn no_tokenizer(place: &str, file: &WeightsFile) -> anyhow::Error {
    let which = match file.vocabulary() {
        Ok(Some(digest)) => format!(" (SHA-256 {digest})"),
        _ => String::new(),
    };
    anyhow!(
        "{place}: no {} beside it, and its word embeddings belong to a vocabulary{which}; give that \
         with --tokenizer",
        TOKENIZERS.join(" or ")
    )
}

/// Refuses the tokenizer read from `chosen` for weights of another vocabulary: than the file names,
/// or, where it names none, than the tokenizer `own` has, which lies beside it.
///
/// # Errors
/// Naming both, and for the latter the first id that differs.
pub(crate) fn check(
    file: &WeightsFile,
    own: Option<&Path>,
    chosen: &Path,
    tokenizer: &CaptionTokenizer,
) -> anyhow::Result<()> {
    let (path, shown) = (file.path().display(), chosen.display());
    if let Some(digest) = file.vocabulary()? {
        if digest != tokenizer.digest() {
            bail!(
                "{path}: its word embeddings belong to another vocabulary (SHA-256 {digest}) than \
                 {shown} has ({}); take the vocab.txt or tokenizer.json that these weights were \
                 trained with",
                tokenizer.digest()
            );
        }
        return Ok(());
    }
    let Some(own) = own.filter(|own| *own != chosen) else {
        return Ok(());
    };
    let of_weights = match CaptionTokenizer::from_file(own) {
        Ok(of_weights) => of_weights,
        Err(error) => {
            log::warn!("{shown} cannot be compared with the tokenizer beside {path}: {error}");
            return Ok(());
        }
    };
    let Some((id, theirs, given)) = first_difference(file, &of_weights, tokenizer) else {
        return Ok(());
    };
    bail!(
        "{path}: id {id} is {theirs:?} in {} beside it and {given:?} in {shown}, so every text would \
         mean something else; leave {shown} out, or, if the one beside the weights is not theirs, \
         move that away",
        own.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn tokenizers_beside_weights_and_of_runs() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let step = at("run/checkpoints/step-00000001");
        fs::create_dir_all(&step).unwrap();
        fs::create_dir_all(at("run/other")).unwrap();
        fs::write(at("run/config.toml"), "").unwrap();
        fs::write(step.join("config.toml"), "").unwrap();
        let file = step.join("model.safetensors");
        assert_eq!(tokenizer_of(&file), None);
        fs::write(at("run/tokenizer.json"), "").unwrap();
        for path in [at("run"), step.clone(), file] {
            assert_eq!(
                tokenizer_of(&path),
                Some(at("run/tokenizer.json")),
                "{path:?}"
            );
            assert_eq!(run_of(&path).unwrap().path(), at("run"));
        }
        // What somebody keeps in the folder of a run is not of that run.
        let other = at("run/other/foreign.pth");
        assert_eq!(tokenizer_of(&other), None);
        assert!(run_of(&other).is_none());
        fs::write(at("run/other/vocab.txt"), "").unwrap();
        assert_eq!(tokenizer_of(&other), Some(at("run/other/vocab.txt")));
    }
}
