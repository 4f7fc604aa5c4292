//! Azurite, Microsoft's own stand-in for Azure's blobs, from npm.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::test_data::{self, python};

const VERSION: &str = "azurite@3.35.0";

/// The longest that npm may take.
const INSTALL: Duration = Duration::from_secs(180);

/// Its program, installed where it is missing; `None` after saying why not.
fn program() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/azurite");
    let program = folder.join("node_modules/azurite/dist/src/blob/main.js");
    if program.exists() {
        return Some(program);
    }
    let skip = |why: &str| {
        test_data::skip("azure", why);
        None
    };
    std::fs::create_dir_all(&folder).unwrap();
    let npm = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(["--fetch-retries", "1", "--prefix"])
        .args([folder.as_os_str(), VERSION.as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut npm) = npm else {
        return skip("there is no npm");
    };
    let start = Instant::now();
    while npm.try_wait().unwrap().is_none() {
        if start.elapsed() > INSTALL {
            let _ = npm.kill();
            let _ = npm.wait();
            return skip("npm takes too long");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    match program.exists() {
        true => Some(program),
        false => skip("npm cannot install azurite here"),
    }
}

/// A server with an empty container `shards`, until it is dropped.
pub(crate) struct Azurite {
    process: Child,
    python: PathBuf,
    url: String,
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Azurite {
    /// `None` after saying why `test` cannot have one.
    pub(crate) fn start(test: &str) -> Option<Azurite> {
        let (python, program) = (python(test)?, program()?);
        let Some((process, url)) = spawn(&program) else {
            test_data::skip("azure", "azurite does not start here");
            return None;
        };
        let azurite = Azurite {
            process,
            python,
            url,
        };
        azurite.run(&["create"]);
        Some(azurite)
    }

    /// The settings of a program that uses it.
    pub(crate) fn env(&self) -> [(&'static str, String); 4] {
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
            ("AZURE_STORAGE_ENDPOINT", format!("{}/{ACCOUNT}", self.url)),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Puts a file into the container.
    pub(crate) fn put(&self, name: &str, file: &Path) {
        self.run(&["put", name, file.to_str().unwrap()]);
    }

    /// Names of all its blobs, with their SHA-256.
    pub(crate) fn blobs(&self) -> BTreeMap<String, String> {
        let listed = self.run(&["blobs"]);
        let pair = |line: &str| {
            let (name, digest) = line.split_once(' ').unwrap();
            (name.to_owned(), digest.to_owned())
        };
        listed.lines().map(pair).collect()
    }

    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new(&self.python);
        command.args(["-c", CLIENT, &self.url, KEY]).args(words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn spawn(program: &Path) -> Option<(Child, String)> {
    let mut server = Command::new("node")
        .arg(program)
        .args(["--inMemoryPersistence", "--blobPort", "0"])
        .args(["--skipApiVersionCheck", "--disableTelemetry"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let url = loop {
        let Some(Ok(line)) = lines.next() else {
            let _ = server.kill();
            let _ = server.wait();
            return None;
        };
        if let Some((_, url)) = line.split_once("listens on ") {
            break url.trim().to_string();
        }
    };
    // Its log must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((server, url))
}

/// Requests of the container `shards`, signed as Azure's documentation says. `blobs` prints the names
/// of all its blobs with their SHA-256, a line each.
const CLIENT: &str = r#"
import base64, email.utils, hashlib, hmac, re, sys, urllib.request
url, key, verb = sys.argv[1], base64.b64decode(sys.argv[2]), sys.argv[3]
def ask(method, path, body=b"", query="", **headers):
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06", **headers}
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    pairs = sorted(query.split("&")) if query else []
    resource = f"/devstoreaccount1/devstoreaccount1{path}" + "".join("\n" + pair.replace("=", ":") for pair in pairs)
    text = f"{method}\n\n\n{len(body) or ''}\n\n\n\n\n\n\n\n\n{lines}{resource}"
    mac = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    address = f"{url}/devstoreaccount1{path}" + (f"?{query}" if query else "")
    data = body if method == "PUT" else None
    request = urllib.request.Request(address, data=data, method=method, headers=headers)
    request.add_header("Authorization", f"SharedKey devstoreaccount1:{mac}")
    if data is not None:
        request.add_header("Content-Type", "")
    return urllib.request.urlopen(request).read()
if verb == "create":
    ask("PUT", "/shards", query="restype=container")
elif verb == "put":
    with open(sys.argv[5], "rb") as file:
        ask("PUT", f"/shards/{sys.argv[4]}", file.read(), **{"x-ms-blob-type": "BlockBlob"})
else:
    listing = ask("GET", "/shards", query="restype=container&comp=list").decode()
    for name in re.findall("<Name>(.*?)</Name>", listing):
        print(name, hashlib.sha256(ask("GET", f"/shards/{name}")).hexdigest())
"#;

const ACCOUNT: &str = "devstoreaccount1";

/// That every Azurite has.
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
