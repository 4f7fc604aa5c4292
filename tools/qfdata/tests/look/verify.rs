//! `verify`: every kind of finding on data that Pillow and tarfile made, and nothing on what is clean.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{complaint, json_lines, photographs, python, run, test_data};

/// Findings of a command by key: code, and the summary.
fn findings(
    folder: &Path,
    code: i32,
    arguments: &[&str],
) -> (BTreeMap<String, Vec<String>>, Value) {
    let text = run(folder, code, &[&["verify", "--json"], arguments].concat());
    let mut lines = json_lines(&text);
    let summary = lines.pop().expect("a summary");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in lines {
        let key = line["key"].as_str().unwrap_or("-").to_string();
        found
            .entry(key)
            .or_default()
            .push(line["code"].as_str().unwrap().to_string());
    }
    found.values_mut().for_each(|codes| codes.sort());
    (found, summary)
}

/// Photographs are clean in every format, and all of them are decoded.
#[test]
fn photographs_are_clean() {
    for format in ["tar", "tar.zst", "arrow"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        if photographs("photographs_are_clean", folder, 25, format).is_none() {
            return;
        }
        let shards = format!("s-*.{format}");
        let (found, summary) = findings(folder, 0, &[&shards]);
        let worse = |code: &String| !["QF-I17", "QF-C09", "QF-I19"].contains(&code.as_str());
        assert!(!found.values().flatten().any(worse), "{found:?}");
        assert_eq!(
            (&summary["samples"], &summary["good_samples"]),
            (&25.into(), &25.into())
        );
        assert_eq!(summary["captions"], 125);
    }
}

/// Images of every kind that Pillow writes, and captions of every kind that people write.
const SAMPLES: &str = r#"
import io, random, tarfile
from PIL import Image
random.seed(1)
def noise(mode="RGB", size=(96, 80)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.randbytes(size[0] * size[1] * bands))
def encode(image, format, **more):
    out = io.BytesIO()
    image.save(out, format, **more)
    return out.getvalue()
samples = {}
exif = Image.Exif(); exif[0x112] = 6
plain = encode(noise(), "JPEG", quality=90)
def s(key, data, text="a dog", ext="jpg", **more):
    samples[key] = (data, text, ext, more)
s("clean", plain)
s("turned", encode(noise(), "JPEG", exif=exif))
s("cmyk", encode(noise("CMYK"), "JPEG"))
s("grey", encode(noise("L"), "JPEG"))
s("alpha", encode(noise("RGBA"), "PNG"), ext="png")
s("alpha-webp", encode(noise("RGBA"), "WEBP", lossless=True), ext="webp")
s("deep", encode(Image.frombytes("I;16", (96, 80), random.randbytes(2 * 96 * 80)), "PNG"), ext="png")
s("animated", encode(noise().convert("P"), "GIF", save_all=True, append_images=[noise().convert("P")]), ext="gif")
s("animated-webp", encode(noise(), "WEBP", save_all=True, append_images=[noise()]), ext="webp")
s("animated-png", encode(noise(), "PNG", save_all=True, append_images=[noise()]), ext="png")
s("pages", encode(noise(), "TIFF", save_all=True, append_images=[noise()]), ext="tiff")
s("tiff-cmyk", encode(noise("CMYK"), "TIFF"), ext="tif")
s("named-wrong", encode(noise(), "PNG"))
s("small", encode(noise(size=(40, 200)), "JPEG"))
s("banner", encode(noise(size=(700, 70)), "JPEG"))
s("blank", encode(Image.new("RGB", (90, 90), (200, 200, 200)), "PNG"), ext="png")
s("profile", encode(noise(), "JPEG", icc_profile=b"\0" * 128 + b"Adobe RGB (1998)"))
s("cut", encode(noise(size=(300, 300)), "JPEG")[:9000])
s("cut-png", encode(noise(size=(300, 300)), "PNG")[:9000], ext="png")
broken = bytearray(encode(noise(), "PNG"))
for at in range(len(broken) // 2, len(broken) // 2 + 40):
    broken[at] ^= 0x5a
s("broken", bytes(broken), ext="png")
s("page", b"<html>404</html>")
s("avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", ext="avif")
s("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
s("psd", b"8BPS\0\x01" + b"\0" * 40)
s("no-image", None)
s("no-text", encode(noise(), "JPEG"), None)
s("empty-text", encode(noise(), "JPEG"), " \n")
s("latin", encode(noise(), "JPEG"), b"caf\xe9")
s("lost", encode(noise(), "JPEG"), "caf\ufffd")
s("mojibake", encode(noise(), "JPEG"), "é".encode().decode("latin-1") + "clair")
s("markup", encode(noise(), "JPEG"), "a <b>dog</b>")
s("address", encode(noise(), "JPEG"), "https://example.com/a.jpg")
s("twice", encode(noise(), "JPEG"), "a dog\na cat\na dog")
s("long", encode(noise(), "JPEG"), " ".join(["word"] * 60))
s("double", plain)
s("double-image", plain, "another text")
s("two-images", encode(noise(), "JPEG"), extra={"png": encode(noise(), "PNG")})
s("zero", encode(noise(), "JPEG"), extra={"cls": b""})
s("same-ext", encode(noise(), "JPEG"), extra={"JPG": b"x"})
def write(path, names, mutate=None):
    with tarfile.open(path, "w") as archive:
        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for key in names:
            data, text, ext, more = samples[key]
            if data is not None:
                add(f"{key}.{ext}", data)
            for extension, extra in more.get("extra", {}).items():
                add(f"{key}.{extension}", extra)
            if text is not None:
                add(f"{key}.txt", text if isinstance(text, bytes) else text.encode())
        if mutate:
            mutate(add, archive)
write("all.tar", samples)
def odd(add, archive):
    add("README", b"read me")
    add("__meta__/a.txt", b"m")
    add("../up.txt", b"u")
    add("bell\x07.txt", b"b")
    add("clean.cls", b"1")
write("odd.tar", ["clean", "turned"], odd)
info = tarfile.TarInfo
"#;

#[test]
fn every_kind_of_sample_has_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if python("every_kind_of_sample", folder, SAMPLES, &[]).is_none() {
        return;
    }
    let (found, summary) = findings(folder, 3, &["all.tar", "--caption-lines", "each"]);
    let expected: &[(&str, &[&str])] = &[
        ("turned", &["QF-I12"]),
        ("cmyk", &["QF-I14"]),
        ("grey", &["QF-I17"]),
        ("alpha", &["QF-I15"]),
        ("alpha-webp", &["QF-I15"]),
        ("deep", &["QF-I16", "QF-I17"]),
        ("animated", &["QF-I13"]),
        ("animated-webp", &["QF-I13"]),
        ("animated-png", &["QF-I13"]),
        ("pages", &["QF-I13"]),
        ("tiff-cmyk", &["QF-I14"]),
        ("named-wrong", &["QF-I09"]),
        ("small", &["QF-I10", "QF-I11"]),
        ("banner", &["QF-I11"]),
        ("blank", &["QF-I18"]),
        ("profile", &["QF-I19"]),
        ("cut", &["QF-I03"]),
        ("cut-png", &["QF-I03"]),
        ("broken", &["QF-I02"]),
        ("page", &["QF-I04"]),
        ("avif", &["QF-I05"]),
        ("heic", &["QF-I06"]),
        ("psd", &["QF-I07"]),
        ("no-image", &["QF-I01"]),
        ("no-text", &["QF-C01"]),
        ("empty-text", &["QF-C02"]),
        ("latin", &["QF-C03"]),
        ("lost", &["QF-C04"]),
        ("mojibake", &["QF-C05"]),
        ("markup", &["QF-C07"]),
        ("address", &["QF-C08"]),
        ("twice", &["QF-C09"]),
        ("long", &["QF-C10"]),
        ("double", &["QF-D03"]),
        ("double-image", &["QF-D02"]),
        ("two-images", &["QF-I20"]),
        ("same-ext", &["QF-T15"]),
    ];
    for (key, codes) in expected {
        let got = found.get(*key).cloned().unwrap_or_default();
        assert_eq!(got, *codes, "{key}");
    }
    assert_eq!(found["zero.cls"], ["QF-T21"]);
    assert!(!found.contains_key("clean"), "{found:?}");
    assert_eq!(summary["samples"], 39);

    let (found, _) = findings(folder, 3, &["odd.tar"]);
    assert_eq!(found["README"], ["QF-T14"]);
    assert_eq!(found["__meta__/a.txt"], ["QF-T14"]);
    assert!(
        found["../up.txt"].contains(&"QF-T18".to_string()),
        "{found:?}"
    );
    assert_eq!(found["bell\u{7}.txt"], ["QF-T19"]);
    assert!(found["clean"].contains(&"QF-T16".to_string()), "{found:?}");
    let text = run(folder, 3, &["verify", "odd.tar"]);
    assert!(
        text.contains("QF-T19 warning: odd.tar#bell\\x07.txt@"),
        "{text}"
    );
    let quiet = run(folder, 3, &["verify", "odd.tar", "--quiet"]);
    assert!(
        !quiet.contains("odd.tar#") && quiet.contains("QF-T16"),
        "{quiet}"
    );
}

#[test]
fn shards_that_cannot_be_read_have_their_codes() {
    let test = "shards_that_cannot_be_read";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for format in ["tar", "tar.gz", "tar.zst"] {
        if photographs(test, folder, 12, format).is_none() {
            return;
        }
    }
    let tar = fs::read(folder.join("s-000000.tar")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    write("empty.tar", b"");
    write("page.tar", b"<html>404 Not Found</html>");
    write("cut.tar", &tar[..tar.len() / 2]);
    write("unmarked.tar", &tar[..tar.len() - 1024]);
    write(
        "two.tar",
        &[&tar[..], &fs::read(folder.join("s-000001.tar")).unwrap()].concat(),
    );
    write("tail.tar", &[&tar[..], &[7; 700]].concat());
    write("zeros.tar", &[0; 10240]);
    let mut bent = tar.clone();
    let listed = json_lines(&run(folder, 0, &["ls", "s-000000.tar", "--json"]));
    let fifth = listed[4]["offset_bytes"].as_u64().unwrap() as usize;
    bent[fifth + 3] ^= 0x40;
    write("bent.tar", &bent);
    let gz = fs::read(folder.join("s-000000.tar.gz")).unwrap();
    write("cut.tar.gz", &gz[..gz.len() - 300]);
    let mut flipped = gz.clone();
    let middle = gz.len() - 6;
    flipped[middle] ^= 1;
    write("crc.tar.gz", &flipped);
    write("tail.tar.gz", &[&gz[..], b"garbage garbage"].concat());
    let zst = fs::read(folder.join("s-000000.tar.zst")).unwrap();
    write("cut.tar.zst", &zst[..zst.len() / 2]);
    write("really-gz.tar", &gz);
    write("bad.arrow", &[&[0xff; 4][..], &[9; 300]].concat());
    let check = |name: &str, exit: i32, code: &str| {
        let (found, _) = findings(folder, exit, &[name]);
        let codes: Vec<&String> = found.values().flatten().collect();
        assert!(
            codes.iter().any(|found| *found == code),
            "{name}: {codes:?}, not {code}"
        );
    };
    check("empty.tar", 1, "QF-T02");
    check("page.tar", 1, "QF-T03");
    check("cut.tar", 3, "QF-T04");
    check("unmarked.tar", 3, "QF-T08");
    check("two.tar", 3, "QF-T09");
    check("tail.tar", 3, "QF-T10");
    check("zeros.tar", 3, "QF-T13");
    check("bent.tar", 3, "QF-T05");
    check("cut.tar.gz", 3, "QF-T04");
    check("crc.tar.gz", 3, "QF-T06");
    check("tail.tar.gz", 3, "QF-T11");
    check("cut.tar.zst", 3, "QF-T04");
    check("really-gz.tar", 3, "QF-T12");
    check("bad.arrow", 1, "QF-A02");
    // The next shard is checked all the same.
    let (_, summary) = findings(folder, 3, &["empty.tar", "s-000000.tar"]);
    assert_eq!(
        (&summary["unreadable_shards"], &summary["samples"]),
        (&1.into(), &10.into())
    );
}

#[test]
fn indices_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("indices_are_compared", folder, 25, "tar").is_none() {
        return;
    }
    let codes = |arguments: &[&str], exit| {
        let (found, _) = findings(folder, exit, arguments);
        let codes = found.into_values().flatten();
        codes
            .filter(|code| code.starts_with("QF-X"))
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(&["s-*.tar"], 0), [""; 0]);
    fs::remove_file(folder.join("s-000002.tar.qfidx")).unwrap();
    assert_eq!(codes(&["s-*.tar"], 0), ["QF-X04"]);
    // A pixel's byte in the middle, where the fingerprint does not look.
    let path = folder.join("s-000001.tar");
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.len() / 4;
    bytes[place] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(codes(&["s-000001.tar"], 3).contains(&"QF-X02".to_string()));
    fs::write(folder.join("s-000000.tar.qfidx"), b"not an index").unwrap();
    assert!(codes(&["s-000000.tar"], 3).contains(&"QF-X01".to_string()));
}

/// A shard that was saved by `datasets` with paths alone, and one with nulls.
#[test]
fn rows_of_datasets() {
    let script = r#"
import datasets
features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "caption": datasets.Value("string")})
photo = open("pairs/000000.jpg", "rb").read()
rows = {"image": [{"bytes": photo, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": photo, "path": "c.jpg"}], "caption": ["x", "y", None]}
datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
datasets.Dataset.from_dict({"number": [1, 2]}).save_to_disk("numbers")
"#;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("rows_of_datasets", folder, 1, "tar").is_none()
        || python("rows_of_datasets", folder, script, &[]).is_none()
    {
        return;
    }
    let (found, summary) = findings(folder, 3, &["saved/*.arrow"]);
    let all: Vec<&String> = found.values().flatten().collect();
    for code in ["QF-A04", "QF-A05"] {
        assert!(all.iter().any(|found| *found == code), "{code}: {all:?}");
    }
    assert_eq!(
        (&summary["samples"], &summary["good_samples"]),
        (&3.into(), &1.into())
    );
    let (found, _) = findings(folder, 1, &["numbers/*.arrow"]);
    assert_eq!(found["-"], ["QF-A01"]);
}

const NEAR: &str = r#"
import io, tarfile
from PIL import Image
def jpeg(image, quality):
    out = io.BytesIO(); image.save(out, "JPEG", quality=quality); return out.getvalue()
with tarfile.open("near.tar", "w") as archive:
    def add(name, data):
        info = tarfile.TarInfo(name); info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    for n in range(12):
        image = Image.open(f"pairs/{n:06}.jpg").convert("RGB")
        add(f"a{n}.jpg", jpeg(image, 92)); add(f"a{n}.txt", b"one")
    for n in range(6):
        image = Image.open(f"pairs/{n:06}.jpg").convert("RGB")
        image = image.resize((image.width // 2, image.height // 2), Image.LANCZOS)
        add(f"b{n}.jpg", jpeg(image, 60)); add(f"b{n}.txt", b"two")
"#;

/// Photographs at half the size and another quality are near doubles; other photographs are not.
#[test]
fn near_doubles_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("near_doubles", folder, 12, "tar").is_none()
        || python("near_doubles", folder, NEAR, &[]).is_none()
    {
        return;
    }
    let text = run(folder, 0, &["verify", "near.tar", "--near", "8", "--json"]);
    let lines = json_lines(&text);
    let mut pairs: Vec<(String, bool)> = lines
        .iter()
        .filter(|line| line["code"] == "QF-D04")
        .map(|line| {
            let key = line["key"].as_str().unwrap().to_string();
            let twin = key.replace('b', "a");
            (
                key,
                line["message"]
                    .as_str()
                    .unwrap()
                    .contains(&format!("near.tar#{twin}@")),
            )
        })
        .collect();
    pairs.sort();
    let expected: Vec<(String, bool)> = (0..6).map(|n| (format!("b{n}"), true)).collect();
    assert_eq!(pairs, expected);
}

#[test]
fn repair_leaves_out_what_is_bad_and_nothing_else() {
    let test = "repair_leaves_out";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 12, "tar").is_none()
        || python(test, folder, SAMPLES, &[]).is_none()
    {
        return;
    }
    let tar = fs::read(folder.join("s-000000.tar")).unwrap();
    fs::write(folder.join("cut.tar"), &tar[..tar.len() / 2]).unwrap();
    let arguments = [
        "verify",
        "all.tar",
        "cut.tar",
        "odd.tar",
        "--repair",
        "clean",
        "--json",
        "--caption-lines",
        "each",
    ];
    let lines = json_lines(&run(folder, 3, &arguments));
    let summary = lines.last().unwrap();
    let repaired = &summary["repair"];
    assert_eq!(repaired["cut_shards"].as_array().unwrap().len(), 1);
    // Errors and exact doubles are gone, warnings stay.
    let (found, again) = findings(folder, 3, &["clean/*.tar", "--caption-lines", "each"]);
    assert_eq!(again["errors"], 0, "{found:?}");
    assert!(!found.values().flatten().any(|code| code == "QF-D03"));
    let good = summary["good_samples"].as_u64().unwrap();
    let doubles = summary["findings"]["QF-D03"].as_u64().unwrap();
    assert_eq!(again["samples"].as_u64(), Some(good - doubles));
    assert_eq!(again["samples"], repaired["samples"]);
    let listed = |shard: &str, exit| run(folder, exit, &["ls", shard]);
    let (before, after) = (listed("all.tar", 0), listed("clean/all.tar", 0));
    assert!(
        before.contains("cut.jpg") && !after.contains("cut.jpg"),
        "{after}"
    );
    assert!(
        after.contains("two-images.png") && after.contains("small.jpg"),
        "{after}"
    );
    let message = complaint(folder, 1, &arguments);
    assert!(message.contains("exists"), "{message}");
}

#[test]
fn codes_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let text = run(folder.path(), 0, &["verify", "--explain", "qf-t03"]);
    assert!(
        text.starts_with("QF-T03 (error): neither tar nor Arrow"),
        "{text}"
    );
    complaint(folder.path(), 2, &["verify", "--explain", "QF-Z9"]);
    complaint(folder.path(), 2, &["verify"]);
}

/// The EXIF orientations of others' photographs, all eight of them.
#[test]
fn orientations_are_noted() {
    let Some(photos) = test_data::find("orientations_are_noted", "data/photos") else {
        return;
    };
    let script = r#"
import io, pathlib, sys, tarfile
from PIL import Image
turned = 0
with tarfile.open("photos.tar", "w") as archive:
    for n, path in enumerate(sorted(p for p in pathlib.Path(sys.argv[1]).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))):
        turned += Image.open(path).getexif().get(0x112, 1) not in (0, 1)
        archive.add(path, f"{n:03}.jpg")
        info = tarfile.TarInfo(f"{n:03}.txt"); info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
print(turned)
"#;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(turned) = python(
        "orientations_are_noted",
        folder,
        script,
        &[photos.to_str().unwrap()],
    ) else {
        return;
    };
    let turned: u64 = turned.trim().parse().unwrap();
    assert!(turned >= 14, "{turned}");
    let text = crate::qfdata(folder, &["verify", "photos.tar", "--json"]);
    let lines = json_lines(&String::from_utf8(text.stdout).unwrap());
    assert_eq!(lines.last().unwrap()["findings"]["QF-I12"], turned);
}
