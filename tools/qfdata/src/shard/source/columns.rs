//! Which columns hold images and captions: those that the user names, else those of a usual name.

use anyhow::bail;
use qf_pipeline::captions::names::{
    self, BASE64_NAMES, CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES,
};
use serde_json::{Map, Value};

use super::super::args::InputArgs;

/// Further columns that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    None,
    Only(Vec<String>),
}

impl Keep {
    pub(super) fn of(text: &str) -> Keep {
        match text.trim() {
            "all" => Keep::All,
            "none" | "" => Keep::None,
            names => Keep::Only(
                names
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect(),
            ),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Keep::All => true,
            Keep::None => false,
            Keep::Only(names) => names.iter().any(|kept| kept == name),
        }
    }
}

/// What the user said of columns.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) image: Option<String>,
    pub(super) captions: Vec<String>,
    pub(super) keep: Keep,
    pub(super) splits: Vec<String>,
}

impl Wanted {
    pub(super) fn of(args: &InputArgs) -> Wanted {
        Wanted {
            image: args.path_column.clone(),
            captions: args.caption_column.clone(),
            keep: Keep::of(&args.keep_columns),
            splits: args.split.clone(),
        }
    }

    /// Whether a row of this split is wanted.
    pub(super) fn takes_split(&self, split: Option<&str>) -> bool {
        self.splits.is_empty() || split.is_some_and(|split| self.splits.iter().any(|s| s == split))
    }
}

/// The columns of a table, by position.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) image: usize,
    pub(super) captions: Vec<usize>,
    /// Those that are kept beside them.
    pub(super) more: Vec<usize>,
    /// The one called `split`, where rows are chosen by it.
    pub(super) split: Option<usize>,
}

impl Chosen {
    /// Of columns with these names. `binary` says which may hold bytes.
    ///
    /// # Errors
    /// A column that is not there, or is there twice; no column of a usual name.
    pub(super) fn of(
        names: &[String],
        is_binary: impl Fn(usize) -> bool,
        wanted: &Wanted,
    ) -> anyhow::Result<Chosen> {
        let all: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(index, name)| (name.as_str(), index))
            .collect();
        let only = |wanted: &str, option: &str| -> anyhow::Result<usize> {
            let mut found = all.iter().filter(|(name, _)| *name == wanted);
            match (found.next(), found.next()) {
                (Some((_, index)), None) => Ok(*index),
                (Some(_), Some(_)) => bail!("two columns are named `{wanted}`; rename one"),
                (None, _) => Err(missing(&format!("`{wanted}`"), names, option)),
            }
        };
        let binary: Vec<_> = all
            .iter()
            .copied()
            .filter(|(_, at)| is_binary(*at))
            .collect();
        let image = match &wanted.image {
            Some(name) => only(name, "--path-column")?,
            None => {
                let found = names::find(&IMAGE_NAMES, &binary)
                    .or_else(|| names::find(&PATH_NAMES, &all))
                    .or_else(|| names::find(&URL_NAMES, &all))
                    .or_else(|| names::find(&BASE64_NAMES, &all))
                    .or_else(|| binary.first().copied());
                match found {
                    Some((name, _)) => only(name, "--path-column")?,
                    None => {
                        return Err(missing(&like("path", &PATH_NAMES), names, "--path-column"))
                    }
                }
            }
        };
        let captions: anyhow::Result<Vec<usize>> = match wanted.captions.is_empty() {
            false => {
                let names = wanted.captions.iter();
                names.map(|name| only(name, "--caption-column")).collect()
            }
            true => {
                let others = all.iter().filter(|(_, index)| *index != image);
                let chosen = names::choose(others.map(|(name, _)| (*name, *name)));
                let names = chosen.into_iter();
                names.map(|name| only(name, "--caption-column")).collect()
            }
        };
        let captions = captions?;
        if captions.is_empty() {
            let what = like("caption", &CAPTION_NAMES);
            return Err(missing(&what, names, "--caption-column"));
        }
        if let Keep::Only(kept) = &wanted.keep {
            for name in kept {
                only(name, "--keep-columns")?;
            }
        }
        let is_more = |(name, index): &&(&str, usize)| {
            *index != image && !captions.contains(index) && wanted.keep.has(name)
        };
        let more: Vec<usize> = all
            .iter()
            .filter(is_more)
            .map(|(_, index)| *index)
            .collect();
        let split = all.iter().find(|(name, _)| *name == "split");
        let split = match (wanted.splits.is_empty(), split) {
            (true, _) => None,
            (false, Some((_, index))) => Some(*index),
            (false, None) => return Err(missing("`split`", names, "another table, or no --split")),
        };
        Ok(Chosen {
            image,
            captions,
            more,
            split,
        })
    }

    /// `images from `path`, captions from `a`, `b``.
    pub(super) fn described(&self, names: &[String]) -> String {
        let name = |index: usize| names.get(index).map_or("", String::as_str);
        let captions: Vec<_> = self.captions.iter().map(|&index| name(index)).collect();
        described(name(self.image), &captions)
    }
}

/// What the user is told of the columns that were chosen.
pub(super) fn described(image: &str, captions: &[&str]) -> String {
    format!(
        "images from `{image}`, captions from `{}`",
        captions.join("`, `")
    )
}

fn missing(what: &str, names: &[String], option: &str) -> anyhow::Error {
    let listed = names.join(", ");
    anyhow::anyhow!("no column {what}; there are: {listed}. Choose one with {option}")
}

/// `first`, or another usual name of the same.
fn like(first: &str, names: &[&str]) -> String {
    let others: Vec<_> = names
        .iter()
        .filter(|name| **name != first)
        .take(4)
        .collect();
    let others = others.into_iter().copied().collect::<Vec<_>>().join(", ");
    format!("`{first}`, or of another usual name ({others}, ...)")
}

/// The fields of an object that hold its image and its captions.
pub(super) struct Fields {
    pub(super) image_name: String,
    pub(super) image: String,
    pub(super) caption_names: Vec<String>,
}

impl Fields {
    /// # Errors
    /// That no field holds an image.
    pub(super) fn of(row: &Map<String, Value>, wanted: &Wanted) -> Result<Fields, String> {
        let texts: Vec<_> = row
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        let held = || row.keys().take(12).cloned().collect::<Vec<_>>().join(", ");
        let (image_name, image) = match &wanted.image {
            Some(column) => texts
                .iter()
                .copied()
                .find(|(name, _)| name == column)
                .ok_or_else(|| {
                    format!("no string `{column}` among {} (see --path-column)", held())
                })?,
            None => names::find(&PATH_NAMES, &texts)
                .or_else(|| names::find(&URL_NAMES, &texts))
                .or_else(|| names::find(&BASE64_NAMES, &texts))
                .ok_or_else(|| {
                    let names = PATH_NAMES.join(", ");
                    format!(
                        "no string named {names} among {} (see --path-column)",
                        held()
                    )
                })?,
        };
        let caption_names = match wanted.captions.is_empty() {
            false => wanted.captions.clone(),
            true => {
                let others = row.keys().filter(|name| *name != image_name);
                let chosen = names::choose(others.map(|name| (name.as_str(), name.as_str())));
                chosen.into_iter().map(str::to_owned).collect()
            }
        };
        Ok(Fields {
            image_name: image_name.to_owned(),
            image: image.to_owned(),
            caption_names,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(image: Option<&str>, captions: &[&str], keep: &str) -> Wanted {
        Wanted {
            image: image.map(str::to_owned),
            captions: captions.iter().map(|name| name.to_string()).collect(),
            keep: Keep::of(keep),
            splits: Vec::new(),
        }
    }

    fn choose(names: &[&str], wanted: &Wanted) -> Result<(usize, Vec<usize>, Vec<usize>), String> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let chosen = Chosen::of(
            &names,
            |at| ["jpg", "binary"].contains(&names[at].as_str()),
            wanted,
        );
        let chosen = chosen.map_err(|error| error.to_string())?;
        Ok((chosen.image, chosen.captions, chosen.more))
    }

    #[test]
    fn usual_names_are_found() {
        let any = wanted(None, &[], "all");
        for (names, image, captions, more) in [
            (&["path", "caption"][..], 0, &[1][..], &[][..]),
            (&["URL", "TEXT", "similarity"], 0, &[1], &[2]),
            (&["url", "alt", "jpg"], 2, &[1], &[0]),
            (&["image_name", "comment_number", "comment"], 0, &[2], &[1]),
            (
                &["id", "caption_0", "caption_1", "file_name"],
                3,
                &[1, 2],
                &[0],
            ),
            (&["image_base64", "text"], 0, &[1], &[]),
            (&["binary", "text"], 0, &[1], &[]),
            (&["binary", "text", "url"], 2, &[1], &[0]),
        ] {
            let expected = (image, captions.to_vec(), more.to_vec());
            assert_eq!(choose(names, &any), Ok(expected), "{names:?}");
        }
        let named = wanted(Some("b"), &["c", "a"], "d");
        assert_eq!(
            choose(&["a", "b", "c", "d", "e"], &named),
            Ok((1, vec![2, 0], vec![3]))
        );
        let none = wanted(None, &[], "none");
        assert_eq!(
            choose(&["path", "text", "x"], &none),
            Ok((0, vec![1], vec![]))
        );
        for (names, wanted, expected) in [
            (&["x", "y"][..], &any, "no column `path`"),
            (&["path", "y"], &any, "no column `caption`"),
            (&["b", "b", "c", "a"], &named, "two columns"),
            (&["a", "b", "c"], &named, "no column `d`"),
        ] {
            let error = choose(names, wanted).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
