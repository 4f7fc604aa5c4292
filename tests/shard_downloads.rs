//! `qfdata shard` downloads, from a server with faults (Python's http.server).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::{json, Value};

use crate::bin;
use crate::shard_cli::{image, read_back};
use crate::test_data::python;

/// Serves `argv[1]` as /image/ANYTHING, as /own/NAME with its name behind it, and faults under other names. Notes every request: path, headers,
/// and how many were under way. Prints its port; answers /requests with its notes.
const SERVER: &str = r#"
import http.server, json, socket, sys, threading, time
image = open(sys.argv[1], "rb").read()
lock, notes, busy, most, tries = threading.Lock(), [], 0, 0, {}
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        global busy, most
        if self.path == "/requests":
            with lock: return self.answer(200, json.dumps(dict(notes=notes, most=most)).encode())
        with lock:
            busy += 1; most = max(most, busy)
            tries[self.path] = tries.get(self.path, 0) + 1
            notes.append([self.path, {name.lower(): value for name, value in self.headers.items()}])
            count = tries[self.path]
        try: self.fault(self.path.split("/")[1], count)
        finally:
            with lock: busy -= 1
    def fault(self, kind, count):
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        if kind == "image": return self.answer(200, image)
        if kind == "own": return self.answer(200, image + self.path.encode())
        if kind == "slow":
            time.sleep(0.05); return self.answer(200, image)
        if kind == "missing": return self.answer(404, b"no such image")
        if kind == "html": return self.answer(200, b"<html>no image</html>", Content_Type="image/jpeg")
        if kind == "once503": return self.answer(503 if count == 1 else 200, image)
        if kind == "busy": return self.answer(429, b"", Retry_After="1") if count == 1 else self.answer(200, image)
        if kind == "down": return self.answer(500)
        if kind == "hang": time.sleep(20); return
        if kind == "cut":
            self.send_response(200); self.send_header("Content-Length", str(len(image))); self.end_headers()
            self.wfile.write(image[:50]); self.wfile.flush(); self.connection.shutdown(socket.SHUT_RDWR); return
        if kind == "reset": self.connection.shutdown(socket.SHUT_RDWR); return
        if kind == "huge": return self.answer(200, b"x" * 300_000)
        if kind == "endless":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            try:
                while True: self.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            except OSError: return
        if kind == "noai": return self.answer(200, image, X_Robots_Tag="noai, nofollow")
        if kind == "forbot": return self.answer(200, image, X_Robots_Tag="testbot: noimageai")
        if kind == "redirect": return self.answer(302, b"", Location="/image/redirected")
        if kind == "elsewhere": return self.answer(302, b"", Location=here.replace("127.0.0.1", "localhost") + "/image/there")
        if kind == "circle": return self.answer(302, b"", Location="/circle/x")
        if kind == "tofile": return self.answer(302, b"", Location="file:///etc/passwd")
        if kind == "tometadata": return self.answer(302, b"", Location="http://169.254.169.254/latest")
        self.answer(400)
server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

pub(crate) struct Server {
    process: Child,
    port: u16,
}

impl Server {
    pub(crate) fn start(python: &Path, folder: &Path) -> Server {
        let jpeg = folder.join("served.jpg");
        fs::write(&jpeg, image(image::ImageFormat::Jpeg, 9)).unwrap();
        let mut process = Command::new(python)
            .args(["-c", SERVER])
            .arg(jpeg)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Server {
            process,
            port: line.trim().parse().unwrap(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What was asked for, and how many requests were under way at most.
    fn requests(&self) -> (Vec<(String, Value)>, u64) {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .write_all(b"GET /requests HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let answer: Value = serde_json::from_str(body).unwrap();
        let notes = answer["notes"].as_array().unwrap().iter();
        let note = |note: &Value| (note[0].as_str().unwrap().to_owned(), note[1].clone());
        (notes.map(note).collect(), answer["most"].as_u64().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(folder: &Path, urls: &[String], options: &[&str]) -> Output {
    let mut list = String::from("url,caption\n");
    for (number, url) in urls.iter().enumerate() {
        list += &format!("{url},caption {number}\n");
    }
    fs::write(folder.join("list.csv"), list).unwrap();
    Command::new(bin::qfdata())
        .current_dir(folder)
        .args([
            "shard",
            "list.csv",
            "--out",
            "out/s",
            "--json",
            "--overwrite",
        ])
        .args(options)
        .output()
        .unwrap()
}

fn summary(output: &Output) -> Value {
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const ALLOWED: [&str; 4] = ["--allow-private-addresses", "--timeout", "2", "--retries=1"];

#[test]
fn every_fault_is_counted_under_its_cause() {
    let Some(python) = python("every_fault") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&python, folder.path());
    let faults: BTreeMap<&str, Result<(), &str>> = BTreeMap::from([
        ("image/1", Ok(())),
        ("image/2.png?size=3", Ok(())),
        ("once503", Ok(())),
        ("busy", Ok(())),
        ("redirect", Ok(())),
        ("elsewhere", Ok(())),
        ("forbot", Ok(())),
        ("missing", Err("http_status")),
        ("html", Err("unknown_image_format")),
        ("down", Err("http_status")),
        ("hang", Err("timed_out")),
        ("cut", Err("no_connection")),
        ("reset", Err("no_connection")),
        ("huge", Err("download_too_large")),
        ("endless", Err("download_too_large")),
        ("noai", Err("opted_out")),
        ("circle/x", Err("bad_redirect")),
        ("tofile", Err("bad_url")),
    ]);
    let mut urls: Vec<String> = faults.keys().map(|path| server.url(path)).collect();
    urls.push("http://no-such-host.invalid/x.jpg".into());
    urls.push("http://".into());
    let options = [&ALLOWED[..], &["--max-download", "200kB"]].concat();
    let begun = Instant::now();
    let output = run(folder.path(), &urls, &options);
    let summary_of = summary(&output);
    // Two tries of two seconds, not twenty.
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
    assert_eq!(output.status.code(), Some(3));
    let mut expected: BTreeMap<&str, u64> = BTreeMap::from([("no_host", 1), ("bad_url", 1)]);
    for fault in faults.values() {
        if let Err(cause) = fault {
            *expected.entry(cause).or_default() += 1;
        }
    }
    assert_eq!(summary_of["skipped"], json!(expected), "{output:?}");
    let good = faults.values().filter(|fault| fault.is_ok()).count();
    assert_eq!(summary_of["samples"], good);
    let (requests, _) = server.requests();
    let count = |path: &str| requests.iter().filter(|(asked, _)| asked == path).count();
    // In passing: once more. For good: once.
    for (path, times) in [
        ("/once503", 2),
        ("/busy", 2),
        ("/down", 2),
        ("/missing", 1),
        ("/noai", 1),
        ("/image/1", 1),
    ] {
        assert_eq!(count(path), times, "{path}");
    }
    // Opt-outs that address us, or that are to be passed over.
    let urls = [server.url("forbot"), server.url("noai")];
    let token = [&ALLOWED[..], &["--user-agent-token", "TestBot"]].concat();
    let output = run(folder.path(), &urls, &token);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("opted_out 2"), "{message}");
    let (requests, _) = server.requests();
    let agent = requests.last().unwrap().1["user-agent"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(agent.contains("TestBot"), "{agent}");
    let ignored = [&ALLOWED[..], &["--ignore-opt-out"]].concat();
    assert_eq!(summary(&run(folder.path(), &urls, &ignored))["samples"], 2);
}

#[test]
fn private_addresses_are_refused_and_credentials_stay() {
    let Some(python) = python("private_addresses") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&python, folder.path());
    let port = server.port;
    let urls = [
        server.url("image/1"),
        format!("http://localhost:{port}/image/2"),
        format!("http://127.1:{port}/image/3"),
        format!("http://[::1]:{port}/image/4"),
        format!("http://[::ffff:127.0.0.1]:{port}/image/5"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://10.0.0.1/x".to_owned(),
    ];
    let output = run(folder.path(), &urls, &["--retries", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("private_address 7"), "{message}");
    assert!(message.contains("--allow-private-addresses"), "{message}");
    assert_eq!(server.requests().0.len(), 0, "none was asked");

    // The name and password of a URL go to its host, and to no other.
    let urls = [format!("http://user:secret@127.0.0.1:{port}/elsewhere")];
    let output = run(folder.path(), &urls, &ALLOWED);
    assert_eq!(summary(&output)["samples"], 1);
    let (requests, _) = server.requests();
    let authorization = |at: usize| requests[at].1.get("authorization").cloned();
    assert_eq!(requests.len(), 2);
    assert_eq!(authorization(0), Some(json!("Basic dXNlcjpzZWNyZXQ=")));
    assert_eq!(authorization(1), None);
    assert!(requests[1].1.get("referer").is_none());
}

#[test]
fn many_requests_at_a_time_but_not_too_many() {
    let Some(python) = python("many_requests") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&python, folder.path());
    let urls: Vec<String> = (0..300)
        .map(|number| server.url(&format!("slow/{number}")))
        .collect();
    let options = [
        "--allow-private-addresses",
        "--per-host",
        "40",
        "--parallel-downloads",
        "64",
    ];
    let output = run(folder.path(), &urls, &options);
    let summary = summary(&output);
    assert_eq!(summary["samples"], 300);
    let (requests, most) = server.requests();
    assert_eq!(requests.len(), 300);
    assert!((10..=48).contains(&most), "{most} at a time");
    // (The server counts a request until a moment after its answer.)
    // In the order of the list, whichever came first.
    let mut summary = summary.clone();
    let files: Vec<Value> = summary["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| json!(folder.path().join(file.as_str().unwrap())))
        .collect();
    summary["files"] = json!(files);
    let captions: Vec<String> = read_back(&summary)
        .into_iter()
        .map(|s| s.3[0].clone())
        .collect();
    let expected: Vec<String> = (0..300).map(|number| format!("caption {number}")).collect();
    assert_eq!(captions, expected);
}
