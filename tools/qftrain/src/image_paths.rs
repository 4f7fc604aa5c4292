//! The image files that arguments name: files and folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::decode::is_image_extension;

use qf_cli::output::remark;

/// Endings of images that cannot be decoded. In a folder they count as images all the same: each is then
/// named as one that cannot be read, not lost among files of other kinds.
const NOT_DECODED: [&str; 6] = ["avif", "heic", "heif", "jxl", "jp2", "svg"];

/// The files among `arguments`, in the given order, and in the position of each folder all images below
/// it, sorted by path. In folders, names that start with a dot are passed over, links to files
/// followed, links to folders not; files with other endings are counted on stderr.
///
/// # Errors
/// Naming a folder that cannot be listed or holds no image. A file that is not there is an error only
/// when it is read.
pub(crate) fn image_paths(arguments: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for argument in arguments {
        if !argument.is_dir() {
            paths.push(argument.clone());
            continue;
        }
        let Found { images, others } = below(argument)?;
        let folder = argument.display();
        if images.is_empty() {
            bail!("{folder}: this folder holds no image, but {others} other files");
        }
        if others > 0 {
            remark(format_args!(
                "{folder}: {} images; {others} files with other endings are passed over",
                images.len()
            ));
        }
        paths.extend(images);
    }
    Ok(paths)
}

#[derive(Default)]
struct Found {
    images: Vec<PathBuf>,
    others: usize,
}

fn below(root: &Path) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            } else if is_image(&path) && !path.is_dir() {
                found.images.push(path);
            } else {
                found.others += 1;
            }
        }
    }
    found.images.sort();
    Ok(found)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_not_decoded = |extension: &str| {
        let mut known = NOT_DECODED.iter();
        known.any(|known| extension.eq_ignore_ascii_case(known))
    };
    extension.is_some_and(|extension| is_image_extension(extension) || is_not_decoded(extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stand_for_their_images() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("p/b/c")).unwrap();
        fs::create_dir_all(at("p/.hidden")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        for name in [
            "p/z.JPG",
            "p/b/a.png",
            "p/b/c/1.avif",
            "p/b/c/1.txt",
            "p/.hidden/x.jpg",
            "p/.x.jpg",
            "p/jpg",
        ] {
            fs::write(at(name), b"").unwrap();
        }
        std::os::unix::fs::symlink(at("p/z.JPG"), at("p/b/link.jpeg")).unwrap();
        std::os::unix::fs::symlink(at("p"), at("p/b/loop.jpg")).unwrap();
        let arguments = [at("none.jpg"), at("p"), at("p/z.JPG")];
        let expected = [
            "none.jpg",
            "p/b/a.png",
            "p/b/c/1.avif",
            "p/b/link.jpeg",
            "p/z.JPG",
            "p/z.JPG",
        ];
        assert_eq!(image_paths(&arguments).unwrap(), expected.map(at));
        let error = image_paths(&[at("empty")]).unwrap_err().to_string();
        assert!(error.contains("holds no image"), "{error}");
    }
}
