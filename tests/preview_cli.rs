//! `qfdata preview` as a user runs it, against PIL, NumPy, transformers and Python's HTML parser.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};
use serde_json::Value;

use crate::bin;
use crate::test_data;
use crate::train_cli::tar_shard;

/// Runs `qfdata preview` in a folder.
fn preview(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(bin::qfdata());
    command.current_dir(folder).arg("preview").args(words);
    command.output().expect("qfdata starts")
}

fn done(folder: &Path, words: &[&str]) -> String {
    let output = preview(folder, words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    assert!(
        !error.contains("error") && !error.contains("WARN"),
        "{error}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &Path, words: &[&str]) -> Value {
    let words = [words, &["--json"]].concat();
    serde_json::from_str(&done(folder, &words)).unwrap()
}

fn fails(folder: &Path, code: i32, words: &[&str]) -> String {
    let output = preview(folder, words);
    assert_eq!(output.status.code(), Some(code), "{words:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Runs a script of Python; what it prints.
fn python(script: &str, folder: &Path, arguments: &[&str]) -> Option<String> {
    let python = test_data::python("preview_cli")?;
    let output = Command::new(python)
        .current_dir(folder)
        .args(["-W", "ignore", "-c", script])
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONUTF8", "1")
        .output()
        .expect("Python starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The first photographs of the shared data with their captions, as `photos/` and as two tar shards.
struct Photographs {
    folder: tempfile::TempDir,
    vocabulary: PathBuf,
}

const COUNT: usize = 12;

fn photographs(test: &str) -> Option<Photographs> {
    let pairs = test_data::find(test, "data/pairs")?;
    let vocabulary = fs::canonicalize(test_data::find(test, "data/bert/vocab.txt")?).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for number in 0..COUNT {
        for ending in ["jpg", "txt"] {
            let name = format!("{number:06}.{ending}");
            fs::copy(pairs.join(&name), photos.join(&name)).unwrap();
        }
    }
    let mut shard = Command::new(bin::qfdata());
    shard.current_dir(&folder);
    shard.args(["shard", "photos", "--out", "shards", "--max-count", "7"]);
    assert!(shard.output().expect("qfdata starts").status.success());
    Some(Photographs { folder, vocabulary })
}

/// Compares the picture and the page with the array, pixel by pixel, and prints the array's bytes' number.
const COMPARE: &str = r#"
import base64, html.parser, io, json, re, sys
import numpy, PIL.Image

report = json.load(open("report.json"))
array = numpy.load("batch.npy")
size = report["image_size"]
assert array.shape == (report["images"], 3, size, size), array.shape
assert array.dtype == numpy.uint8 and array.flags["C_CONTIGUOUS"]
images = array.transpose(0, 2, 3, 1)
assert len({image.tobytes() for image in images}) == len(images), "all images differ"
# Colour: a grey batch could hide swapped channels.
assert all(numpy.ptp(image.astype(int), axis=2).max() > 30 for image in images)

grid = report["grid"]
with PIL.Image.open(report["out"]) as opened:
    assert opened.format == "PNG" and opened.mode == "RGB"
    picture = numpy.asarray(opened)
assert picture.shape == (grid["height"], grid["width"], 3)
scale, side = grid["scale"], grid["scale"] * size
assert len(grid["tiles"]) == len(images)
seen = numpy.zeros(picture.shape[:2], bool)
for image, (x, y) in zip(images, grid["tiles"]):
    tile = picture[y : y + side, x : x + side]
    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    assert numpy.array_equal(tile, enlarged)
    assert not seen[y : y + side, x : x + side].any(), "tiles overlap"
    seen[y : y + side, x : x + side] = True
    # Something is written below: the paper is not empty.
    below = picture[y + side : y + side + 60, x : x + side]
    assert (below.max(axis=2) < 128).any()

class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.text = [], set(), ""
    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "poster", "data", "action"):
                assert value.startswith("data:image/png;base64,"), value[:40]
                self.sources.append(value)
    def handle_data(self, data):
        self.text += data

source = open(report["html"], encoding="utf-8").read()
assert not re.search(r"https?:|@import|url\(", source), "the page needs the network"
page = Page()
page.feed(source)
assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}, page.tags
assert len(page.sources) == len(images)
for image, data in zip(images, page.sources):
    png = PIL.Image.open(io.BytesIO(base64.b64decode(data.split(",")[1], validate=True)))
    assert numpy.array_equal(numpy.asarray(png), image)
for sample in report["samples"]:
    for text in [sample["key"], *sample["all_captions"], *[c["text"] for c in sample["captions"]]]:
        assert text in page.text, text
print(array.nbytes)
"#;

fn compare(folder: &Path, report: &Value) {
    fs::write(folder.join("report.json"), report.to_string()).unwrap();
    let images = report["images"].as_u64().unwrap();
    let side = report["image_size"].as_u64().unwrap();
    if let Some(bytes) = python(COMPARE, folder, &[]) {
        assert_eq!(bytes.trim(), (images * 3 * side * side).to_string());
    }
}

const OUTPUTS: [&str; 6] = [
    "--out",
    "grid.png",
    "--html",
    "page.html",
    "--npy",
    "batch.npy",
];

#[test]
fn picture_page_and_array_hold_the_batch_of_training() {
    let test = "picture_page_and_array_hold_the_batch_of_training";
    let Some(photographs) = photographs(test) else {
        return;
    };
    let folder = photographs.folder.path();
    let vocabulary = photographs.vocabulary.to_str().unwrap();
    let words = [
        "shards-*.tar",
        "--tokenizer",
        vocabulary,
        "--batch-size",
        "5",
    ];
    let more = ["--seed", "7", "--epoch", "1", "--batch", "1"];
    let report = json(folder, &[&words[..], &more, &OUTPUTS].concat());
    compare(folder, &report);

    // What training would get: without end, without partial batches, from any number of threads.
    let config = LoaderConfig {
        batch_size: 5,
        seed: 7,
        ..LoaderConfig::default()
    };
    let pattern = folder.join("shards-*.tar");
    let shards = resolve_shards(&[pattern.to_str().unwrap()]).unwrap();
    let tokenizer = Arc::new(CaptionTokenizer::from_file(&photographs.vocabulary).unwrap());
    let builder = Loader::builder(config).shards(shards).first_epoch(1);
    let mut loader = builder.batches(tokenizer).unwrap();
    loader.next_batch().unwrap().unwrap();
    let batch = loader.next_batch().unwrap().unwrap();
    let samples = report["samples"].as_array().unwrap();
    assert_eq!((batch.batch_size, samples.len()), (5, 5));
    for (index, sample) in samples.iter().enumerate() {
        assert_eq!(sample["key"], batch.ids[index].key.as_str());
        assert_eq!(
            sample["captions"][0]["text"],
            batch.captions[index].as_str()
        );
        let ids = &batch.tokens.ids()[index * 32..][..32];
        assert_eq!(sample["captions"][0]["token_ids"], serde_json::json!(ids));
        let stored =
            fs::read_to_string(folder.join(format!("photos/{}.txt", batch.ids[index].key)));
        let stored: Vec<String> = stored
            .unwrap()
            .lines()
            .map(|line| line.trim().into())
            .collect();
        let drawn = sample["captions"][0]["index"].as_u64().unwrap() as usize;
        let all: Vec<String> = serde_json::from_value(sample["all_captions"].clone()).unwrap();
        let trimmed: Vec<&str> = all.iter().map(|caption| caption.trim()).collect();
        assert_eq!(trimmed, stored);
        assert_eq!(
            stored[drawn].to_lowercase().split_whitespace().next(),
            batch.captions[index].split_whitespace().next()
        );
    }
    let npy = fs::read(folder.join("batch.npy")).unwrap();
    assert!(npy.ends_with(batch.pixels().as_bytes()));
}

/// The crop and the mirroring that are said, done with PIL, give the pixels that are shown.
#[test]
fn crops_are_where_they_are_said_to_be() {
    let test = "crops_are_where_they_are_said_to_be";
    let Some(photographs) = photographs(test) else {
        return;
    };
    let folder = photographs.folder.path();
    let exact = ["shards-*.tar", "--decode-quality", "exact"];
    for source in [
        &exact[..],
        &["photos/", "--decode-quality", "exact"],
        &["shards-*.tar", "--eval"],
    ] {
        let report = json(folder, &[source, &OUTPUTS].concat());
        fs::write(folder.join("report.json"), report.to_string()).unwrap();
        let script = r#"
import json, pathlib
import numpy, PIL.Image, PIL.ImageOps

report = json.load(open("report.json"))
array = numpy.load("batch.npy")
assert len(array) == 12
crops, sides = set(), set()
for sample, pixels in zip(report["samples"], array):
    path = "photos/" + pathlib.Path(sample["key"]).stem + ".jpg"
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB")
    assert image.size == (sample["width"], sample["height"])
    sides.add(image.size)
    crop = sample["crop"]
    box = (crop["x"], crop["y"], crop["x"] + crop["width"], crop["y"] + crop["height"])
    crops.add((box, sample["mirrored"]))
    expected = image.crop(box).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    if sample["mirrored"]:
        expected = PIL.ImageOps.mirror(expected)
    apart = abs(numpy.asarray(expected).transpose(2, 0, 1).astype(int) - pixels)
    assert (apart <= 1).mean() >= 0.999 and apart.max() < 8, (path, (apart <= 1).mean(), apart.max())
assert sum(width != height for width, height in sides) >= 5, sides
whole = all(box[:2] == (0, 0) and not mirrored for box, mirrored in crops)
print(len(crops), {mirrored for _, mirrored in crops} == {True, False}, whole)
"#;
        let Some(found) = python(script, folder, &[]) else {
            return;
        };
        match source.contains(&"--eval") {
            true => assert!(found.trim().ends_with("False True"), "{found}"),
            false => assert_eq!(found.trim(), "12 True False"),
        }
    }
}

/// Files go the way of samples of a shard: the same evaluation pixels, bit for bit.
#[test]
fn image_files_are_shown_as_shards_are() {
    let Some(photographs) = photographs("image_files_are_shown_as_shards_are") else {
        return;
    };
    let folder = photographs.folder.path();
    let vocabulary = photographs.vocabulary.to_str().unwrap();
    let common = ["--eval", "--tokenizer", vocabulary];
    let of_shards = json(folder, &[&["shards-*.tar"], &common[..], &OUTPUTS].concat());
    let pixels = fs::read(folder.join("batch.npy")).unwrap();
    // By name, by pattern, by folder; caption files among the arguments go with their images.
    for files in ["photos", "photos/*.jpg", "photos/*"] {
        let of_files = json(folder, &[&[files], &common[..], &OUTPUTS].concat());
        assert!(
            fs::read(folder.join("batch.npy")).unwrap() == pixels,
            "{files}"
        );
        compare(folder, &of_files);
        let captions = |report: &Value| -> Vec<Value> {
            let samples = report["samples"].as_array().unwrap().iter();
            samples
                .map(|sample| serde_json::json!([sample["captions"], sample["all_captions"]]))
                .collect()
        };
        assert_eq!(captions(&of_files), captions(&of_shards), "{files}");
        assert_eq!(captions(&of_files)[0][0].as_array().unwrap().len(), 5);
    }
}

/// Ids, pieces and mask are those of transformers for the same captions, which are those of LAVIS's
/// processor.
#[test]
fn tokens_are_those_of_transformers() {
    let Some(photographs) = photographs("tokens_are_those_of_transformers") else {
        return;
    };
    let folder = photographs.folder.path();
    // Longer than 32 tokens; a word that BERT has to spell; accents; a character that it has not.
    let long = "the quick brown fox jumps over the lazy dog, ".repeat(5);
    fs::write(folder.join("photos/000003.txt"), &long).unwrap();
    fs::write(
        folder.join("photos/000004.txt"),
        "Kyrgyzstan's café: a 1980s TV-set; \u{1f600}!",
    )
    .unwrap();
    let vocabulary = photographs.vocabulary.to_str().unwrap();
    let words = ["photos", "--eval", "--tokenizer", vocabulary];
    let report = json(folder, &[&words[..], &OUTPUTS].concat());
    compare(folder, &report);
    let script = r#"
import json, re, sys
from transformers import BertTokenizer

def pre_caption(caption, max_words=50):
    # salesforce/LAVIS, lavis/processors/blip_processors.py, BlipCaptionProcessor.pre_caption
    caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    caption = re.sub(r"\s{2,}", " ", caption)
    caption = caption.rstrip("\n").strip(" ")
    words = caption.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else caption

tokenizer = BertTokenizer(sys.argv[1], do_lower_case=True)
report, count, cut = json.load(open("report.json")), 0, 0
for sample in report["samples"]:
    for caption in sample["captions"]:
        assert caption["text"] == pre_caption(sample["all_captions"][caption["index"]])
        expected = tokenizer(caption["text"], padding="max_length", truncation=True, max_length=32)
        assert caption["token_ids"] == expected["input_ids"], caption
        assert caption["attention_mask"] == expected["attention_mask"]
        assert caption["pieces"] == tokenizer.convert_ids_to_tokens(expected["input_ids"])
        whole = tokenizer(caption["text"])["input_ids"]
        assert caption["cut_tokens"] == max(0, len(whole) - 32), (caption, len(whole))
        count, cut = count + 1, cut + caption["cut_tokens"]
assert any("[UNK]" in c["pieces"] for s in report["samples"] for c in s["captions"])
print(count, cut > 0)
"#;
    if let Some(found) = python(script, folder, &[vocabulary]) {
        assert_eq!(found.trim(), "52 True");
    }
    let page = fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("more tokens cut off at 32"));
    assert!(page.contains("<b><bdi>##"), "pieces that continue a word");
}

/// A JPEG of one colour.
fn jpeg(red: u8) -> Vec<u8> {
    crate::shard_cli::image(image::ImageFormat::Jpeg, red)
}

#[test]
fn bad_samples_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (good, broken) = (jpeg(200), &jpeg(9)[..40]);
    tar_shard(
        &dir.path().join("a.tar"),
        &[
            ("a.jpg", &good),
            ("a.txt", b"a red square"),
            ("b.jpg", broken),
            ("b.txt", b"broken"),
            ("c.jpg", &good),
            ("d.jpg", &good),
            ("d.txt", b"another one"),
            ("e.jpg", b"<html>404</html>"),
            ("e.txt", b"a page"),
        ],
    );
    let words = ["a.tar", "--shuffle", "none", "--image-size", "32"];
    let report = json(dir.path(), &[&words[..], &OUTPUTS].concat());
    let keys = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|item| item["key"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(keys(&report["samples"]), ["a", "d"]);
    assert_eq!(keys(&report["skipped"]), ["b", "c", "e"]);
    let reasons: Vec<_> = (0..3)
        .map(|i| report["skipped"][i]["reason"].as_str().unwrap())
        .collect();
    assert_eq!(
        reasons,
        ["broken_image", "no_caption", "unknown_image_format"]
    );
    assert!(report["samples"][0]["captions"][0]
        .get("token_ids")
        .is_none());
    let page = fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("3 bad samples were passed over"));
    assert!(page.contains("unknown_image_format"));
    let text = done(dir.path(), &words);
    assert!(
        text.contains("\n3 bad samples were passed over:\n  a.tar#b: broken_image: "),
        "{text}"
    );
    assert!(text.contains("--tokenizer"), "{text}");
    // The batch that a bad sample comes before has it.
    let one = |batch: &str| {
        json(
            dir.path(),
            &[&words[..], &["--batch-size", "1", "--batch", batch]].concat(),
        )
    };
    assert_eq!(keys(&one("0")["skipped"]), [""; 0]);
    assert_eq!(keys(&one("1")["skipped"]), ["b", "c"]);
    let error = fails(
        dir.path(),
        1,
        &[&words[..], &["--batch-size", "1", "--batch", "2"]].concat(),
    );
    assert!(
        error.contains("skipped a.tar#e: unknown_image_format: "),
        "{error}"
    );
    assert!(error.ends_with("error: epoch 0 has 2 batches of 1 image, and --batch counts from 0: there is no batch 2\n"), "{error}");

    // None is good: all of them are named, and nothing is written.
    tar_shard(
        &dir.path().join("bad.tar"),
        &[("k.jpg", broken), ("k.txt", b"x"), ("l.jpg", &good)],
    );
    let error = fails(dir.path(), 1, &["bad.tar", "--out", "none.png"]);
    assert!(
        error.contains("skipped bad.tar#k: broken_image: "),
        "{error}"
    );
    assert!(error.contains("skipped bad.tar#l: no_caption: "), "{error}");
    assert!(
        error
            .lines()
            .last()
            .unwrap()
            .starts_with("error: the shards hold 0 usable samples"),
        "{error}"
    );
    assert!(!dir.path().join("none.png").exists());
}

#[test]
fn bad_files_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(at("in").join(name), bytes).unwrap();
    write("a.dat", &jpeg(100));
    write("b.jpg", b"<html>404</html>");
    write("c.png", b"");
    write("d.JPG", &jpeg(50));
    write("d.txt", b"\xff\xfe");
    write("e.avif", b"\0\0\0\x20ftypavif");
    write(
        "f.gif",
        &crate::shard_cli::image(image::ImageFormat::Gif, 3),
    );
    write("f.json", br#"{"caption": "a gif"}"#);
    write(".hidden.jpg", b"x");
    write("notes.md", b"BM is no bitmap");
    let report = json(dir.path(), &["in", "--image-size", "48"]);
    let names = |list: &Value, name: &str| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|item| item[name].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(names(&report["samples"], "key"), ["in/a.dat", "in/f.gif"]);
    assert_eq!(
        names(&report["skipped"], "key"),
        ["in/b.jpg", "in/c.png", "in/d.JPG", "in/e.avif"]
    );
    assert_eq!(
        names(&report["skipped"], "reason"),
        [
            "unknown_image_format",
            "unknown_image_format",
            "bad_caption",
            "avif_image"
        ]
    );
    let captions = |sample: usize| {
        report["samples"][sample]["captions"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((captions(0), captions(1)), (0, 1));
    let error = fails(dir.path(), 1, &["in/b.jpg", "in/e.avif"]);
    assert!(error.starts_with("error: in/b.jpg: not a JPEG"), "{error}");
    assert!(error.contains("1 more"), "{error}");
    // Images and shards, files that are neither, folders without images.
    tar_shard(&at("a.tar"), &[("a.jpg", &jpeg(1)), ("a.txt", b"x")]);
    let error = fails(dir.path(), 1, &["in/a.dat", "a.tar"]);
    assert!(
        error.contains("in/a.dat is an image and a.tar is not"),
        "{error}"
    );
    fs::create_dir(at("empty")).unwrap();
    assert!(fails(dir.path(), 1, &["empty"]).contains("'empty/*.tar'"));
    assert!(fails(dir.path(), 1, &["in/none.jpg"]).contains("in/none.jpg"));
    let error = fails(dir.path(), 1, &["in", "--batch-size", "4", "--batch", "2"]);
    assert!(error.contains("6 image files in batches of 4"), "{error}");
}

/// What captions and keys may hold is text on the page, never markup.
#[test]
fn nothing_of_the_data_is_markup() {
    let dir = tempfile::tempdir().unwrap();
    let caption =
        "<script>alert(1)</script> & \"quotes\" <img src=x onerror=y> \u{1b}[31m \u{202e}oops";
    let key = "<b onclick='x'>k&amp;";
    tar_shard(
        &dir.path().join("a.tar"),
        &[
            (&format!("{key}.jpg"), &jpeg(77)[..]),
            (&format!("{key}.txt"), caption.as_bytes()),
        ],
    );
    // A bad one, too.
    tar_shard(
        &dir.path().join("b.tar"),
        &[("<i>bad.jpg", b"<u>"), ("<i>bad.txt", b"x")],
    );
    let words = ["b.tar", "a.tar", "--shuffle", "none"];
    let report = json(dir.path(), &[&words[..], &OUTPUTS].concat());
    fs::write(dir.path().join("report.json"), report.to_string()).unwrap();
    let script = r#"
import html.parser, json
class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""
    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes), attributes
    def handle_data(self, data):
        self.text += data
page, report = Page(), json.load(open("report.json"))
source = open("page.html", encoding="utf-8").read()
page.feed(source)
sample = report["samples"][0]
visible = lambda text: text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
assert visible(sample["key"]) in page.text and "<i>bad" in page.text
assert visible(sample["captions"][0]["text"]) in page.text
assert visible(sample["all_captions"][0]) in page.text
assert not any(ord(c) < 32 and c != "\n" or c == "\u202e" for c in source)
print(*[page.tags.count(tag) for tag in ("script", "b", "i", "u", "img")])
"#;
    if let Some(found) = python(script, dir.path(), &[]) {
        assert_eq!(found.trim(), "0 0 0 0 1");
    }
}

#[test]
fn settings_of_a_run_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let jpegs: Vec<Vec<u8>> = (0..6).map(|number| jpeg(40 * number)).collect();
    let names: Vec<[String; 2]> = (0..6)
        .map(|n| [format!("{n}.jpg"), format!("{n}.txt")])
        .collect();
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (names, jpeg) in names.iter().zip(&jpegs) {
        members.push((&names[0], jpeg));
        members.push((&names[1], b"a red square"));
    }
    tar_shard(&dir.path().join("a.tar"), &members);
    fs::create_dir(dir.path().join("run")).unwrap();
    let config =
        "steps = 3\nshards = [\"x.tar\"]\n[data]\nbatch_size = 4\nimage_size = 40\nseed = 5\n\
                  text_len = 8\nflip_probability = 1.0\n[model.vision]\ntype = \"eva\"\n";
    fs::write(dir.path().join("run/config.toml"), config).unwrap();
    let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nred\nsquare\n";
    fs::write(dir.path().join("run/vocab.txt"), vocabulary).unwrap();
    let words = ["a.tar", "--config", "run/config.toml"];
    let report = json(dir.path(), &words);
    for (name, value) in [("images", 4), ("image_size", 40), ("seed", 5)] {
        assert_eq!(report[name], value, "{name}");
    }
    for sample in report["samples"].as_array().unwrap() {
        assert_eq!(sample["mirrored"], true);
        let ids = serde_json::json!([2, 4, 5, 6, 3, 0, 0, 0]);
        assert_eq!(sample["captions"][0]["token_ids"], ids);
    }
    // Options win.
    let report = json(
        dir.path(),
        &[
            &words[..],
            &["--image-size", "24", "--batch-size", "6", "--columns", "2"],
        ]
        .concat(),
    );
    assert_eq!(
        (&report["images"], &report["image_size"]),
        (&6.into(), &24.into())
    );
    assert_eq!(report["grid"]["columns"], 2);
    assert_eq!(report["grid"]["scale"], 7, "small images are enlarged");
    fs::write(dir.path().join("bad.toml"), "[data]\nbatchsize = 4\n").unwrap();
    let error = fails(dir.path(), 1, &["a.tar", "--config", "bad.toml"]);
    assert!(
        error.contains("bad.toml") && error.contains("batchsize"),
        "{error}"
    );
    let error = fails(
        dir.path(),
        1,
        &["a.tar", "--image-size", "4096", "--batch-size", "100"],
    );
    assert!(error.contains("--batch-size or --image-size"), "{error}");
}

/// The seed and the epoch change what is drawn; evaluation draws nothing.
#[test]
fn what_is_random_follows_seed_and_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let members: BTreeMap<String, Vec<u8>> = (0..8u8)
        .flat_map(|n| {
            [
                (format!("{n}.jpg"), jpeg(n)),
                (format!("{n}.txt"), b"one\ntwo\nthree".to_vec()),
            ]
        })
        .collect();
    let members: Vec<(&str, &[u8])> = members
        .iter()
        .map(|(name, data)| (name.as_str(), &data[..]))
        .collect();
    tar_shard(&dir.path().join("a.tar"), &members);
    let samples = |more: &[&str]| {
        let words = [&["a.tar", "--image-size", "32", "--shuffle", "none"], more].concat();
        json(dir.path(), &words)["samples"].clone()
    };
    assert_eq!(samples(&[]), samples(&["--seed", "42", "--epoch", "0"]));
    assert_ne!(samples(&[]), samples(&["--seed", "43"]));
    assert_ne!(samples(&[]), samples(&["--epoch", "1"]));
    assert_eq!(samples(&["--eval"]), samples(&["--eval", "--seed", "43"]));
    // A mixture has no epochs, and is shown all the same.
    let words = [
        "--mix",
        "a:0.5=a.tar",
        "--mix",
        "b:0.5=b.tar",
        "--batch-size",
        "12",
    ];
    fs::copy(dir.path().join("a.tar"), dir.path().join("b.tar")).unwrap();
    assert_eq!(json(dir.path(), &words)["images"], 12);
}

#[test]
fn outputs_never_replace_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let png = crate::shard_cli::image(image::ImageFormat::Png, 9);
    fs::write(dir.path().join("preview.png"), &png).unwrap();
    fs::write(dir.path().join("b.png"), &png).unwrap();
    let error = fails(dir.path(), 1, &["*.png"]);
    assert!(
        error.contains("--out preview.png is one of the files to be shown"),
        "{error}"
    );
    let error = fails(dir.path(), 1, &["b.png", "--html", "./b.png"]);
    assert!(error.contains("--html ./b.png is one of"), "{error}");
    let error = fails(dir.path(), 1, &["b.png", "--out", "x", "--npy", "x"]);
    assert!(error.contains("--out and --npy are both x"), "{error}");
    let error = fails(dir.path(), 1, &["b.png", "--out", "."]);
    assert!(error.contains("is a folder"), "{error}");
    assert!(fs::read(dir.path().join("preview.png")).unwrap() == png);
    assert!(fs::read(dir.path().join("b.png")).unwrap() == png);
    // A preview from before is replaced, in new folders too.
    assert!(done(dir.path(), &["b.png", "--out", "new/preview.png"])
        .starts_with("new/preview.png: 1 image file"));
    let text = done(dir.path(), &["b.png", "--out", "new/preview.png", "--eval"]);
    assert!(text.contains("evaluation transform"), "{text}");
    // Wrong usage.
    fails(dir.path(), 2, &[]);
    fails(dir.path(), 2, &["b.png", "--shards", "a.tar"]);
    fails(dir.path(), 2, &["b.png", "--columns", "0"]);
}

/// A text of two lines is two captions or one, of shards and of files, as `--caption-lines` says.
#[test]
fn texts_are_taken_by_line_or_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let photos = folder.join("photos");
    fs::create_dir(&photos).unwrap();
    let mut picture = std::io::Cursor::new(Vec::new());
    let pixels =
        image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([6 * x as u8, 8 * y as u8, 90]));
    pixels
        .write_to(&mut picture, image::ImageFormat::Png)
        .unwrap();
    let picture = picture.into_inner();
    let text = "A red bus\nin the rain\n";
    let mut members = Vec::new();
    for number in 0..4 {
        let name = |ending: &str| format!("{number:03}.{ending}");
        fs::write(photos.join(name("png")), &picture).unwrap();
        fs::write(photos.join(name("txt")), text).unwrap();
        members.push((name("png"), picture.as_slice()));
        members.push((name("txt"), text.as_bytes()));
    }
    let members: Vec<_> = members.iter().map(|(n, d)| (n.as_str(), *d)).collect();
    tar_shard(&folder.join("x.tar"), &members);
    for input in ["x.tar", "photos"] {
        for (lines, expected) in [
            ("each", &["a red bus", "in the rain"][..]),
            ("one", &["a red bus in the rain"]),
        ] {
            let report = json(folder, &[input, "--eval", "--caption-lines", lines]);
            let samples = report["samples"].as_array().unwrap();
            assert_eq!(samples.len(), 4);
            for sample in samples {
                let captions = sample["captions"].as_array().unwrap().iter();
                let texts: Vec<&str> = captions.map(|c| c["text"].as_str().unwrap()).collect();
                assert_eq!(texts, expected, "{input}, {lines}");
            }
        }
    }
    let said = fails(folder, 2, &["x.tar", "--caption-lines", "both"]);
    assert!(said.contains("each") && said.contains("one"), "{said}");
}
