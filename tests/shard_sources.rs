//! Every kind of input of `qfdata shard`, written by the programs that such inputs come from: Python's
//! csv, json, zipfile, pyarrow, `datasets`, `webdataset`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bin;
use crate::shard_cli::{files, read_back, read_files, shard};
use crate::test_data::python;

/// Twelve photographs of no two sizes with captions, in a folder, and lists of them of every kind.
/// Prints for each: what to run, and what the shards must hold.
const WRITE: &str = r#"
import base64, csv, io, json, os, sys, zipfile
import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
import datasets, webdataset
from PIL import Image
datasets.disable_progress_bars()
root = sys.argv[1]
os.chdir(root)
os.makedirs("img/deep", exist_ok=True)
names, images, captions = [], [], []
for n in range(12):
    w, h = 40 + 3 * n, 90 - 5 * n
    picture = Image.frombytes("RGB", (w, h), bytes((x * 5 + n) % 256 if c == 0 else (y * 7) % 256 if c == 1 else (x * y + n * 20) % 256
                                                   for y in range(h) for x in range(w) for c in range(3)))
    kind = ("jpg", "JPEG") if n % 3 else ("png", "PNG")
    out = io.BytesIO(); picture.save(out, kind[1])
    name = f"deep/photo {n:02}.{kind[0]}" if n % 2 else f"photo{n:02}.{kind[0]}"
    open("img/" + name, "wb").write(out.getvalue())
    names.append(name); images.append(out.getvalue())
    captions.append([f"Ein Hund, Nummer {n}", f"a \"dog\"; no. {n}"] if n % 4 else [f"only one | {n}"])
everything = [(n, c) for n, cs in zip(names, captions) for c in cs]
tests = []
def test(name, arguments, json_of=None, one=False, stdin=None, keys=None, lines=False):
    # What is expected of each sample: key, bytes, captions, fields of the .json.
    expected = []
    for n in range(12):
        key = keys[n] if keys else f"{n:09}"
        fields = json_of(n) if json_of else None
        expected.append([key, images[n].hex(), captions[n][:1] if one else [" ".join(captions[n])] if lines else captions[n], fields])
    tests.append(dict(name=name, arguments=arguments, expected=expected, stdin=stdin))

with open("semicolons.csv", "w", newline="") as f:
    out = csv.writer(f, delimiter=";")
    out.writerow(["image_path", "score", "TEXT"])
    for n, c in everything: out.writerow([n, len(n), c])
test("csv with --delimiter", ["semicolons.csv", "--delimiter", ";", "--images", "img"], lambda n: {"score": str(len(names[n]))})

with open("rows.tsv", "w") as f:
    f.write("filepath\ttitle\n")
    for n, c in everything: f.write(f"{n}\t{c}\n")
test("tsv", ["rows.tsv", "--images", "img"])

with open("rows.jsonl", "w") as f:
    for n in range(12):
        row = {"file_name": "img/" + names[n], "captions": captions[n], "id": n, "deep": {"a": [1, 2.5, None]}}
        f.write(json.dumps(row) + "\n")
test("jsonl", ["rows.jsonl"], lambda n: {"id": n, "deep": {"a": [1, 2.5, None]}})
test("jsonl with --keep-columns", ["rows.jsonl", "--keep-columns", "id"], lambda n: {"id": n})

with open("inline.jsonl", "w") as f:
    for n in range(12):
        f.write(json.dumps({"image_base64": base64.b64encode(images[n]).decode(), "caption": captions[n]}) + "\n")
test("base64", ["inline.jsonl"])

table = pa.table({"path": ["img/" + n for n in names], "caption_0": [c[0] for c in captions],
                  "caption_1": [c[1] if len(c) > 1 else None for c in captions], "similarity": pa.array([n / 8 for n in range(12)], pa.float32())})
pq.write_table(table, "paths.parquet", row_group_size=5)
test("parquet with paths", ["paths.parquet"], lambda n: {"similarity": n / 8})

pq.write_table(pa.table({"jpg": pa.array(images, pa.binary()), "captions": pa.array(captions), "url": [f"http://h/{n}" for n in range(12)]}),
               "bytes.parquet", compression="zstd", row_group_size=7)
test("parquet with bytes", ["bytes.parquet"], lambda n: {"url": f"http://h/{n}"})

features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
def data(indices):
    return datasets.Dataset.from_dict({"image": [{"bytes": images[n], "path": f"key {n:02}.jpg"} for n in indices],
                                       "caption": [captions[n] for n in indices]}, features=features)
os.makedirs("hub/data", exist_ok=True)
data(range(7)).to_parquet("hub/data/train-00000-of-00002.parquet")
data(range(7, 12)).to_parquet("hub/data/train-00001-of-00002.parquet")
data(range(3)).to_parquet("hub/data/test-00000-of-00001.parquet")
named = [f"key {n:02}" for n in range(12)]
test("the Parquet files of a data set", ["hub", "--split", "train"], keys=named)
data(range(12)).save_to_disk("saved", num_shards=3)
test("datasets.save_to_disk", ["saved"], keys=[f"key {n:02}" for n in range(12)])
datasets.DatasetDict({"train": data(range(12)), "test": data(range(2))}).save_to_disk("splits")
test("DatasetDict.save_to_disk", ["splits", "--split", "train"], keys=[f"key {n:02}" for n in range(12)])

keys = [f"{n:03}" for n in range(12)]
with webdataset.ShardWriter("wds-%02d.tar", maxcount=5, verbose=0) as sink:
    for n in range(12):
        sink.write({"__key__": keys[n], names[n][-3:]: images[n], "txt": "\n".join(captions[n]), "json": {"n": n}, "cls": n})
test("webdataset", ["wds-00.tar", "wds-01.tar", "wds-02.tar"], lambda n: {"n": n}, keys=keys)
test("a pattern of shards", ["wds-{00..02}.tar"], lambda n: {"n": n}, keys=keys)

# Columns of every kind that `datasets` has; what it gives for a row is what the .json must hold.
import datetime
from decimal import Decimal
zone = datetime.timezone.utc
more = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string")),
    "id": datasets.Value("int64"), "count": datasets.Value("uint8"), "similarity": datasets.Value("float32"), "ratio": datasets.Value("float64"),
    "half": datasets.Value("float16"), "is_safe": datasets.Value("bool"), "licence": datasets.ClassLabel(names=["by", "by-sa"]),
    "url": datasets.Value("string"), "note": datasets.Value("large_string"), "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
    "objects": datasets.List({"label": datasets.Value("string"), "area": datasets.Value("int32")}), "source": {"page": {"title": datasets.Value("string"),
    "rank": datasets.Value("int16")}, "tags": datasets.List(datasets.Value("string"))}, "when": datasets.Value("timestamp[us]"),
    "seen": datasets.Value("timestamp[ms, tz=UTC]"), "exact": datasets.Value("timestamp[ns]"), "day": datasets.Value("date32"), "at": datasets.Value("time64[us]"),
    "price": datasets.Value("decimal128(9, 2)"), "nothing": datasets.Value("null"), "mask": datasets.Image(), "shape": datasets.Array2D((2, 3), "int32")})
def full(n):
    none = n % 5 == 3
    return {"image": {"bytes": images[n], "path": f"key {n:02}.jpg"}, "caption": captions[n], "id": -n << 40, "count": 250 - n, "similarity": 0.1 * n,
        "ratio": None if none else 1 / (n + 1), "half": n / 4, "is_safe": None if none else n % 2 == 0, "licence": n % 2, "url": None if none else f"http://h/{n}?\"ä\n",
        "note": "", "boxes": None if none else [[1, 2, 3, n / 8]] * (n % 3), "objects": [{"label": f"l{i}", "area": None if i else n} for i in range(n % 4)],
        "source": None if none else {"page": {"title": captions[n][0], "rank": -n}, "tags": [None, "a"][: n % 3]}, "when": datetime.datetime(1969 + n, 2, 3, 4, 5, 6, 70 * n),
        "seen": datetime.datetime(2024, 2, 29, 1, 2, 3, 4000, zone), "exact": datetime.datetime(2024, 2, 29, 1, 2, 3, 4), "day": datetime.date(1960 + n, 1, 2),
        "at": datetime.time(n, 2, 3, n), "price": Decimal(n * 7 - 20) / 100, "nothing": None, "mask": {"bytes": images[n], "path": f"mask {n}.png"}, "shape": [[n, 2, 3], [4, 5, 6]]}
rich = datasets.Dataset.from_list([full(n) for n in range(12)], features=more)
def plain(value):
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)): return value.isoformat()
    if isinstance(value, Decimal): return str(value)
    if isinstance(value, dict): return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list): return [plain(v) for v in value]
    return value
raw = rich.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))
def json_of(n):
    row = {k: v for k, v in plain(raw[n]).items() if k not in ("image", "caption")}
    row["mask"] = {"path": row["mask"]["path"]}
    for numbers in [row["boxes"] or []]: assert all(len(box) == 4 for box in numbers)
    # Printed with as many digits as it takes, as numpy does.
    row["similarity"] = float(str(np.float32(row["similarity"])))
    return row
rich.save_to_disk("rich", num_shards=2)
test("all kinds of columns, Arrow", ["rich"], json_of, keys=named)
rich.to_parquet("rich.parquet", batch_size=5)
test("all kinds of columns, Parquet", ["rich.parquet"], json_of, keys=named)
test("some columns, Arrow", ["rich", "--keep-columns", "id,source"], lambda n: {k: json_of(n)[k] for k in ("id", "source")}, keys=named)
test("some columns, Parquet", ["rich.parquet", "--keep-columns", "id,source"], lambda n: {k: json_of(n)[k] for k in ("id", "source")}, keys=named)
test("no columns, Arrow", ["rich", "--keep-columns", "none"], keys=named)
def hub(kind):
    table = {"__key__": keys, "jpg": images, "txt": ["\n".join(c) for c in captions], "json": [{"n": n, "url": "inner"} for n in range(12)], "__url__": ["wds-00.tar"] * 12}
    return pa.table(table | {"json": [json.dumps(row) for row in table["json"]]} if kind == "text" else table)
for kind in ("struct", "text"):
    pq.write_table(hub(kind), f"hub-{kind}.parquet")
    fields = lambda n: {"__key__": keys[n], "__url__": "wds-00.tar", "n": n, "url": "inner"}
    test(f"json as {kind}, Parquet", [f"hub-{kind}.parquet"], fields, lines=True)
    with pa.OSFile(f"hub-{kind}.arrow", "wb") as f, pa.ipc.new_stream(f, hub(kind).schema) as out: out.write_table(hub(kind))
    test(f"json as {kind}, Arrow", [f"hub-{kind}.arrow"], fields, lines=True)

coco = {"info": {}, "images": [{"id": 100 + n, "file_name": names[n], "height": 90 - 5 * n} for n in range(12)], "annotations": []}
for n, cs in enumerate(captions):
    for c in cs: coco["annotations"].append({"id": len(coco["annotations"]), "image_id": 100 + n, "caption": c})
json.dump(coco, open("captions_val.json", "w"))
test("COCO", ["captions_val.json", "--images", "img"], lambda n: {"id": 100 + n, "height": 90 - 5 * n})

karpathy = {"dataset": "coco", "images": [{"filepath": os.path.dirname(names[n]), "filename": os.path.basename(names[n]), "imgid": n, "split": "train",
            "sentences": [{"tokens": [], "raw": c, "imgid": n} for c in captions[n]]} if os.path.dirname(names[n]) else
            {"filename": names[n], "imgid": n, "split": "train", "sentences": [{"raw": c} for c in captions[n]]} for n in range(12)]}
karpathy["images"].insert(3, {"filename": "none.jpg", "split": "val", "sentences": [{"raw": "x"}]})
json.dump(karpathy, open("dataset_coco.json", "w"))
test("Karpathy", ["dataset_coco.json", "--images", "img", "--split", "train", "--keep-columns", "imgid"], lambda n: {"imgid": n})

json.dump([{"image": n, "caption": c, "image_id": f"coco_{n}"} for n, c in everything], open("lavis.json", "w"))
test("LAVIS", ["lavis.json", "--images", "img"], lambda n: {"image_id": f"coco_{names[n]}"})
json.dump([{"image": names[n], "caption": captions[n]} for n in range(12)], open("lavis_val.json", "w"))
test("LAVIS with lists", ["lavis_val.json", "--images", "img"])

llava = [{"id": str(n), "image": names[n], "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": captions[n][0]}]} for n in range(12)]
json.dump(llava, open("llava.json", "w"))
test("LLaVA", ["llava.json", "--images", "img"], lambda n: {"id": str(n), "conversations": llava[n]["conversations"]}, one=True)

token = "".join(f"{n}#{i}\t{c}\n" for n, cs in zip(names, captions) for i, c in enumerate(cs))
open("results.token", "w").write(token)
test("Flickr's .token", ["results.token", "--images", "img"])
open("Flickr8k.token.txt", "w").write(token)
test("Flickr8k.token.txt", ["Flickr8k.token.txt", "--images", "img"])
with open("results.csv", "w") as f:
    f.write("image_name| comment_number| comment\n")
    for n, cs in zip(names, captions):
        for i, c in enumerate(cs): f.write(f"{n}| {i}| {c.replace('|', '/')}\n")
captions, whole = [[c.replace("|", "/") for c in cs] for cs in captions], captions
test("Flickr30k's results.csv", ["results.csv", "--images", "img", "--keep-columns", "none"])
captions = whole
with open("captions.txt", "w", newline="") as f:
    out = csv.writer(f); out.writerow(["image", "caption"]); out.writerows(everything)
test("Kaggle's captions.txt", ["captions.txt", "--images", "img"])

for name, method in (("stored.zip", zipfile.ZIP_STORED), ("deflated.zip", zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile(name, "w", method) as out:
        for n in sorted(range(12), key=lambda n: names[n]):
            out.writestr(names[n], images[n])
            out.writestr(names[n][:-3] + "txt", "\n".join(captions[n]))
os.makedirs("imagefolder")
for n in range(12): open(f"imagefolder/{n}.{names[n][-3:]}", "wb").write(images[n])
with open("imagefolder/metadata.jsonl", "w") as f:
    for n in range(12): f.write(json.dumps({"file_name": f"{n}.{names[n][-3:]}", "text": captions[n]}) + "\n")
test("a folder with metadata.jsonl", ["imagefolder"])
order = sorted(range(12), key=lambda n: names[n])
for name in ("stored.zip", "deflated.zip"):
    expected = [[names[n][:-4], images[n].hex(), captions[n], None] for n in order]
    tests.append(dict(name=name, arguments=[name], expected=expected, stdin=None))

lines = "".join(f"img/{n}\t{c}\n" for n, c in everything)
test("a list on standard input", ["-"], stdin=lines)
test("JSONL on standard input", ["-", "--from", "jsonl"], lambda n: {"id": n, "deep": {"a": [1, 2.5, None]}}, stdin=open("rows.jsonl").read())
for n in range(12): open("img/" + names[n][:-3] + "txt", "w").write("\n".join(captions[n]))
open("paths.txt", "w").write("".join(f"img/{n}\n" for n in names))
test("a list of paths", ["paths.txt"])
print(json.dumps(tests))
"#;

#[test]
fn every_kind_of_input() {
    let Some(python) = python("every_kind_of_input") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .args(["-c", WRITE])
        .arg(folder.path())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    let tests: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(tests.len() > 20);
    for (number, test) in tests.iter().enumerate() {
        let out = format!("out/{number}");
        let summary = run(folder.path(), test, &out, &[]);
        let name = &test["name"];
        assert_eq!(summary["samples"], 12, "{name}: {summary}");
        let shards = files(&summary);
        let shards: Vec<_> = shards.iter().map(|file| folder.path().join(file)).collect();
        let found = read_files(&shards);
        let fields = jsons(&shards[0]);
        for (at, expected) in test["expected"].as_array().unwrap().iter().enumerate() {
            let (key, _, image, captions) = &found[at];
            assert_eq!(key, expected[0].as_str().unwrap(), "{name}");
            assert_eq!(hex(image), expected[1].as_str().unwrap(), "{name}: {key}");
            let expected_captions: Vec<&str> = expected[2]
                .as_array()
                .unwrap()
                .iter()
                .map(|caption| caption.as_str().unwrap())
                .collect();
            assert_eq!(captions, &expected_captions, "{name}: {key}");
            let of_key = fields.iter().find(|(of, _)| of == key);
            let of_key = of_key.map_or(Value::Null, |(_, fields)| fields.clone());
            assert_eq!(of_key, expected[3], "{name}: {key}");
        }
    }
    // Shuffled, what is not a list goes through a file: the same samples, in an order that the seed decides.
    for name in ["webdataset", "parquet with bytes", "LAVIS"] {
        let test = tests.iter().find(|test| test["name"] == name).unwrap();
        let orders = ["7", "7", "8"].map(|seed| {
            let out = format!("shuffled/{name}");
            let options = ["--shuffle-seed", seed, "--overwrite"];
            let summary = run(folder.path(), test, &out, &options);
            let shards = files(&summary);
            let shards: Vec<_> = shards.iter().map(|file| folder.path().join(file)).collect();
            read_files(&shards)
        });
        assert_eq!(orders[0], orders[1], "{name}");
        assert_ne!(orders[0], orders[2], "{name}");
        let sorted = |order: &crate::shard_cli::Samples| {
            let mut order = order.clone();
            order.sort();
            order
        };
        assert_eq!(sorted(&orders[0]), sorted(&orders[2]), "{name}");
    }
}

fn run(folder: &Path, test: &Value, out: &str, options: &[&str]) -> Value {
    let arguments = test["arguments"].as_array().unwrap();
    let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
    let mut child = Command::new(bin::qfdata())
        .current_dir(folder)
        .arg("shard")
        .args(arguments)
        .args(["--out", &format!("{out}/s"), "--json"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = test["stdin"].as_str().unwrap_or_default();
    // A program that does not read it has closed it.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", test["name"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Key and content of the `.json` members of a tar.
fn jsons(shard: &Path) -> Vec<(String, Value)> {
    let mut archive = tar::Archive::new(fs::File::open(shard).unwrap());
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if let Some(key) = name.strip_suffix(".json") {
            found.push((key.to_owned(), serde_json::from_reader(entry).unwrap()));
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Members that are none of ours stay; equal keys of two shards are told apart; a shard that is cut off
/// gives what it has, and says what it has not.
#[test]
fn shards_are_merged_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, keys: &[&str]| {
        let mut tar = tar::Builder::new(fs::File::create(at(name)).unwrap());
        for key in keys {
            let image = crate::shard_cli::image(image::ImageFormat::Jpeg, key.len() as u8);
            for (extension, content) in [
                ("jpg", &image[..]),
                ("txt", format!("of {key} in {name}").as_bytes()),
                ("seg.png", b"mask"),
                ("cls", b"7"),
            ] {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                let member = format!("{key}.{extension}");
                tar.append_data(&mut header, member, content).unwrap();
            }
        }
        tar.into_inner().unwrap();
    };
    write("a.tar", &["x", "yy"]);
    write("b.tar", &["zzz", "x", "x_2"]);
    let both = at("{a,b}.tar");
    let summary = shard(&both, &at("merged/s"), &[]);
    assert_eq!(summary["renamed_keys"], 2, "{summary}");
    let samples = read_back(&summary);
    let found: Vec<(&str, &str)> = samples
        .iter()
        .map(|(key, _, _, captions)| (key.as_str(), captions[0].as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("x", "of x in a.tar"),
            ("yy", "of yy in a.tar"),
            ("zzz", "of zzz in b.tar"),
            ("x_2", "of x in b.tar"),
            ("x_2_2", "of x_2 in b.tar"),
        ]
    );
    let mut archive = tar::Archive::new(fs::File::open(&files(&summary)[0]).unwrap());
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[..4], ["x.jpg", "x.txt", "x.seg.png", "x.cls"]);
    assert_eq!(names.len(), 20);

    let whole = fs::read(at("b.tar")).unwrap();
    fs::write(at("b.tar"), &whole[..whole.len() * 2 / 3]).unwrap();
    let summary = shard(&both, &at("cut/s"), &[]);
    assert_eq!(summary["skipped"]["unreadable"], 1, "{summary}");
    assert!(summary["samples"].as_u64().unwrap() >= 3, "{summary}");
}

/// What cannot be read is named, with what to do.
#[test]
fn inputs_that_are_none_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    write("broken.json", b"{\"images\": [");
    write("numbers.json", b"[1, 2]");
    write(
        "other.json",
        br#"{"licenses": [{"id": 1}], "info": [{"x": 2}]}"#,
    );
    write("boxes.json", br#"{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"image_id": 1, "bbox": []}]}"#);
    write("not.parquet", b"PAR1 but no more");
    write("not.zip", b"PK but no more");
    write("latin.txt", b"caf\xe9.jpg\n");
    write("urls.txt", b"http://h/x.jpg\n");
    write("rows.csv", b"path,caption\nx.jpg,a dog\n");
    for (inputs, expected) in [
        (&["broken.json"][..], "not JSON"),
        (&["numbers.json"], "bad_row 2"),
        (&["other.json"], "neither a list of objects nor COCO"),
        (&["boxes.json"], "captions_*.json"),
        (&["not.parquet"], "not.parquet"),
        (&["not.zip"], "not.zip"),
        (&["latin.txt"], "offset 3"),
        (&["urls.txt"], "no_caption 1"),
        (&["rows.csv", "not.zip"], "different kinds"),
        (&["rows.csv", "rows.csv"], "several inputs"),
        (&["rows.csv", "--split", "val"], "no column `split`"),
        (&["rows.csv", "--keep-columns", "x"], "no column `x`"),
        (&["rows.csv", "--caption-column", "alt"], "no column `alt`"),
        (&["missing-*.tar"], "missing-*.tar"),
        (&["https://h/list.csv"], "URL of shards"),
    ] {
        let output = Command::new(bin::qfdata())
            .current_dir(folder.path())
            .arg("shard")
            .args(inputs)
            .args(["--out", "out/s", "--on-bad", "skip"])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{inputs:?}: {message}");
        assert!(message.contains(expected), "{inputs:?}: {message}");
        assert!(!folder.path().join("out").exists(), "{inputs:?}");
    }
}
