use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;

use crate::loader::{config, run, write_shards};
use crate::test_data::python;
use crate::{bytes, one, options, read, resolve, PART};

/// Serves S3 with a bucket of the given keys, prints its port, and ends with its input.
const SERVE: &str = r#"
import sys
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                  aws_access_key_id="key", aws_secret_access_key="secret")
s3.create_bucket(Bucket="bucket")
content = open(sys.argv[1], "rb").read()
for key in sys.argv[2:]:
    s3.put_object(Bucket="bucket", Key=key, Body=content)
print(port, flush=True)
sys.stdin.read()
"#;

struct Moto {
    server: Child,
    address: SocketAddr,
}

impl Moto {
    fn start(python: &Path, content: &[u8], keys: &[&str]) -> Moto {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let mut server = Command::new(python)
            .args(["-W", "ignore", "-c", SERVE])
            .arg(file.path())
            .args(keys)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let mut port = String::new();
        BufReader::new(server.stdout.as_mut().unwrap())
            .read_line(&mut port)
            .unwrap();
        let Ok(port) = port.trim().parse::<u16>() else {
            let _ = server.kill();
            let output = server.wait_with_output().unwrap();
            panic!(
                "moto does not start: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        // Its log is of no use, and must not fill the pipe.
        let mut log = server.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Moto {
            server,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn with(address: SocketAddr, credentials: &[(&str, &str)]) -> RemoteOptions {
    let endpoint = format!("http://{address}");
    let common = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let env = common.iter().chain(credentials);
    RemoteOptions {
        env: env
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        ..options()
    }
}

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "key"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
];

/// Passes connections on to a server, and cuts each after as many bytes of its answers as the
/// script says.
fn cutting_proxy(server: SocketAddr, script: &[usize]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(Mutex::new(VecDeque::from(script.to_vec())));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(upstream)) = (client, TcpStream::connect(server)) else {
                return;
            };
            let limit = script.lock().unwrap().pop_front().unwrap_or(usize::MAX);
            let (mut requests, mut up) =
                (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut requests, &mut up));
            std::thread::spawn(move || {
                let mut client = client;
                let _ = std::io::copy(&mut (&upstream).take(limit as u64), &mut client);
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = upstream.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

/// Resolving `spec` fails with these words.
fn refuses(spec: &str, options: &RemoteOptions, parts: &[&str]) {
    let message = resolve(spec, options).unwrap_err();
    assert!(
        parts.iter().all(|part| message.contains(part)),
        "{spec}: {message}"
    );
}

/// Keys and buckets that are not there.
fn refuses_what_is_not_there(options: &RemoteOptions) {
    refuses(
        "s3://bucket/p/x-{000..003}.tar",
        options,
        &["s3://bucket/p/x-003.tar", "404", "check the name"],
    );
    refuses(
        "s3://nowhere/x.tar",
        options,
        &["s3://nowhere/x.tar", "404"],
    );
    refuses(
        "s3://nowhere/*.tar",
        options,
        &["s3://nowhere/", "bucket does not exist"],
    );
    refuses(
        "s3://bucket/q/",
        options,
        &["nothing is below s3://bucket/q/"],
    );
    refuses(
        "s3://bucket/p/w*.tar",
        options,
        &["nothing is below s3://bucket/p/w"],
    );
    refuses(
        "s3://bucket/p/n*.tar",
        options,
        &["1 object,", "none that matches"],
    );
    refuses("s3://bucket", options, &["whole bucket"]);
}

#[test]
fn listings_ranges_and_errors() {
    let Some(python) = python("listings_ranges_and_errors") else {
        return;
    };
    let content = bytes(5 * PART + 3);
    let keys = [
        "p/x-002.tar",
        "p/x-000.tar",
        "p/x-001.tar",
        "p/x-000.tar.qfidx",
        "p/y.tar.zst",
        "p/notes.txt",
        "p/deep/z.arrow",
        "p/odd name #1+ä.tar",
    ];
    let moto = Moto::start(&python, &content, &keys);
    let options = with(moto.address, &KEYS);
    let check = |spec: &str, expected: &[&str]| {
        let shards = resolve(spec, &options).unwrap();
        let names: Vec<_> = shards
            .iter()
            .map(|shard| shard.name.trim_start_matches("s3://bucket/p/"))
            .collect();
        assert_eq!(names, expected, "{spec}");
        for shard in &shards {
            let size = shard.size(&Stop::default()).unwrap();
            assert_eq!(size, Some(content.len() as u64));
            assert!(read(shard).unwrap() == content, "{}", shard.name);
        }
    };
    let numbered = ["x-000.tar", "x-001.tar", "x-002.tar"];
    check("s3://bucket/p/x-*.tar", &numbered);
    check("s3://bucket/p/x-*", &numbered);
    check("s3://bucket/p/x-00[01]*.tar", &numbered[..2]);
    check("s3://bucket/p/x-{002..002}.tar", &numbered[2..]);
    check("s3://bucket/p/{y,x-000}.tar*", &["y.tar.zst", "x-000.tar"]);
    check("s3://bucket/*/x-001.tar", &numbered[1..2]);
    check("s3://bucket/p/odd name #1+ä.tar", &["odd name #1+ä.tar"]);
    let all = [
        "deep/z.arrow",
        "odd name #1+ä.tar",
        "x-000.tar",
        "x-001.tar",
        "x-002.tar",
        "y.tar.zst",
    ];
    check("s3://bucket/p/", &all);
    check("s3://bucket/", &all);
    // The index is found whether the shard was listed or named.
    for spec in ["s3://bucket/p/x-000.tar", "s3://bucket/p/x-000*"] {
        let sidecar = one(spec, &options).sidecar(".qfidx");
        assert_eq!(sidecar.name.as_ref(), "s3://bucket/p/x-000.tar.qfidx");
        assert!(read(&sidecar).unwrap() == content);
        assert!(read(&sidecar.sidecar(".qfidx")).is_err());
    }
    refuses_what_is_not_there(&options);
    let anonymous = with(moto.address, &[("AWS_SKIP_SIGNATURE", "true")]);
    assert_eq!(
        resolve("s3://bucket/p/x-*.tar", &anonymous).unwrap().len(),
        3
    );
    // A machine without a role, and no credentials.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let nothing = with(
        moto.address,
        &[("AWS_METADATA_ENDPOINT", &format!("http://{closed}"))],
    );
    let hint = [
        "s3://bucket/p/x-000.tar",
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
    ];
    refuses("s3://bucket/p/x-000.tar", &nothing, &hint);
}

#[test]
fn cut_connections_cost_no_byte() {
    let Some(python) = python("cut_connections_cost_no_byte") else {
        return;
    };
    let content = bytes(20 * PART);
    let moto = Moto::start(&python, &content, &["x-0.tar", "x-1.tar"]);
    // The first connection lists; answers begin with some 500 bytes of head.
    let script = [usize::MAX, 10, 700, 5000, PART + 200, 40_000, 0, 1000];
    let options = with(cutting_proxy(moto.address, &script), &KEYS);
    for shard in resolve("s3://bucket/x-*.tar", &options).unwrap() {
        assert!(read(&shard).unwrap() == content, "{}", shard.name);
    }
}

/// Batches from S3, through connections that break, are those of the files.
#[test]
fn a_loader_reads_what_lies_in_files() {
    let Some(python) = python("a_loader_reads_what_lies_in_files") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), ShardFormat::TarZst);
    let names = ["x-0.tar.zst", "x-1.tar.zst"];
    let content = std::fs::read(folder.path().join("s-2.tar.zst")).unwrap();
    for name in names {
        std::fs::write(folder.path().join(name), &content).unwrap();
    }
    let moto = Moto::start(&python, &content, &names);
    let local = resolve(
        &format!("{}/x-*", folder.path().display()),
        &RemoteOptions::default(),
    );
    let script = [usize::MAX, 10, 700, 5000, usize::MAX, PART + 200, 900];
    let options = with(cutting_proxy(moto.address, &script), &KEYS);
    let remote = resolve("s3://bucket/x-*.tar.zst", &options).unwrap();
    let config = config(ShuffleMode::Buffer);
    let expected = run(config.clone(), &local.unwrap(), None);
    assert_eq!(expected.len(), 2 * 12);
    assert!(run(config, &remote, None) == expected);
}
