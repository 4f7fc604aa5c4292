//! Which kind of input a path is, and opening it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context};
use qf_pipeline::captions::names::{self, CAPTION_NAMES, PATH_NAMES, URL_NAMES};
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::{resolve_shards_with, scheme, ShardLocation};
use qf_pipeline::survey::TextEvidence;

use super::super::args::InputArgs;
use super::super::kind::Kind;
use super::super::load::small;
use super::super::row::CaptionRef;
use super::any::Source;
use super::columns::{Keep, Wanted};
use super::fingerprint::Fingerprint;
use super::list::Grouped;
use super::list::List;
use super::table::Dialect;
use super::{folder, json_file, lines, parquet, shards, tables, zip};
use crate::interrupt::Interrupt;

/// A list is read whole where its kind is told by all of it: .json, .token, .txt, standard input.
const MAX_LIST_BYTES: u64 = 16 << 30;

/// The line of column names is looked at within so many bytes.
const HEADER_BYTES: usize = 64 << 10;

/// Text files that are compared with the JSON beside them.
const EVIDENCE_FILES: usize = 256;

/// Opens the inputs, which are of one kind.
///
/// # Errors
/// What cannot be read, or is of no known kind.
pub(in super::super) fn open(
    inputs: &[String],
    args: &InputArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Source> {
    let [input] = inputs else {
        return open_many(inputs, args, interrupt);
    };
    if input == "-" {
        return standard_input(args, interrupt);
    }
    let path = Path::new(input.strip_prefix("file://").unwrap_or(input));
    // Hugging Face's image folders: the list of a folder lies in it.
    let lists = ["metadata.csv", "metadata.jsonl", "metadata.parquet"];
    let list = lists
        .iter()
        .map(|name| path.join(name))
        .find(|list| list.is_file());
    if let (Some(list), None) = (list, args.from) {
        let mut source = open(&[list.display().to_string()], args, interrupt)?;
        source.add_note(format!("the folder has a list, {}", list.display()));
        return Ok(source);
    }
    let kind = match args.from {
        Some(kind) => kind,
        None => kind_of(input, path)?,
    };
    match kind {
        Kind::Folder => open_folder(path, args, interrupt),
        Kind::Zip => {
            refuse_columns(args, input, "a zip")?;
            let mut list = zip::list(path, interrupt)?;
            decide_lines(&mut list, args.caption_lines);
            filled(list, &format!("no images in {input}"))
        }
        Kind::Parquet | Kind::Shards => open_many(inputs, args, interrupt),
        Kind::Csv | Kind::Tsv | Kind::Jsonl => {
            refuse_lines(args, input)?;
            let file = File::open(path).with_context(|| format!("input {input}"))?;
            Lines::of(kind, input, path, args).read(file, args, interrupt)
        }
        Kind::Json | Kind::Token | Kind::List => {
            let content = read_whole(path).with_context(|| format!("input {input}"))?;
            Lines::of(kind, input, path, args).read_whole(content, args, interrupt)
        }
    }
}

/// Lists of rows, as lines or as a whole.
struct Lines<'a> {
    kind: Kind,
    name: &'a str,
    folder: PathBuf,
    fingerprint: String,
}

impl<'a> Lines<'a> {
    /// Those of a file.
    fn of(kind: Kind, name: &'a str, path: &Path, args: &InputArgs) -> Lines<'a> {
        let mut fingerprint = Fingerprint::new();
        fingerprint.path(name, path);
        Lines {
            kind,
            name,
            folder: start_of(args, path),
            fingerprint: fingerprint.finish(),
        }
    }

    fn read(
        self,
        file: impl Read,
        args: &InputArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Source> {
        let mut rows = Grouped::new(self.name, &self.folder);
        let wanted = Wanted::of(args);
        let in_manifest = || format!("cannot read manifest {}", self.name);
        let mut file = BufReader::with_capacity(HEADER_BYTES, file);
        let usual = match self.kind {
            Kind::Tsv => tables::TSV,
            _ => tables::CSV,
        };
        if self.kind == Kind::Jsonl {
            tables::read_jsonl(file, &wanted, interrupt, &mut rows).with_context(in_manifest)?;
        } else {
            let start = file.fill_buf().with_context(in_manifest)?;
            let delimiter = match args.delimiter {
                Some(delimiter) => delimiter,
                None => usual_delimiter(start, usual.delimiter),
            };
            if args.delimiter.is_none() && delimiter != usual.delimiter {
                let said = format!("fields are separated by `{}`", char::from(delimiter));
                rows.notes.push(said);
            }
            let dialect = Dialect { delimiter, ..usual };
            tables::read_table(file, dialect, &wanted, interrupt, &mut rows)
                .with_context(in_manifest)?;
        }
        let empty = format!("manifest {} has no rows", self.name);
        filled(rows.finish(self.fingerprint), &empty)
    }

    /// What is looked at before it is read.
    fn read_whole(
        mut self,
        content: Vec<u8>,
        args: &InputArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Source> {
        let empty = format!("{} has no rows", self.name);
        if self.kind == Kind::Json {
            refuse_lines(args, self.name)?;
            let mut rows = Grouped::new(self.name, &self.folder);
            json_file::read(&content, &Wanted::of(args), &mut rows)
                .with_context(|| format!("cannot read {}", self.name))?;
            return filled(rows.finish(self.fingerprint), &empty);
        }
        let text = std::str::from_utf8(&content).map_err(|error| {
            let at = error.valid_up_to();
            anyhow!("{} is not UTF-8 text: bad byte at offset {at}", self.name)
        })?;
        if self.kind == Kind::List && args.from.is_none() {
            if let Some((kind, delimiter)) = kind_of_text(text, args.delimiter) {
                self.kind = kind;
                if kind != Kind::Token {
                    let args = InputArgs {
                        delimiter,
                        ..args.clone()
                    };
                    return self.read(text.as_bytes(), &args, interrupt);
                }
            }
        }
        refuse_columns(args, self.name, "a list of lines")?;
        if self.kind == Kind::Token {
            let mut rows = Grouped::new(self.name, &self.folder);
            lines::read_token(text, &mut rows);
            return filled(rows.finish(self.fingerprint), &empty);
        }
        let mut list = lines::read_list(text, self.name, &self.folder, self.fingerprint);
        decide_lines(&mut list, args.caption_lines);
        filled(list, &empty)
    }
}

/// What lines of text are, other than a list of images.
fn kind_of_text(text: &str, delimiter: Option<u8>) -> Option<(Kind, Option<u8>)> {
    let first = text
        .trim_start_matches('\u{feff}')
        .lines()
        .find(|line| !line.trim().is_empty())?;
    if first.trim_start().starts_with('{') {
        return Some((Kind::Jsonl, None));
    }
    if lines::is_token(first) {
        return Some((Kind::Token, None));
    }
    let candidates = match delimiter {
        Some(delimiter) => vec![delimiter],
        None => vec![b'\t', b',', b'|', b';'],
    };
    let delimiter = candidates
        .into_iter()
        .find(|delimiter| is_header(first, *delimiter))?;
    let kind = match delimiter {
        b'\t' => Kind::Tsv,
        _ => Kind::Csv,
    };
    Some((kind, Some(delimiter)))
}

/// Whether a line names columns with images and captions.
fn is_header(line: &str, delimiter: u8) -> bool {
    let fields = line.split(char::from(delimiter));
    let fields: Vec<_> = fields
        .map(|name| (name.trim().trim_matches('"'), ()))
        .collect();
    let has = |names: &[&str]| names::find(names, &fields).is_some();
    has(&CAPTION_NAMES) && (has(&PATH_NAMES) || has(&URL_NAMES))
}

/// What separates the names in the first line of a table: `usual`, unless another character does.
fn usual_delimiter(start: &[u8], usual: u8) -> u8 {
    let line = start.split(|byte| matches!(byte, b'\n' | b'\r')).next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let line = line.trim_start_matches('\u{feff}');
    let mut candidates = [usual, b'\t', b',', b';', b'|'].into_iter();
    let found = candidates.find(|delimiter| is_header(line, *delimiter));
    found.unwrap_or(usual)
}

fn standard_input(args: &InputArgs, interrupt: &Interrupt) -> anyhow::Result<Source> {
    let mut content = Vec::new();
    let read = std::io::stdin()
        .take(MAX_LIST_BYTES)
        .read_to_end(&mut content);
    read.context("cannot read standard input")?;
    let mut fingerprint = Fingerprint::new();
    fingerprint.bytes(&content);
    let source = Lines {
        kind: args.from.unwrap_or(Kind::List),
        name: "standard input",
        folder: args.images.clone().unwrap_or_default(),
        fingerprint: fingerprint.finish(),
    };
    match source.kind {
        Kind::Csv | Kind::Tsv | Kind::Jsonl => source.read(&content[..], args, interrupt),
        Kind::Json | Kind::Token | Kind::List => source.read_whole(content, args, interrupt),
        _ => bail!("standard input takes a list; --from names another kind of input"),
    }
}

/// The kind of a path, by its name and by what a folder holds.
fn kind_of(input: &str, path: &Path) -> anyhow::Result<Kind> {
    let lower = input.to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    let is_shard = ends(&[
        ".tar",
        ".tar.gz",
        ".tgz",
        ".tar.zst",
        ".tar.zstd",
        ".arrow",
        ".feather",
    ]);
    if scheme(input).is_some_and(|scheme| scheme != "file") {
        return match is_shard || input.ends_with('/') {
            true => Ok(Kind::Shards),
            false => bail!(
                "{} is not the URL of shards (.tar, .tar.gz, .tar.zst, .arrow); lists are read from files",
                qf_pipeline::source::DisplayUrl::of(input)
            ),
        };
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return folder_kind(path),
        Ok(_) => {}
        Err(_) if is_shard => return Ok(Kind::Shards),
        Err(_) if ends(&[".parquet"]) && input.contains(['*', '{', '[', '?']) => {
            return Ok(Kind::Parquet)
        }
        Err(error) => return Err(error).with_context(|| format!("input {input}")),
    }
    Ok(if is_shard {
        Kind::Shards
    } else if ends(&[".csv"]) {
        Kind::Csv
    } else if ends(&[".tsv", ".tab"]) {
        Kind::Tsv
    } else if ends(&[".jsonl", ".ndjson"]) {
        Kind::Jsonl
    } else if ends(&[".json"]) {
        Kind::Json
    } else if ends(&[".token", ".token.txt"]) {
        Kind::Token
    } else if ends(&[".txt", ".lst", ".list"]) {
        Kind::List
    } else if ends(&[".parquet"]) {
        Kind::Parquet
    } else if ends(&[".zip"]) {
        Kind::Zip
    } else {
        bail!(
            "input {input} is neither a folder nor a list (.csv, .tsv, .jsonl, .json, .parquet, \
             .txt, .token), shards (.tar, .tar.gz, .tar.zst, .arrow) or a .zip; say which with --from"
        )
    })
}

/// A folder that `datasets` saved, of Parquet files, of shards, or of images.
fn folder_kind(path: &Path) -> anyhow::Result<Kind> {
    let is_saved = ["state.json", "dataset_dict.json"]
        .iter()
        .any(|name| path.join(name).is_file());
    if is_saved {
        return Ok(Kind::Shards);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut names = entries
        .filter_map(|entry| entry.ok())
        .map(|entry| entry.file_name().to_string_lossy().to_ascii_lowercase());
    let first = names.find_map(|name| {
        let is = |ending: &str| name.ends_with(ending) && !name.starts_with('.');
        let is_shard = [".tar", ".tar.gz", ".tar.zst", ".arrow"]
            .iter()
            .any(|end| is(end));
        match is_shard {
            true => Some(Kind::Shards),
            false => is(".parquet").then_some(Kind::Parquet),
        }
    });
    // Metadata stands beside shards as Parquet.
    let has_shard = || !list_files(path, &SHARD_ENDINGS, 1).is_empty();
    Ok(match first {
        Some(Kind::Parquet) if has_shard() => Kind::Shards,
        Some(kind) => kind,
        None => match list_files(path, &[".parquet"], 2).is_empty() {
            true => Kind::Folder,
            false => Kind::Parquet,
        },
    })
}

const TAR_ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

const SHARD_ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.zst", ".arrow"];

/// Files of these endings below a folder, sorted, down to a depth.
fn list_files(folder: &Path, endings: &[&str], depth: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.filter_map(|entry| entry.ok()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 1 {
                found.extend(list_files(&entry.path(), endings, depth - 1));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

fn open_folder(path: &Path, args: &InputArgs, interrupt: &Interrupt) -> anyhow::Result<Source> {
    let is = format!("{} is a folder", path.display());
    refuse(
        &[
            (args.path_column.is_some(), "--path-column"),
            (!args.caption_column.is_empty(), "--caption-column"),
            (args.delimiter.is_some(), "--delimiter"),
            (!args.split.is_empty(), "--split"),
            (args.images.is_some(), "--images"),
            (!keeps_all(args), "--keep-columns"),
        ],
        &is,
        "manifests",
    )?;
    let mut list = folder::list(path, interrupt)?;
    decide_lines(&mut list, args.caption_lines);
    let others = list.other_files + list.captions_without_image;
    let empty = format!(
        "no images in {} ({others} other files); looked for .jpg, .png, .webp, .gif, .bmp, .tif",
        path.display()
    );
    filled(list, &empty)
}

/// Parquet files or shards.
fn open_many(inputs: &[String], args: &InputArgs, interrupt: &Interrupt) -> anyhow::Result<Source> {
    let mut kinds = Vec::new();
    for input in inputs {
        let kind = match args.from {
            Some(kind) => kind,
            None => kind_of(input, Path::new(input))?,
        };
        kinds.push(kind);
    }
    match kinds.first() {
        Some(&kind) if kinds.iter().all(|other| *other == kind) => match kind {
            Kind::Parquet => open_parquet(inputs, args),
            Kind::Shards => open_shards(inputs, args, interrupt),
            _ if inputs.len() > 1 => {
                bail!("several inputs are joined where they are shards or Parquet files; give one")
            }
            _ => open(inputs, args, interrupt),
        },
        _ => bail!("the inputs are of different kinds; give those of one kind, one run each"),
    }
}

fn open_parquet(inputs: &[String], args: &InputArgs) -> anyhow::Result<Source> {
    refuse(
        &[
            (args.caption_lines.is_some(), "--caption-lines"),
            (args.delimiter.is_some(), "--delimiter"),
        ],
        "the input is Parquet",
        "other inputs",
    )?;
    let mut paths = Vec::new();
    for input in inputs {
        let path = Path::new(input);
        if !path.is_dir() {
            let shards = resolve_shards_with(&[input], &RemoteOptions::default())?;
            paths.extend(
                shards
                    .iter()
                    .filter_map(ShardLocation::path)
                    .map(Path::to_owned),
            );
            continue;
        }
        let mut found = list_files(path, &[".parquet"], 3);
        if !args.split.is_empty() {
            // train-00000-of-00002.parquet, train/0000.parquet: Hugging Face's names of splits.
            let all = found.len();
            found.retain(|file| {
                let named = file.strip_prefix(path).unwrap_or(file).to_string_lossy();
                let is_of = |split: &String| {
                    named.split('/').any(|part| {
                        let rest = part.strip_prefix(split.as_str());
                        rest.is_some_and(|rest| {
                            rest.is_empty() || rest.starts_with(['-', '.', '_'])
                        })
                    })
                };
                args.split.iter().any(is_of)
            });
            if found.is_empty() {
                bail!(
                    "no Parquet file in {input} is named after the split {} ({all} others)",
                    args.split.join(", ")
                );
            }
        }
        paths.extend(found);
    }
    let mut wanted = Wanted::of(args);
    if inputs.iter().any(|input| Path::new(input).is_dir()) {
        wanted.splits.clear();
    }
    let files = parquet::Files::open(paths, args.images.as_deref(), wanted)?;
    if files.rows() == 0 {
        bail!("{} has no rows", inputs.join(", "));
    }
    Ok(Source::Parquet(files))
}

fn open_shards(
    inputs: &[String],
    args: &InputArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Source> {
    let remote = RemoteOptions {
        stop: interrupt.stop(),
        ..RemoteOptions::from_vars(std::env::vars_os())
    };
    let mut shards = Vec::new();
    let mut notes = Vec::new();
    for input in inputs {
        let path = Path::new(input);
        match path.is_dir() {
            true => {
                let (files, note) = folder_shards(path, &args.split)?;
                notes.extend(note);
                shards.extend(files.into_iter().map(ShardLocation::local));
            }
            false => {
                refuse_split(&args.split, input)?;
                shards.extend(resolve_shards_with(&[input], &remote)?);
            }
        }
    }
    let caption_column = match args.caption_column.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => bail!("of shards, one --caption-column is read"),
    };
    let is_tar = |shard: &ShardLocation| {
        TAR_ENDINGS
            .iter()
            .any(|end| shard.base_name().ends_with(end))
    };
    if let Some(tar) = shards.iter().find(|shard| is_tar(shard)) {
        let is = format!("{} is a tar shard", tar.name);
        refuse(&[(!keeps_all(args), "--keep-columns")], &is, "manifests")?;
    }
    let mut shards = shards::Shards::new(
        shards,
        args.path_column.clone(),
        caption_column,
        args.caption_lines,
        &Wanted::of(args).keep,
        &interrupt.stop(),
    );
    shards.notes.extend(notes);
    Ok(Source::Shards(shards))
}

/// The shards of a folder; of one that `datasets` saved, those that its state names.
fn folder_shards(
    folder: &Path,
    splits: &[String],
) -> anyhow::Result<(Vec<PathBuf>, Option<String>)> {
    if folder.join("dataset_dict.json").is_file() {
        #[derive(serde::Deserialize)]
        struct Dict {
            splits: Vec<String>,
        }
        let dict: Dict = read_json(&folder.join("dataset_dict.json"))?;
        let chosen: Vec<_> = match splits.is_empty() {
            true => dict.splits.clone(),
            false => splits.to_vec(),
        };
        let mut shards = Vec::new();
        for split in &chosen {
            if !dict.splits.contains(split) {
                bail!(
                    "{} has no split `{split}`; there are: {}",
                    folder.display(),
                    dict.splits.join(", ")
                );
            }
            shards.extend(folder_shards(&folder.join(split), &[])?.0);
        }
        let note = format!("splits {}", chosen.join(", "));
        return Ok((shards, Some(note)));
    }
    refuse_split(splits, &folder.display().to_string())?;
    if folder.join("state.json").is_file() {
        #[derive(serde::Deserialize)]
        struct DataFile {
            filename: String,
        }
        #[derive(serde::Deserialize)]
        struct State {
            _data_files: Vec<DataFile>,
        }
        let state: State = read_json(&folder.join("state.json"))?;
        let files = state._data_files.into_iter();
        return Ok((files.map(|file| folder.join(file.filename)).collect(), None));
    }
    let shards = list_files(folder, &SHARD_ENDINGS, 2);
    match shards.is_empty() {
        true => bail!("no shards in {}", folder.display()),
        false => Ok((shards, None)),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let what = || format!("cannot read {}", path.display());
    serde_json::from_slice(&read_whole(path).with_context(what)?).with_context(what)
}

fn read_whole(path: &Path) -> anyhow::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.len() > MAX_LIST_BYTES {
        bail!("over the limit of {MAX_LIST_BYTES} bytes for a list of this kind; use .jsonl or .parquet");
    }
    Ok(fs::read(path)?)
}

/// Where relative paths of a list start.
fn start_of(args: &InputArgs, list: &Path) -> PathBuf {
    let beside = list.parent().unwrap_or(Path::new(""));
    args.images.clone().unwrap_or_else(|| beside.to_owned())
}

fn refuse_columns(args: &InputArgs, input: &str, is: &str) -> anyhow::Result<()> {
    refuse(
        &[
            (args.path_column.is_some(), "--path-column"),
            (!args.caption_column.is_empty(), "--caption-column"),
            (!args.split.is_empty(), "--split"),
            (!keeps_all(args), "--keep-columns"),
        ],
        &format!("{input} is {is}"),
        "manifests",
    )
}

/// Shards hold no names of splits.
fn refuse_split(splits: &[String], input: &str) -> anyhow::Result<()> {
    match splits.is_empty() {
        true => Ok(()),
        false => bail!(
            "--split is for lists, Parquet and folders of several splits (dataset_dict.json), but {input} is of one; \
             give the shards of a split alone"
        ),
    }
}

fn keeps_all(args: &InputArgs) -> bool {
    matches!(Keep::of(&args.keep_columns), Keep::All)
}

fn refuse_lines(args: &InputArgs, input: &str) -> anyhow::Result<()> {
    refuse(
        &[(args.caption_lines.is_some(), "--caption-lines")],
        &format!("{input} is a manifest"),
        "folders",
    )
}

fn filled(list: List, empty: &str) -> anyhow::Result<Source> {
    match list.rows.is_empty() {
        true => bail!("{empty}"),
        false => Ok(Source::List(list)),
    }
}

/// Takes every text file for what the most are, as far as the JSON beside them tells; a caption a line
/// where it does not. `given` decides.
fn decide_lines(list: &mut List, given: Option<CaptionLines>) {
    let decided = given.unwrap_or_else(|| {
        let mut evidence = TextEvidence::default();
        let rows = list.rows.iter().filter_map(|row| row.as_ref().ok());
        let both = rows.filter_map(|row| match &row.captions {
            CaptionRef::Files {
                text: Some(text),
                json: Some(json),
                ..
            } => Some((text, json)),
            _ => None,
        });
        for (text, json) in both.take(EVIDENCE_FILES) {
            if let (Ok(text), Ok(json)) = (small(text), small(json)) {
                evidence.add(&text, Some(&json));
            }
        }
        match evidence.json_says_one > evidence.json_says_each {
            true => CaptionLines::One,
            false => CaptionLines::Each,
        }
    });
    for row in list.rows.iter_mut().flatten() {
        if let CaptionRef::Files { lines, .. } = &mut row.captions {
            *lines = decided;
        }
    }
    if decided == CaptionLines::One && given.is_none() {
        list.notes.push(
            "each .txt is one caption, for the .json beside it says so (--caption-lines each takes \
             every line for one)"
                .to_owned(),
        );
    }
}

/// Refuses options that have no meaning for this kind of input.
fn refuse(options: &[(bool, &str)], is: &str, they_are_for: &str) -> anyhow::Result<()> {
    match options.iter().find(|(given, _)| *given) {
        Some((_, option)) => bail!("{option} is for {they_are_for}, but {is}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_those_of_the_first_line() {
        for (start, usual, expected) in [
            ("path,caption\na;b,c\n", b',', b','),
            ("image_name| comment_number| comment\n", b',', b'|'),
            ("\u{feff}url;TEXT\r\n", b',', b';'),
            ("path\tcaption\n", b',', b'\t'),
            ("path,caption", b'\t', b','),
            ("x;y\n", b',', b','),
            ("", b',', b','),
        ] {
            assert_eq!(
                usual_delimiter(start.as_bytes(), usual),
                expected,
                "{start}"
            );
        }
    }
}
