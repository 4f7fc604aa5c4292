//! Azurite, Microsoft's own stand-in for Azure's blobs, from npm.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qf_pipeline::index::{Found, ShardIndex};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;

use crate::loader::{config, run, write_shards};
use crate::test_data::{self, python};
use crate::{options, resolve};

const VERSION: &str = "azurite@3.35.0";

/// The longest that npm may take.
const INSTALL: Duration = Duration::from_secs(180);

/// Azurite's program, installed where it is missing; `None` after saying why not.
fn azurite() -> Option<PathBuf> {
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

struct Azurite(Child);

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it and returns its endpoint.
fn start(program: &Path) -> Option<(Azurite, String)> {
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
    let server = Azurite(server);
    let endpoint = loop {
        let line = lines.next()?.ok()?;
        if let Some((_, endpoint)) = line.split_once("listens on ") {
            break endpoint.trim().to_string();
        }
    };
    // Its log must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((server, endpoint))
}

/// Puts files into the container `shards`, signed as Azure's documentation says.
const UPLOAD: &str = r#"
import base64, email.utils, hashlib, hmac, os, sys, urllib.request
endpoint, key = sys.argv[1], base64.b64decode(sys.argv[2])
def put(path, body, query="", **headers):
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06", **headers}
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    resource = f"/devstoreaccount1/devstoreaccount1{path}" + (f"\n{query.replace('=', ':')}" if query else "")
    text = f"PUT\n\n\n{len(body) or ''}\n\n\n\n\n\n\n\n\n{lines}{resource}"
    mac = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    url = f"{endpoint}/devstoreaccount1{path}" + (f"?{query}" if query else "")
    request = urllib.request.Request(url, data=body, method="PUT", headers=headers)
    request.add_header("Authorization", f"SharedKey devstoreaccount1:{mac}")
    request.add_header("Content-Type", "")
    urllib.request.urlopen(request)
put("/shards", b"", "restype=container")
for file in sys.argv[3:]:
    name, path = file.split("=", 1)
    put(f"/shards/{name}", open(path, "rb").read(), **{"x-ms-blob-type": "BlockBlob"})
"#;

/// The account that every Azurite has.
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

#[test]
fn azurite_lists_and_reads() {
    let (Some(python), Some(program)) = (python("azurite_lists_and_reads"), azurite()) else {
        return;
    };
    let Some((_server, endpoint)) = start(&program) else {
        test_data::skip("azure", "azurite does not start here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let local = write_shards(folder.path(), ShardFormat::Tar);
    let mut uploads = Vec::new();
    for number in 0..3 {
        for ending in ["tar", "tar.qfidx"] {
            let path = folder.path().join(format!("s-{number}.{ending}"));
            uploads.push(format!("p/s-{number}.{ending}={}", path.display()));
        }
    }
    let other = folder.path().join("s-0.tar");
    uploads.push(format!("d//x.tar={}", other.display()));
    let output = Command::new(python)
        .args(["-c", UPLOAD, &endpoint, KEY])
        .args(&uploads)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let endpoint = format!("{endpoint}/devstoreaccount1");
    let pair = |(name, value): (&str, &str)| (name.to_string(), value.to_string());
    let options = RemoteOptions {
        env: [
            ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1"),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
            ("AZURE_STORAGE_ENDPOINT", &endpoint),
            ("AZURE_ALLOW_HTTP", "true"),
        ]
        .map(pair)
        .to_vec(),
        ..options()
    };
    let expected = run(config(ShuffleMode::Full), &local, None);
    for spec in [
        "az://shards/p/s-*.tar",
        "az://shards/p/s-{0..2}.tar",
        "az://shards/p/",
    ] {
        let remote = resolve(spec, &options).unwrap();
        assert!(
            run(config(ShuffleMode::Full), &remote, None) == expected,
            "{spec}"
        );
    }
    // Beside a blob that is not there; empty segments of names.
    let remote = resolve("az://shards/d//*.tar", &options).unwrap();
    assert_eq!(remote[0].name.as_ref(), "az://shards/d//x.tar");
    let found = ShardIndex::find(&remote[0], &Stop::default()).unwrap();
    assert_eq!(found, Found::Absent);
    // The same but for the state, which knows the shard's name.
    let batches = |shards: &[ShardLocation]| -> Vec<_> {
        let seen = run(config(ShuffleMode::Shards), shards, None);
        seen.into_iter()
            .map(|(keys, pixels, _)| (keys, pixels))
            .collect()
    };
    assert!(batches(&remote) == batches(&local[..1]));
    let message = resolve("az://shards/q/*.tar", &options).unwrap_err();
    assert!(
        message.contains("nothing is below az://shards/q/"),
        "{message}"
    );
}
