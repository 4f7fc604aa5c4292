//! `view`: the page as a parser reads it, the crops as a run draws them, the server as a client meets it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::{json_lines, photographs, python, run, test_data};

/// Reads the page with Python's parser: tags closed, nothing loaded, pictures that Pillow opens.
const PARSE: &str = r#"
import base64, html.parser, io, json, re
from PIL import Image
VOID = {"meta", "img", "input", "link", "br"}
class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], {}, [], []
    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith("data:image/jpeg;base64,"), (tag, value[:60])
                image = Image.open(io.BytesIO(base64.b64decode(value.split(",", 1)[1])))
                image.load()
                self.images.append((image.size, dict(attributes).get("alt")))
    def handle_startendtag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
    def handle_endtag(self, tag):
        if tag in ("html", "p", "li", "dd", "dt", "td", "th", "tr"):
            while self.open and self.open[-1] in ("p", "li", "dd", "dt", "td", "th", "tr") and self.open[-1] != tag:
                self.open.pop()
            if self.open and self.open[-1] == tag:
                self.open.pop()
            return
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()
    def handle_data(self, data):
        self.text.append(data)
page = Page()
source = open("view.html", encoding="utf-8").read()
assert "<script" not in source and "default-src 'none'" in source
page.feed(source)
page.close()
text = re.sub(r"\s+", " ", " ".join(page.text))
print(json.dumps({"tags": page.tags, "images": page.images, "text": text}))
"#;

const EXTRA: &str = r#"
import io, tarfile
from PIL import Image
with tarfile.open("more.tar", "w") as archive:
    def add(name, data):
        info = tarfile.TarInfo(name); info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    out = io.BytesIO()
    Image.open("pairs/000003.jpg").convert("RGB").resize((320, 240)).save(out, "JPEG", quality=60)
    add("near.jpg", out.getvalue()); add("near.txt", b"<script>alert(1)</script> & a caption")
    add("page.jpg", b"<html>404</html>"); add("page.txt", b"x")
"#;

#[test]
fn the_page_shows_what_there_is() {
    let test = "the_page_shows_what_there_is";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(vocabulary) = test_data::find(test, "data/bert/vocab.txt") else {
        return;
    };
    if photographs(test, folder, 25, "tar").is_none() || python(test, folder, EXTRA, &[]).is_none()
    {
        return;
    }
    let vocabulary = vocabulary.to_str().unwrap();
    let arguments = [
        "view",
        "s-*.tar",
        "more.tar",
        "--tokenizer",
        vocabulary,
        "--caption-lines",
        "each",
    ];
    run(folder, 0, &arguments);
    let Some(parsed) = python(test, folder, PARSE, &[]) else {
        return;
    };
    let parsed: Value = serde_json::from_str(&parsed).unwrap();
    assert_eq!(parsed["tags"]["article"], 27);
    assert_eq!(parsed["tags"]["figure"], 7);
    let text = parsed["text"].as_str().unwrap();
    for what in [
        "27 samples in 4 shards",
        "<script>alert(1)</script>",
        "QF-I04",
        "tokens",
        "Nearly the same",
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
    // 26 of the sheet, 6 originals with 8 crops each, and at least the pair.
    let images = parsed["images"].as_array().unwrap();
    assert!(images.len() >= 26 + 6 * 9 + 2, "{}", images.len());
    let crops = images
        .iter()
        .filter(|image| image[0][0] == 224 && image[0][1] == 224);
    assert!(crops.count() >= 48);
    let sizes = r#"
import json
from PIL import Image
print(json.dumps([Image.open(f"pairs/{n:06}.jpg").size for n in range(25)]))
"#;
    let sizes: Vec<(f64, f64)> =
        serde_json::from_str(&python(test, folder, sizes, &[]).unwrap()).unwrap();
    for (image, (width, height)) in images.iter().zip(sizes) {
        let side = |at: usize| image[0][at].as_f64().unwrap();
        assert_eq!(side(0).max(side(1)), 256.0);
        assert!(
            (side(0) / side(1) - width / height).abs() < 0.02,
            "{image} of {width}×{height}"
        );
    }
}

/// The crops of an epoch are those that `preview` takes from the loader's batch.
#[test]
fn crops_are_those_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("crops_are_those_of_a_run", folder, 12, "tar").is_none() {
        return;
    }
    run(
        folder,
        0,
        &["view", "s-*.tar", "--crops", "12", "--seed", "7", "--quiet"],
    );
    let page = fs::read_to_string(folder.join("view.html")).unwrap();
    let section = page.split("What training sees").nth(1).expect("the crops");
    for epoch in [0, 1, 5, 7] {
        let epoch_text = epoch.to_string();
        let arguments = [
            "preview",
            "s-*.tar",
            "--seed",
            "7",
            "--epoch",
            &epoch_text,
            "--batch-size",
            "12",
            "--json",
        ];
        let batch = json_lines(&run(folder, 0, &arguments)).remove(0);
        let samples = batch["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 12);
        for sample in samples {
            let key = sample["key"].as_str().unwrap();
            let of_sample = section
                .split(&format!("<bdi>{key}</bdi>"))
                .nth(1)
                .expect(key);
            let crop = &sample["crop"];
            let mirrored = match sample["mirrored"].as_bool() {
                Some(true) => ", mirrored",
                _ => "<",
            };
            let line = format!(
                "epoch {epoch}: {}×{} at {}, {}{mirrored}",
                crop["width"], crop["height"], crop["x"], crop["y"]
            );
            let before_next = of_sample.split("<h3>").next().unwrap();
            assert!(before_next.contains(&line), "{key}: {line}");
        }
    }
}

struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(folder: &Path, shards: &[&str]) -> Served {
        let mut child = Command::new(env!("CARGO_BIN_EXE_qfdata"))
            .current_dir(folder)
            .args([&["view"], shards, &["--serve", "127.0.0.1:0"]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qfdata starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).expect("an address");
        let address = address.split('/').next().unwrap().to_string();
        Served { child, address }
    }

    /// Status and body.
    fn get(&self, path: &str, host: &str) -> (u32, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a head");
        let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
        (status, answer[head + 4..].to_vec())
    }

    fn page(&self, path: &str) -> String {
        let (status, body) = self.get(path, "localhost");
        assert_eq!(status, 200, "{path}");
        String::from_utf8(body).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn pages_are_served_and_searched() {
    let test = "pages_are_served_and_searched";
    for format in ["tar", "tar.gz"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        if photographs(test, folder, 60, format).is_none()
            || python(test, folder, EXTRA, &[]).is_none()
        {
            return;
        }
        let shards = format!("s-*.{format}");
        let mut served = Served::start(folder, &[&shards, "more.tar", "--caption-lines", "each"]);
        let mut page = String::new();
        for _ in 0..200 {
            page = served.page("/");
            if page.contains("62 samples in 7 shards") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(page.contains("62 samples in 7 shards"), "{}", &page[..600]);
        let cards = |page: &str| page.matches("<article>").count();
        assert_eq!(cards(&page), 48);
        assert!(page.contains("<a href=\"/?from=48\">next page</a>"));
        assert_eq!(cards(&served.page("/?from=48")), 14);
        // The words of captions, as grep finds them.
        let texts =
            (0..60).map(|n| fs::read_to_string(folder.join(format!("pairs/{n:06}.txt"))).unwrap());
        let dogs = texts
            .filter(|text| text.to_lowercase().contains("dog"))
            .count();
        assert!(dogs > 0);
        assert_eq!(cards(&served.page("/?words=DOG")), dogs);
        let broken = served.page("/?problem=error");
        assert!(cards(&broken) == 1 && broken.contains("page"), "{broken}");
        let marked = served.page("/?words=%3Cscript%3E");
        assert!(
            cards(&marked) == 1 && !marked.contains("<script>"),
            "{marked}"
        );
        // Pictures in their aspect, of any shard.
        for number in [0, 37, 59, 60] {
            let (status, body) = served.get(&format!("/image/{number}"), "localhost");
            assert_eq!(status, 200, "{number}");
            let image = image::load_from_memory(&body).unwrap();
            assert_eq!(image.width().max(image.height()), 256);
        }
        for (path, host, expected) in [
            ("/image/61", "localhost", 404),
            ("/image/62", "localhost", 404),
            ("/image/../../etc/passwd", "localhost", 404),
            ("/%2e%2e/etc/passwd", "localhost", 404),
            ("/", "example.com", 403),
            ("/image/0", "attacker.example:80", 403),
        ] {
            assert_eq!(served.get(path, host).0, expected, "{path} {host}");
        }
        let status = Command::new("sh")
            .args(["-c", &format!("kill -INT {}", served.child.id())])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(served.child.wait().unwrap().code(), Some(0));
    }
}
