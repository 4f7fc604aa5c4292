//! Shards on servers: odd ones, private ones, and such as are down.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::case;
use crate::bin;
use crate::test_data::python;
use crate::train_cli::{command, data, exact_metrics, fails, path, small_run, succeeds};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that ends with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Runs a Python script with a free port and more arguments.
    fn start(python: &Path, script: &Path, arguments: &[&Path]) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        Server::start_at(port, python, script, arguments)
    }

    fn start_at(port: u16, python: &Path, script: &Path, arguments: &[&Path]) -> Server {
        let process = Command::new(python)
            .arg(script)
            .arg(port.to_string())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python starts");
        let server = Server { process, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < PATIENCE,
                "{} does not start",
                script.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// `http_srv.py` of the cases, for a folder.
    fn cases(python: &Path, folder: &Path) -> Server {
        Server::start(python, &http_srv(), &[folder])
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn http_srv() -> PathBuf {
    case("http-403-index").join("../http_srv.py")
}

/// A script for [`Server::start`], in a folder of its own.
fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.py");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn order(shards: &str, more: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(bin::qfdata());
    command.args([
        "order",
        "--batch",
        "1",
        "--shuffle",
        "none",
        "--shards",
        shards,
    ]);
    command.args(more).envs(env.iter().copied());
    command
        .stdin(Stdio::null())
        .output()
        .expect("qfdata starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The keys that are listed, and what is said beside them.
fn keys(output: &Output) -> (Vec<String>, String) {
    let said = stderr(output);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let key = |line: &str| line.rsplit('#').next().unwrap().to_string();
    (text.lines().map(key).collect(), said)
}

/// What is listed of a file.
fn expected(file: &Path) -> Vec<String> {
    let (keys, _) = keys(&order(&file.display().to_string(), &[], &[]));
    assert!(!keys.is_empty());
    keys
}

#[test]
fn http_403_index() {
    let Some(python) = python("http_403_index") else {
        return;
    };
    let folder = case("http-403-index");
    let expected = expected(&folder.join("000.tar"));
    assert_eq!(expected.len(), 2);
    let text = std::fs::read_to_string(folder.join("srv.py")).unwrap();
    let text = text
        .replace("8799", "int(__import__('sys').argv[1])")
        .replace(
            "os.path.dirname(os.path.abspath(__file__))",
            "__import__('sys').argv[2]",
        );
    let (_folder, script) = script(&text);
    let server = Server::start(&python, &script, &[&folder]);
    let (found, said) = keys(&order(&server.url("b/000.tar"), &[], &[]));
    assert_eq!((found, said.as_str()), (expected.clone(), ""));
    let endpoint = server.url("");
    let env = [
        ("AWS_ENDPOINT_URL", endpoint.trim_end_matches('/')),
        ("AWS_SKIP_SIGNATURE", "true"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "x"),
    ];
    let (found, said) = keys(&order("s3://b/000.tar", &[], &env));
    assert_eq!((found, said.as_str()), (expected, ""));
}

#[test]
fn http_soft404() {
    let Some(python) = python("http_soft404") else {
        return;
    };
    let folder = case("http-403-index");
    let expected = expected(&folder.join("000.tar"));
    let server = Server::cases(&python, &folder);
    for (mode, warnings) in [
        ("plain", 0),
        ("gone", 0),
        ("s3public", 0),
        ("soft404", 1),
        ("err500", 1),
    ] {
        let start = Instant::now();
        let (found, said) = keys(&order(&server.url(&format!("{mode}/000.tar")), &[], &[]));
        assert_eq!(found, expected, "{mode}");
        assert_eq!(said.lines().count(), warnings, "{mode}: {said}");
        assert!(start.elapsed() < Duration::from_secs(20), "{mode}");
    }
}

#[test]
fn http_no_length() {
    let Some(python) = python("http_no_length") else {
        return;
    };
    let folder = case("http-403-index");
    let expected = expected(&folder.join("000.tar"));
    let server = Server::cases(&python, &folder);
    for mode in [
        "chunked",
        "startotal",
        "norange",
        "head405",
        "headforbidden",
        "noetag",
        "weak",
    ] {
        let (found, said) = keys(&order(&server.url(&format!("{mode}/000.tar")), &[], &[]));
        assert_eq!((found, said.as_str()), (expected.clone(), ""), "{mode}");
    }
}

/// Two bytes a second, then nothing.
const TRICKLE: &str = r#"
import http.server, sys, time
class H(http.server.BaseHTTPRequestHandler):
    def log_message(s, *a): pass
    def do_HEAD(s): s.do_GET()
    def do_GET(s):
        if 'hang' in s.path: time.sleep(3600)
        if s.path.endswith('.qfidx'): s.send_error(404); return
        s.send_response(200); s.send_header('Content-Length', '100000'); s.end_headers()
        for i in range(10 if s.command == 'GET' else 0):
            s.wfile.write(b'ab'); s.wfile.flush(); time.sleep(1)
        time.sleep(3600 if s.command == 'GET' else 0)
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()
"#;

#[test]
fn http_trickle() {
    let Some(python) = python("http_trickle") else {
        return;
    };
    let (_folder, script) = script(TRICKLE);
    let server = Server::start(&python, &script, &[]);
    for name in ["slow.tar", "hang.tar"] {
        let start = Instant::now();
        let output = order(&server.url(name), &["--outage-secs", "3"], &[]);
        let took = start.elapsed();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[0].contains("trying on for up to 3 s"), "{said}");
        assert!(
            lines[1].starts_with("error:") && lines[1].contains(name),
            "{said}"
        );
        assert!(took < Duration::from_secs(10), "{name}: {took:?}");
    }
}

#[test]
fn order_ignores_signal() {
    let Some(python) = python("order_ignores_signal") else {
        return;
    };
    let (_folder, script) = script(TRICKLE);
    let server = Server::start(&python, &script, &[]);
    let qfdata = bin::qfdata();
    for (name, subcommand) in [
        ("hang.tar", "order"),
        ("slow.tar", "order"),
        ("hang.tar", "profile"),
        ("slow.tar", "profile"),
        ("slow.tar", "vocab"),
    ] {
        for (signal, number) in [("-INT", 2), ("-TERM", 15)] {
            let mut command = Command::new(&qfdata);
            command.args([subcommand, "--shards", &server.url(name)]);
            if subcommand == "vocab" {
                command.args(["--out", "/dev/null/nowhere"]);
            }
            let mut child = command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(500));
            assert!(
                child.try_wait().unwrap().is_none(),
                "{subcommand} does not wait"
            );
            bin::signal(signal, &child);
            let start = Instant::now();
            let status = child.wait().unwrap();
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(2),
                "{subcommand} {name}: {took:?}"
            );
            let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
            let is_130 = status.code() == Some(130);
            assert!(
                is_130 || by_signal == Some(number),
                "{subcommand}: {status}"
            );
            assert!(is_130 || subcommand != "order", "{status}");
        }
    }
    // A pipe that nobody reads.
    let shards = case("brace-zero").join("s-*.tar").display().to_string();
    let mut child = Command::new(&qfdata)
        .args([
            "order",
            "--batch",
            "1",
            "--epochs",
            "0",
            "--stop-at",
            "100000000",
        ])
        .args(["--shards", &shards])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut listed = BufReader::with_capacity(64, child.stdout.take().unwrap());
    listed.read_line(&mut String::new()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    bin::signal("-TERM", &child);
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// moto's S3 with objects of one content.
const S3: &str = r#"
import sys, boto3
from moto.server import ThreadedMotoServer
port = int(sys.argv[1])
import moto.server, threading
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, inner = server.get_host_and_port()
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{inner}", region_name="us-east-1",
                  aws_access_key_id="key", aws_secret_access_key="secret")
s3.create_bucket(Bucket="bkt")
for key in sys.argv[3:]:
    s3.put_object(Bucket="bkt", Key=key, Body=open(sys.argv[2], "rb").read())
# Where the test expects it, once all is there.
import socket
def copy(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError: pass
listener = socket.create_server(("127.0.0.1", port))
while True:
    client, _ = listener.accept()
    upstream = socket.create_connection(("127.0.0.1", inner))
    for pair in ((client, upstream), (upstream, client)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"#;

#[test]
fn s3_double_slash() {
    let Some(python) = python("s3_double_slash") else {
        return;
    };
    let (_folder, script) = script(S3);
    let tar = case("http-403-index").join("000.tar");
    let objects = [
        "dbl//x.tar",
        "plus/a+b.tar",
        "odd/x[1].tar",
        "odd/q?.tar",
        "odd/b{x}.tar",
        "odd/r{0..1}.tar",
        "a/b/../c.tar",
    ];
    let mut arguments: Vec<&Path> = vec![&tar];
    arguments.extend(objects.iter().map(Path::new));
    let server = Server::start(&python, &script, &arguments);
    let endpoint = server.url("");
    let env = [
        ("AWS_ENDPOINT_URL", endpoint.trim_end_matches('/')),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let expected = expected(&tar);
    for (spec, shards, warnings) in [
        ("s3://bkt/*/a*.tar", 1, 0),
        ("s3://bkt/dbl//x.tar", 1, 0),
        ("s3://bkt/dbl//", 1, 0),
        ("s3://bkt/dbl//*.tar", 1, 0),
        ("s3://bkt/{dbl/,plus}/*.tar", 2, 0),
        ("s3://bkt/odd/x[1].tar", 1, 0),
        ("s3://bkt/odd/q?.tar", 1, 0),
        ("s3://bkt/odd/b{x}.tar", 1, 0),
        ("s3://bkt/odd/r{0..1}.tar", 1, 0),
        // All that a request can name, and a word on the other.
        ("s3://bkt/", 6, 1),
    ] {
        let (found, said) = keys(&order(spec, &[], &env));
        let expected = std::iter::repeat_n(&expected, shards).flatten();
        assert!(found.iter().eq(expected), "{spec}: {found:?}");
        assert_eq!(said.lines().count(), warnings, "{spec}: {said}");
    }
}

/// An S3 endpoint that sends its callers elsewhere; what elsewhere sees is written to a file.
const REDIRECTING: &str = r#"
import http.server, sys, threading
port, log = int(sys.argv[1]), sys.argv[2]
tar = open(sys.argv[3], 'rb').read()
class Evil(http.server.BaseHTTPRequestHandler):
    def log_message(s, *a): pass
    def do_HEAD(s): s.do_GET()
    def do_GET(s):
        open(log, 'a').write(f'{s.command} {s.path} {s.headers}')
        s.send_response(200); s.send_header('Content-Length', str(len(tar)))
        s.send_header('Last-Modified', 'Wed, 21 Oct 2015 07:28:00 GMT'); s.send_header('ETag', '"x"'); s.end_headers()
        if s.command == 'GET': s.wfile.write(tar)
evil = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Evil)
threading.Thread(target=evil.serve_forever, daemon=True).start()
class Store(Evil):
    def do_GET(s):
        s.send_response(307); s.send_header('Location', f'http://localhost:{evil.server_port}/evil.tar')
        s.send_header('Content-Length', '0'); s.end_headers()
http.server.ThreadingHTTPServer(('127.0.0.1', port), Store).serve_forever()
"#;

#[test]
fn s3_redirect_token() {
    let Some(python) = python("s3_redirect_token") else {
        return;
    };
    let (folder, script) = script(REDIRECTING);
    let log = folder.path().join("log");
    let tar = case("http-403-index").join("000.tar");
    let server = Server::start(&python, &script, &[&log, &tar]);
    let endpoint = server.url("");
    let env = [
        ("AWS_ENDPOINT", endpoint.trim_end_matches('/')),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "TOKENTOKEN"),
    ];
    let output = order("s3://bredir/p/a.tar", &[], &env);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("redirects to http://localhost:"), "{said}");
    assert!(!log.exists(), "{}", std::fs::read_to_string(&log).unwrap());
    // The same redirect of a plain server is followed, and the other one asked.
    let (found, _) = keys(&order(&server.url("p/a.tar"), &[], &env));
    assert_eq!(found, expected(&tar));
    let seen = std::fs::read_to_string(&log).unwrap();
    assert!(!seen.contains("TOKENTOKEN"), "{seen}");
}

/// A server with a certificate of its own: `/p` wants a token, `/down` sends its callers to plain http,
/// `/up` of the plain one back.
const HTTPS: &str = r#"
import datetime, http.server, ipaddress, ssl, sys, threading
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
port, pem, log, tar = int(sys.argv[1]), sys.argv[2], sys.argv[3], open(sys.argv[4], 'rb').read()
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')])
now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
names = x509.SubjectAlternativeName([x509.DNSName('localhost'), x509.IPAddress(ipaddress.ip_address('127.0.0.1'))])
certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    .serial_number(7).not_valid_before(now - day).not_valid_after(now + day).add_extension(names, False)
    .add_extension(x509.BasicConstraints(ca=False, path_length=None), True).sign(key, hashes.SHA256()))
open(pem, 'wb').write(certificate.public_bytes(serialization.Encoding.PEM))
open(pem + '.key', 'wb').write(key.private_bytes(serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
class Plain(http.server.BaseHTTPRequestHandler):
    scheme = 'http'
    def log_message(s, *a): pass
    def do_HEAD(s): s.do_GET()
    def redirect(s, url):
        s.send_response(302); s.send_header('Location', url); s.send_header('Content-Length', '0'); s.end_headers()
    def do_GET(s):
        token = s.headers.get('Authorization')
        open(log, 'a').write(f'{s.scheme} {s.path} {token}\n')
        if s.path.endswith('.qfidx'): return s.send_error(404)
        if s.path.startswith('/down'): return s.redirect(f'http://localhost:{plain.server_port}/x.tar')
        if s.path.startswith('/up'): return s.redirect(f'https://localhost:{port}/x.tar')
        if s.path.startswith('/p/') and token != 'Bearer TOKENTOKEN': return s.send_error(401)
        s.send_response(200); s.send_header('Content-Length', str(len(tar))); s.end_headers()
        if s.command == 'GET': s.wfile.write(tar)
class Secure(Plain): scheme = 'https'
plain = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Plain)
threading.Thread(target=plain.serve_forever, daemon=True).start()
open(log, 'w').write(f'{plain.server_port}\n')
server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Secure)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem, pem + '.key')
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;

#[test]
fn private_https() {
    let Some(python) = python("private_https") else {
        return;
    };
    let (folder, script) = script(HTTPS);
    let (pem, log) = (folder.path().join("pem"), folder.path().join("log"));
    let tar = case("http-403-index").join("000.tar");
    let server = Server::start(&python, &script, &[&pem, &log, &tar]);
    let seen = || std::fs::read_to_string(&log).unwrap();
    let plain = seen().lines().next().unwrap().to_string();
    let secure = |path: &str| format!("https://localhost:{}/{path}", server.port);
    let pem = pem.display().to_string();
    let trusts = ("SSL_CERT_FILE", pem.as_str());
    let token = ("QF_HTTP_BEARER_TOKEN", "TOKENTOKEN");

    let (found, _) = keys(&order(&secure("p/a.tar"), &[], &[trusts, token]));
    assert_eq!(found, expected(&tar));
    let said = stderr(&order(&secure("p/a.tar"), &[], &[trusts]));
    assert!(
        said.contains("401") && said.contains("QF_HTTP_BEARER_TOKEN"),
        "{said}"
    );
    let wrong = ("QF_HTTP_BEARER_TOKEN", "TOKENTOKEN2");
    let said = stderr(&order(&secure("p/a.tar"), &[], &[trusts, wrong]));
    assert!(
        said.contains("not accepted") && !said.contains("TOKENTOKEN"),
        "{said}"
    );
    // A certificate that nobody vouches for.
    let said = stderr(&order(&secure("p/a.tar"), &[], &[token]));
    assert!(said.contains("error: https://localhost"), "{said}");
    assert!(said.contains("certificate"), "{said}");
    assert!(!said.contains("trying on"), "{said}");

    let before = seen().lines().count();
    let output = order(&secure("down/a.tar"), &[], &[trusts, token]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("from https to http://localhost"), "{said}");
    let after = seen();
    let new: Vec<_> = after.lines().skip(before).collect();
    assert!(new.iter().all(|line| line.starts_with("https ")), "{new:?}");

    // Upwards it goes, without the token of the first.
    let before = after.lines().count();
    let up = format!("http://localhost:{plain}/up/a.tar");
    let (found, _) = keys(&order(&up, &[], &[trusts, token]));
    assert_eq!(found, expected(&tar));
    let after = seen();
    let mut new = after.lines().skip(before);
    assert!(
        new.any(|line| line == "http /up/a.tar Bearer TOKENTOKEN"),
        "{after}"
    );
    assert!(after.contains("https /x.tar None"), "{after}");
    assert!(!after.contains("https /x.tar Bearer"), "{after}");
}

/// Text of all files below a folder that holds this, by name.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let text = text.as_bytes();
            if bytes.windows(text.len()).any(|window| window == text) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn url_password() {
    let Some(python) = python("url_password") else {
        return;
    };
    let server = Server::cases(&python, data());
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "r");
    let with_password = server
        .url("plain/scenes-000000.tar")
        .replace("//", "//u:hunter2@");
    let message = fails(1, &small_run(&run_dir, &with_password, &["--steps", "2"]));
    assert!(
        message.contains("user or password") && !message.contains("hunter2"),
        "{message}"
    );
    let said = stderr(&order(&with_password, &[], &[]));
    assert!(
        said.contains("user or password") && !said.contains("hunter2"),
        "{said}"
    );

    // A signed URL trains, and is written nowhere.
    let signature = "sig=a%2Bb%3D%3D";
    let signed = |name: &str| server.url(&format!("query/{name}?{signature}&x=1"));
    let shards = format!(
        "{}::{}",
        signed("scenes-000000.tar"),
        signed("scenes-000001.tar")
    );
    succeeds(&small_run(
        &run_dir,
        &shards,
        &["--steps", "3", "--profile"],
    ));
    assert!(Path::new(&run_dir).join("trace.json").exists());
    assert_eq!(files_with(folder.path(), "sig="), Vec::<PathBuf>::new());
    // The configuration twice, and the trace.
    assert!(files_with(Path::new(&run_dir), "?<redacted>").len() >= 3);
    let message = fails(1, &["--run-dir", &run_dir, "--resume", "--steps", "4"]);
    assert!(message.contains("give the shards again"), "{message}");
    let again = [
        "--run-dir",
        &run_dir,
        "--resume",
        "--steps",
        "4",
        "--shards",
        &shards,
    ];
    succeeds(&again);
    // An order, a profile, an error of a damaged signature.
    let output = order(&shards, &["--json"], &[]);
    let listed = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
    assert!(
        listed.contains("scenes-000001.tar") && !listed.contains("sig="),
        "{listed}"
    );
    let expired = shards.replace("sig=a", "sig=b");
    let said = stderr(&order(&expired, &[], &[]));
    assert!(said.contains("403") && !said.contains("sig="), "{said}");
    let message = fails(
        1,
        &small_run(&path(&folder, "r2"), &expired, &["--steps", "2"]),
    );
    assert!(
        message.contains("403") && !message.contains("sig="),
        "{message}"
    );
}

#[test]
fn brace_zero() {
    let folder = case("brace-zero");
    let list = |spec: &str| {
        let output = Command::new(bin::qfdata())
            .current_dir(&folder)
            .args([
                "order",
                "--batch",
                "1",
                "--shuffle",
                "none",
                "--shards",
                spec,
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{spec}: {}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let shard = |line: &str| {
            let (_, sample) = line.split_once(": ").unwrap();
            sample.split('#').next().unwrap().to_string()
        };
        let mut shards: Vec<_> = text.lines().map(shard).collect();
        shards.dedup();
        shards
    };
    for spec in [
        "s-{0..10}.tar",
        "s-{10..0}.tar",
        "s-{0..10..5}.tar",
        "s-{{0..3},7,{9..10}}.tar",
        "s-{1{,0},2}.tar",
    ] {
        let echo = Command::new("bash")
            .args(["-c", &format!("echo {spec}")])
            .output()
            .unwrap();
        let words = String::from_utf8(echo.stdout).unwrap();
        let expected: Vec<_> = words.split_whitespace().collect();
        assert_eq!(list(spec), expected, "{spec}");
    }
    let both = list("s-{0..1}.tar::s-10.tar");
    assert_eq!(both, ["s-0.tar", "s-1.tar", "s-10.tar"]);
}

/// Lines of metrics so far.
fn steps(run_dir: &str) -> usize {
    let text = std::fs::read_to_string(Path::new(run_dir).join("metrics.jsonl"));
    text.map_or(0, |text| text.lines().count())
}

fn wait_for(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The store's half: a run waits for a server that is down, and says so once at the start and once
/// at the end; a signal meanwhile ends it.
#[test]
fn outage_loses_run() {
    let Some(python) = python("outage_loses_run") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let local = path(&folder, "local");
    let steps_of_run = ["--steps", "120"];
    let files = format!("{}/scenes-{{000000..000001}}.tar", data().display());
    succeeds(&small_run(&local, &files, &steps_of_run));

    let mut server = Server::cases(&python, data());
    let port = server.port;
    let shards = server.url("plain/scenes-{000000..000001}.tar");
    let run_dir = path(&folder, "run");
    // 20 seconds instead of 600, so that the first line comes after 10.
    let slow = [
        "--steps",
        "120",
        "--set",
        "remote.outage_secs=20",
        "--set",
        "data.read_ahead_bytes=1",
        "--set",
        "data.prefetch_batches=1",
        "--set",
        "data.shuffle_buffer_bytes=1",
    ];
    let start = |run_dir: &str, more: &[&str]| -> Child {
        let arguments = [&slow[..], more].concat();
        command(&small_run(run_dir, &shards, &arguments))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = start(&run_dir, &[]);
    wait_for("the first steps", || steps(&run_dir) >= 5);
    drop(server);
    let down = Instant::now();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("trying on for up to 20 s") {
        line.clear();
        let more = said.read_line(&mut line).unwrap() > 0;
        assert!(more, "the run ended: {:?}", child.wait());
    }
    assert!(down.elapsed() < Duration::from_secs(20));
    server = Server::start_at(port, &python, &http_srv(), &[data()]);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{line}{rest}");
    assert_eq!(rest.matches("going on after").count(), 1, "{rest}");
    assert_eq!(rest.matches("trying on").count(), 0, "{rest}");
    assert!(exact_metrics(Path::new(&run_dir)) == exact_metrics(Path::new(&local)));

    // A signal while it waits: it ends within a second or two, saved.
    let run_dir = path(&folder, "stopped");
    let mut child = start(&run_dir, &["--set", "remote.outage_secs=600"]);
    wait_for("the first steps", || steps(&run_dir) >= 5);
    drop(server);
    let mut before = steps(&run_dir);
    wait_for("a standstill", || {
        std::thread::sleep(Duration::from_millis(500));
        std::mem::replace(&mut before, steps(&run_dir)) == before
    });
    bin::signal("-TERM", &child);
    let start = Instant::now();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert!(
        Path::new(&run_dir)
            .join("checkpoints")
            .read_dir()
            .unwrap()
            .count()
            > 0
    );
    std::io::stdout().flush().unwrap();
}
