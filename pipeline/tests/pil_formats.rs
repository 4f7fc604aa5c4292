//! Odd images of all formats, upright size and pixels, against PIL: `pil_formats.py` makes them and
//! says what is in them.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::test_data::{self, python};
use common::ImagePath;
use qf_pipeline::augment::{CropBox, ImageTransform, View};
use qf_pipeline::decode::{
    DecodeError, DecodeLimits, DecodeQuality, Decoder, ImageFormat, OnTruncated, RgbImage,
};
use qf_pipeline::SkipReason;

/// What PIL reads: width, height, RGB.
struct Reference {
    size: (u32, u32),
    rgb: Vec<u8>,
}

impl Reference {
    /// `None` if PIL does not read it.
    fn load(path: &Path) -> Option<Reference> {
        let mut bytes = std::fs::read(path).ok()?;
        let rgb = bytes.split_off(8);
        let side = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        Some(Reference {
            size: (side(0), side(4)),
            rgb,
        })
    }
}

/// A folder that is removed again.
struct Folder(PathBuf);

impl Folder {
    /// Runs the script on these files.
    fn made_by_pil(python: &Path, name: &str, files: &[PathBuf]) -> Folder {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        let folder = Folder(path);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pil_formats.py");
        let mut command = Command::new(python);
        command.arg(script).arg(&folder.0);
        if !files.is_empty() {
            command.arg("--").args(files);
        }
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn decode(bytes: &[u8], on_truncated: OnTruncated) -> Result<RgbImage, DecodeError> {
    Decoder::new(DecodeLimits::default(), on_truncated).decode_whole(bytes)
}

/// What is wrong with our picture, if anything; samples may differ by `tolerance`.
fn difference(
    ours: &Result<RgbImage, DecodeError>,
    theirs: &Reference,
    tolerance: u8,
) -> Option<String> {
    let ours = match ours {
        Ok(ours) => ours,
        Err(error) => return Some(format!("refused: {error}")),
    };
    let size = (ours.width(), ours.height());
    if size != theirs.size {
        return Some(format!("size {size:?}, PIL {:?}", theirs.size));
    }
    let mut pairs = ours.data().iter().zip(&theirs.rgb);
    let at = pairs.position(|(a, b)| a.abs_diff(*b) > tolerance)?;
    let pixel = at as u32 / 3;
    let (x, y) = (pixel % size.0, pixel / size.0);
    Some(format!(
        "pixel ({x}, {y}) channel {}: {}, PIL {}",
        at % 3,
        ours.data()[at],
        theirs.rgb[at]
    ))
}

/// Kinds that PIL reads and we refuse by name: they have no range, or need a colour profile.
fn is_refused(name: &str) -> bool {
    let kinds = ["tiff-LAB", "tiff-F-", "tiff-I-", "kind-"];
    kinds.iter().any(|kind| name.starts_with(kind))
}

/// 16-bit grey keeps its high byte, where PIL clips at 255; PIL takes planes of 16-bit samples that
/// are not compressed for 8-bit ones.
fn is_known(name: &str) -> bool {
    let deep_grey = name.starts_with("tiff-I16") || name.starts_with("png-0-16");
    let deep_grey_tiles = name.starts_with("tiled-wide-") && name[13..].starts_with("-1-");
    deep_grey || deep_grey_tiles || name.ends_with("-16-planar-raw.tif")
}

/// What PIL refuses: planes with an extra sample, big-endian BigTIFF, and cuts within the head of a
/// chunk.
fn is_more(name: &str, on_truncated: OnTruncated) -> bool {
    let extra_planes = name.starts_with("raw-rgb-extra") && name.ends_with("-planar-raw.tif");
    let cut = name.starts_with("png-cut-") && on_truncated == OnTruncated::Grey;
    extra_planes || cut || name.starts_with("raw-be-big")
}

/// Orientation, kinds, frames and cuts, with and without `on_truncated`.
#[test]
fn generated_images_are_those_of_pil() {
    let Some(python) = python("generated_images_are_those_of_pil") else {
        return;
    };
    let folder = Folder::made_by_pil(&python, "pil-formats", &[]);
    let mut wrong = BTreeMap::new();
    let (mut equal, mut refused) = (0, 0);
    for entry in std::fs::read_dir(&folder.0).expect("reads") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".rgb") || name.ends_with(".grey") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("reads");
        for (ending, on_truncated) in [("rgb", OnTruncated::Error), ("grey", OnTruncated::Grey)] {
            let theirs = Reference::load(&folder.0.join(format!("{name}.{ending}")));
            let ours = decode(&bytes, on_truncated);
            let problem = match (&ours, theirs) {
                _ if is_known(&name) => None,
                (Err(error), _) if is_refused(&name) => {
                    let by_name = error.reason() == SkipReason::UnsupportedImage;
                    (!by_name).then(|| error.to_string())
                }
                (_, Some(theirs)) => {
                    equal += 1;
                    difference(&ours, &theirs, 0)
                }
                (Err(_), None) => {
                    refused += 1;
                    None
                }
                (Ok(_), None) if is_more(&name, on_truncated) => None,
                (Ok(_), None) => Some("PIL does not read it".to_owned()),
            };
            if let Some(problem) = problem {
                wrong.insert(format!("{name} ({ending})"), problem);
            }
            if on_truncated == OnTruncated::Error {
                crops_are_parts(&name, &bytes, &ours);
            }
        }
    }
    let listed: Vec<String> = wrong
        .iter()
        .map(|(name, problem)| format!("{name}: {problem}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {equal}:\n{}",
        wrong.len(),
        listed.join("\n")
    );
    println!("{equal} pictures as PIL reads them, {refused} that neither reads");
    assert!(equal > 5000 && refused > 100, "{equal}, {refused}");
}

/// A crop, whole or in strips, is that part of the whole picture.
fn crops_are_parts(name: &str, bytes: &[u8], whole: &Result<RgbImage, DecodeError>) {
    let Ok(whole) = whole else { return };
    let (width, height) = (whole.width(), whole.height());
    // JPEG and WebP, whose lossy crops differ at their edges, have tests of their own.
    if matches!(
        ImageFormat::sniff(bytes),
        Some(ImageFormat::Jpeg | ImageFormat::WebP)
    ) {
        return;
    }
    let crop = CropBox {
        x: width / 3,
        y: height / 4,
        width: (width / 2).max(1),
        height: (height / 2).max(1),
    };
    let mut path = ImagePath::new(ImageTransform::eval(9), DecodeQuality::Exact);
    let view = View {
        crop,
        mirrored: false,
    };
    let expected = path.reference(whole, &view);
    let mut out = path.processor.blank();
    let opened = path.decoder.open(bytes).expect("opens");
    path.processor
        .render_opened(
            &mut path.decoder,
            &opened,
            &view,
            path.quality,
            out.as_mut(),
        )
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(out, expected, "{name}, in strips");
    let decoded = path.decoder.decode(&opened, crop, 9, path.quality);
    let decoded = decoded.unwrap_or_else(|error| panic!("{name}: {error}"));
    path.processor.render_decoded(&decoded, false, out.as_mut());
    assert_eq!(out, expected, "{name}");
}

/// A PNG of 16-bit grey.
fn is_deep_grey(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89PNG") && bytes.get(24..26) == Some(&[16, 0])
}

/// The collections of odd files: where both read one, the pictures are equal.
#[test]
fn collected_images_are_those_of_pil() {
    let Some(folder) = test_data::find("collected_images_are_those_of_pil", "data/hostile/images")
    else {
        return;
    };
    let Some(python) = python("collected_images_are_those_of_pil") else {
        return;
    };
    let files: Vec<PathBuf> = common::files(&folder)
        .into_iter()
        .filter(|path| {
            let format = std::fs::read(path)
                .ok()
                .and_then(|bytes| ImageFormat::sniff(&bytes));
            format.is_some_and(|format| format != ImageFormat::Jpeg)
        })
        .collect();
    let made = Folder::made_by_pil(&python, "pil-collected", &files);
    let (mut equal, mut ours_alone, mut theirs_alone) = (0, Vec::new(), Vec::new());
    let mut wrong = Vec::new();
    for (number, path) in files.iter().enumerate() {
        let bytes = std::fs::read(path).expect("reads");
        let theirs = Reference::load(&made.0.join(format!("file-{number}.rgb")));
        let ours = decode(&bytes, OnTruncated::Error);
        let shown = path
            .strip_prefix(&folder)
            .expect("below")
            .display()
            .to_string();
        match (&ours, theirs) {
            _ if is_deep_grey(&bytes) => {}
            (Ok(_), Some(theirs)) => match difference(&ours, &theirs, 0) {
                None => equal += 1,
                Some(problem) => wrong.push(format!("{shown}: {problem}")),
            },
            (Ok(_), None) => ours_alone.push(shown),
            (Err(error), Some(_)) => theirs_alone.push(format!("{shown}: {error}")),
            (Err(_), None) => {}
        }
    }
    println!("{equal} equal; read by us alone: {ours_alone:#?}; by PIL alone: {theirs_alone:#?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ours_alone.is_empty() && theirs_alone.is_empty());
    assert!(equal > 400, "{equal}");
}

/// JPEGs that we read and PIL does not, and why.
const READ_BY_US_ALONE: [(&str, &str); 3] = [
    ("monkey12.jpg", "12 bits a sample"),
    (
        "a7326ba8f3f4559991126474dd30083d.jpg",
        "PIL finds no header",
    ),
    (
        "c3018ebe53d0046eecb58858ca869a99.jpg",
        "its EXIF is no TIFF file, which PIL takes for an error",
    ),
];

/// Why a JPEG may be refused that PIL reads; the picture that PIL makes of it is given.
fn is_refusal(error: &DecodeError, bytes: &[u8], theirs: &Reference) -> bool {
    // No row of it was decoded.
    let is_black = theirs.rgb.iter().all(|&sample| sample == 0);
    let message = error.to_string();
    let is_lossless = message.contains("lossless coding");
    // What PIL makes of it without a word is what is asked for with `on_truncated = "grey"`.
    let parts = ["is damaged", "its data ends", "cannot hold"];
    let is_partial = parts.iter().any(|part| message.contains(part));
    let is_told = is_partial
        && decode(bytes, OnTruncated::Grey)
            .is_ok_and(|grey| mean_difference(&grey, theirs).is_some_and(|mean| mean <= 2.0));
    is_black || is_lossless || is_told
}

/// Mean difference of the samples of two pictures of one size.
fn mean_difference(ours: &RgbImage, theirs: &Reference) -> Option<f64> {
    let is_same_size = (ours.width(), ours.height()) == theirs.size;
    let pairs = ours.data().iter().zip(&theirs.rgb);
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    is_same_size.then(|| sum as f64 / ours.data().len() as f64)
}

/// All JPEGs of the collections, with and without what is missing: as PIL reads them, within 2 of 255 in the
/// mean. What is refused instead has a reason.
#[test]
fn collected_jpegs_are_those_of_pil() {
    let test = "collected_jpegs_are_those_of_pil";
    let folders = ["data/hostile/images", "data/photos", "data/cases"];
    let folders = folders.map(|folder| test_data::find(test, folder));
    let Some(python) = python(test) else {
        return;
    };
    let is_jpeg = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        ImageFormat::sniff(&bytes) == Some(ImageFormat::Jpeg)
    };
    let files = folders
        .iter()
        .flatten()
        .flat_map(|folder| common::files(folder));
    let files: Vec<PathBuf> = files.filter(is_jpeg).collect();
    let made = Folder::made_by_pil(&python, "pil-jpegs", &files);
    let mut wrong = Vec::new();
    let (mut alike, mut refused) = (0, 0);
    for (number, path) in files.iter().enumerate() {
        let bytes = std::fs::read(path).expect("reads");
        let shown = path.display().to_string();
        for (ending, on_truncated) in [("rgb", OnTruncated::Error), ("grey", OnTruncated::Grey)] {
            let theirs = Reference::load(&made.0.join(format!("file-{number}.{ending}")));
            let problem = match (decode(&bytes, on_truncated), theirs) {
                (Ok(ours), Some(theirs)) => match mean_difference(&ours, &theirs) {
                    Some(mean) if mean <= 2.0 => None,
                    // PIL gave up before the first row.
                    Some(_) if theirs.rgb.iter().all(|&sample| sample == 0) => None,
                    mean => Some(format!("{mean:?} of 255 apart, or of another size")),
                },
                (Ok(_), None) => {
                    let mut known = READ_BY_US_ALONE.iter();
                    let is_known = known.any(|(name, _)| shown.ends_with(name));
                    (!is_known).then(|| "PIL does not read it".to_owned())
                }
                (Err(error), theirs) => {
                    refused += 1;
                    let is_right = theirs.is_none_or(|theirs| is_refusal(&error, &bytes, &theirs));
                    (!is_right).then(|| format!("refused: {error}"))
                }
            };
            alike += usize::from(problem.is_none());
            wrong.extend(problem.map(|problem| format!("{shown} ({ending}): {problem}")));
        }
    }
    println!("{} as PIL has it, {refused} refused", alike - refused);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(alike - refused > 300, "{alike}");
}
