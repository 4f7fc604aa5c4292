//! `qfdata shard` into an object store: moto's S3, Microsoft's Azurite.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{json, Value};

use crate::azurite::Azurite;
use crate::bin;
use crate::shard_cli::{image, pairs};
use crate::test_data::python;

/// moto's S3 with an empty bucket; prints its port, then, for each line on standard input, what the bucket
/// holds: names and contents. The second port is the same store for Google's XML interface, which differs in
/// the signature alone.
const S3: &str = r#"
import boto3, hashlib, json, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from werkzeug.serving import make_server
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
backend = DomainDispatcherApplication(create_backend_app)
def google(environ, start_response):
    return backend({**environ, "HTTP_AUTHORIZATION": SIGNED}, start_response)
second = make_server("127.0.0.1", 0, google, threaded=True)
threading.Thread(target=second.serve_forever, daemon=True).start()
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                  aws_access_key_id="key", aws_secret_access_key="secret")
s3.create_bucket(Bucket="bkt")
print(port, second.server_port, flush=True)
for line in sys.stdin:
    found = {}
    for item in s3.list_objects_v2(Bucket="bkt").get("Contents", []):
        try:
            content = s3.get_object(Bucket="bkt", Key=item["Key"])["Body"].read()
        except s3.exceptions.NoSuchKey:
            continue  # removed since it was listed
        found[item["Key"]] = hashlib.sha256(content).hexdigest()
    uploads = len(s3.list_multipart_uploads(Bucket="bkt").get("Uploads", []))
    print(json.dumps([found, uploads]), flush=True)
"#;

pub(crate) struct Moto {
    process: Child,
    lines: BufReader<std::process::ChildStdout>,
    endpoint: String,
    google: String,
}

impl Moto {
    pub(crate) fn start(python: &Path) -> Moto {
        let mut process = Command::new(python)
            .args(["-c", S3])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let mut ports = String::new();
        lines.read_line(&mut ports).unwrap();
        let (port, second) = ports.trim().split_once(' ').unwrap();
        Moto {
            process,
            lines,
            endpoint: format!("http://127.0.0.1:{port}"),
            google: format!("http://127.0.0.1:{second}"),
        }
    }

    /// Names and checksums of the objects, and uploads that are not finished.
    pub(crate) fn objects(&mut self) -> (serde_json::Map<String, Value>, u64) {
        use std::io::Write;
        let mut stdin = self.process.stdin.as_ref().unwrap();
        stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let found: Value = serde_json::from_str(&line).unwrap();
        (
            found[0].as_object().unwrap().clone(),
            found[1].as_u64().unwrap(),
        )
    }

    fn command(&self, folder: &Path, out: &str, options: &[&str]) -> Command {
        let mut command = Command::new(bin::qfdata());
        command
            .current_dir(folder)
            .args(["shard", "pairs", "--out", out, "--json", "--on-bad", "skip"])
            .args(options);
        self.connect(&mut command);
        command
    }

    /// The environment of a program that takes it for Google's.
    fn google_env(&self) -> [(&'static str, String); 3] {
        let key = json!({
            "gcs_base_url": self.google, "disable_oauth": true,
            "client_email": "", "private_key": "", "private_key_id": "",
        });
        [
            ("GOOGLE_SERVICE_ACCOUNT_KEY", key.to_string()),
            ("GOOGLE_BASE_URL", self.google.clone()),
            ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    fn env(&self) -> [(&'static str, String); 6] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ENDPOINT", self.endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ]
    }

    /// Names and SHA-256 of the objects, where no upload is unfinished.
    fn whole_objects(&mut self) -> BTreeMap<String, String> {
        let (objects, uploads) = self.objects();
        assert_eq!(uploads, 0);
        let digest = |(name, digest): (String, Value)| (name, digest.as_str().unwrap().to_owned());
        objects.into_iter().map(digest).collect()
    }

    /// Lets a program use it.
    pub(crate) fn connect(&self, command: &mut Command) {
        command
            .envs(self.env())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn succeeds(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Two of 20 MB: their shard goes in parts.
fn large_pairs(folder: &Path) {
    for name in ["large0", "large1"] {
        let mut large = image(image::ImageFormat::Jpeg, 77);
        let mut state = 5u32;
        large.resize_with(20 << 20, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        std::fs::write(folder.join(format!("{name}.jpg")), large).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), name).unwrap();
    }
}

#[test]
fn a_bucket_gets_the_files_of_a_folder() {
    let Some(python) = python("a_bucket") else {
        return;
    };
    let mut moto = Moto::start(&python);
    let env = moto.env();
    gets_the_files_of_a_folder("s3://bkt", &env, &python, &mut || moto.whole_objects());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"), 1);
    // A store that does not let us in.
    let mut command = moto.command(folder, "s3://nobody/x/photos", &[]);
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("s3://nobody/x/photos"), "{message}");
}

#[test]
fn a_container_of_azure_gets_the_files_of_a_folder() {
    let test = "a_container_of_azure";
    let (Some(azurite), Some(python)) = (Azurite::start(test), python(test)) else {
        return;
    };
    gets_the_files_of_a_folder("az://shards", &azurite.env(), &python, &mut || {
        azurite.blobs()
    });
    // What is not ours stays.
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.txt");
    std::fs::write(&other, "other").unwrap();
    azurite.put("sets/x/other.txt", &other);
    gets_the_files_of_a_folder("az://shards", &azurite.env(), &python, &mut || {
        let mut blobs = azurite.blobs();
        assert!(blobs.remove("sets/x/other.txt").is_some());
        blobs
    });
}

#[test]
fn a_bucket_of_google_gets_the_files_of_a_folder() {
    let Some(python) = python("a_bucket_of_google") else {
        return;
    };
    let mut moto = Moto::start(&python);
    let env = moto.google_env();
    gets_the_files_of_a_folder("gs://bkt", &env, &python, &mut || moto.whole_objects());
}

/// Writes shards to `store` and to a folder, once more without leave, and others in their place. `objects` are
/// names and SHA-256 of what the store holds.
fn gets_the_files_of_a_folder(
    store: &str,
    env: &[(&'static str, String)],
    python: &Path,
    objects: &mut dyn FnMut() -> BTreeMap<String, String>,
) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"), 9);
    large_pairs(&folder.join("pairs"));
    let shard = |out: &str, options: &[&str]| {
        let mut command = Command::new(bin::qfdata());
        command
            .current_dir(folder)
            .args(["shard", "pairs", "--out", out, "--json", "--on-bad", "skip"])
            .args(options)
            .envs(env.iter().cloned());
        command.output().unwrap()
    };
    let out = format!("{store}/sets/x/photos");
    let summary = succeeds(&shard(&out, &["--max-count", "5", "--overwrite"]));
    assert_eq!(summary["shards"], 3);
    assert_eq!(summary["files"][0], format!("{out}-000000.tar"));
    succeeds(&shard("local/photos", &["--max-count", "5"]));
    assert_eq!(objects(), digests(python, &folder.join("local"), "sets/x"));

    let output = shard(&out, &["--max-count", "5"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains(&format!("{out}-000000.tar exists already")),
        "{message}"
    );

    let summary = succeeds(&shard(&out, &["--max-count", "20", "--overwrite"]));
    assert_eq!(summary["removed_stale"], 2);
    succeeds(&shard("again/photos", &["--max-count", "20"]));
    assert_eq!(objects(), digests(python, &folder.join("again"), "sets/x"));
}

/// SHA-256 of the files of a folder, under the names that they have below `prefix`.
fn digests(python: &Path, folder: &Path, prefix: &str) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    let digest = |entry: std::fs::DirEntry| {
        assert!(entry.metadata().unwrap().len() > 0);
        let name = entry.file_name().into_string().unwrap();
        let digest = sha256(python, &entry.path());
        (format!("{prefix}/{name}"), digest)
    };
    files.map(digest).collect()
}

/// Commands that read shards say of a bucket what they say of a folder, and those that write take it as input.
#[test]
fn a_bucket_is_read_as_a_folder() {
    let Some(python) = python("a_bucket_is_read") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"), 9);
    let moto = Moto::start(&python);
    for (format, file) in [("tar", "003.txt"), ("tar.zst", "003.txt"), ("arrow", "")] {
        let options = ["--max-count", "4", "--format", format];
        let local = format!("local/{format}/photos");
        let remote = format!("s3://bkt/sets/{format}/photos");
        succeeds(&moto.command(folder, &local, &options).output().unwrap());
        succeeds(&moto.command(folder, &remote, &options).output().unwrap());
        let mut commands = vec![
            vec!["ls", "PHOTOS", "--long"],
            vec!["head", "PHOTOS", "-n", "3", "--json"],
            vec!["stats", "PHOTOS"],
            vec!["verify", "PHOTOS"],
            vec!["index", "PHOTOS", "--check"],
            vec!["view", "PHOTOS", "--out", "OUT.html"],
            vec!["convert", "PHOTOS", "--out", "OUT", "--format", "tar.gz"],
            vec!["merge", "PHOTOS", "--out", "OUT/merged.tar.zst"],
            vec!["extract", "PHOTOS", "--out", "OUT/files"],
        ];
        if !file.is_empty() {
            commands.push(vec!["cat", "PHOTOS", "--member", file]);
        }
        for command in commands {
            let run = |prefix: &str, out: &str| {
                let shards = format!("{prefix}-*.{format}");
                let words = command.iter().map(|word| match *word {
                    "PHOTOS" => shards.clone(),
                    other => other.replace("OUT", out),
                });
                let mut program = Command::new(bin::qfdata());
                program.current_dir(folder).args(words);
                moto.connect(&mut program);
                let output = program.output().unwrap();
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!message.contains("panicked"), "{command:?}: {message}");
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                (output.status.code(), text, message)
            };
            let here = run(&local, &format!("here-{format}"));
            let there = run(&remote, &format!("there-{format}"));
            assert_eq!(here.0, there.0, "{command:?}: {here:?} {there:?}");
            let plain = |text: &str| {
                let text = text.replace(&remote, &local);
                let text = text.replace(&format!("there-{format}"), &format!("here-{format}"));
                // Times differ.
                let words = text
                    .split_whitespace()
                    .filter(|word| word.parse::<f64>().is_err());
                words
                    .filter(|word| !word.contains("/s)"))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(plain(&here.1), plain(&there.1), "{command:?}: {}", there.2);
            assert!(
                here.0 != Some(1) && here.0 != Some(2),
                "{command:?}: {here:?}"
            );
        }
        for file in ["OUT/files/003.jpg", "OUT.html", "OUT/merged.tar.zst"] {
            let read = |out: &str| {
                let path = folder.join(file.replace("OUT", &format!("{out}-{format}")));
                let text = std::fs::read(&path);
                text.map(|text| text.len()).unwrap_or(0)
            };
            assert!(read("there") > 0 || format == "arrow", "{format} {file}");
        }
    }
}

fn sha256(python: &Path, file: &Path) -> String {
    let script =
        "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let output = Command::new(python)
        .args(["-c", script])
        .arg(file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_killed_run_goes_on_in_a_bucket() {
    let Some(python) = python("a_killed_run_in_a_bucket") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"), 60);
    let mut moto = Moto::start(&python);
    let options = ["--max-count", "3"];
    succeeds(
        &moto
            .command(folder, "s3://bkt/whole/s", &options)
            .output()
            .unwrap(),
    );
    let mut child = moto
        .command(folder, "s3://bkt/killed/s", &options)
        .spawn()
        .unwrap();
    loop {
        let (objects, _) = moto.objects();
        let is_shard = |name: &&String| name.starts_with("killed/") && name.ends_with(".tar");
        if objects.keys().filter(is_shard).count() >= 3 || child.try_wait().unwrap().is_some() {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let output = moto
        .command(folder, "s3://bkt/killed/s", &options)
        .output()
        .unwrap();
    if output.status.success() {
        let summary = succeeds(&output);
        assert!(summary["kept"].as_u64().unwrap() >= 1, "{summary}");
    }
    let (objects, _) = moto.objects();
    let of = |start: &str| -> Vec<(String, Value)> {
        let found = objects.iter().filter_map(|(name, digest)| {
            Some((name.strip_prefix(start)?.to_owned(), digest.clone()))
        });
        found.collect()
    };
    assert_eq!(of("killed/"), of("whole/"));
}
