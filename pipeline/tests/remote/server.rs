//! A web server for files in memory, which misbehaves as told.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What happens to one GET.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// None.
    Fine,
    /// The connection is reset after so many bytes of the body.
    Reset(usize),
    /// 503, with this Retry-After in seconds.
    Busy(u64),
    /// Another status and no body.
    Status(u16),
    /// The body comes in pieces of this size, with pauses.
    Slow(usize),
    /// Nothing more comes after so many bytes of the body, until the client goes.
    Hang(usize),
    /// Nothing comes at all, not even a status.
    Silence,
    /// Content-Length is off by this.
    Length(i64),
    /// The body ends after so many bytes, and the connection is closed in order.
    Short(usize),
    /// 200 and the whole file, whatever range was asked for.
    Whole,
    /// The ETag is another.
    Changed,
}

/// A GET as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<Range<usize>>,
}

struct File {
    bytes: Arc<Vec<u8>>,
    e_tag: Option<String>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<HashMap<String, File>>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    requests: Mutex<Vec<Request>>,
    heads: AtomicUsize,
    connections: AtomicUsize,
    /// Requests that wait for their client to go.
    hanging: Mutex<usize>,
    changed: Condvar,
    refuses_head: AtomicBool,
    sends_whole: AtomicBool,
    obeys_if_match: AtomicBool,
    closing: AtomicBool,
}

pub(crate) struct Server {
    pub(crate) url: String,
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
}

/// How long a test waits for what must come; nothing is proved by how soon it does.
const PATIENCE: Duration = Duration::from_secs(60);
const MODIFIED: &str = "Wed, 21 Oct 2015 07:28:00 GMT";

impl Server {
    pub(crate) fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let server = Server {
            url: format!("http://{address}"),
            address,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closing.load(Ordering::Relaxed) {
                    return;
                }
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (stream, shared) = (stream.unwrap(), shared.clone());
                // A client that goes is no error here.
                std::thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        server
    }

    /// A file under `/name`, and its URL.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>, e_tag: Option<&str>) -> String {
        let file = File {
            bytes: Arc::new(bytes),
            e_tag: e_tag.map(|tag| format!("\"{tag}\"")),
        };
        self.shared
            .files
            .lock()
            .unwrap()
            .insert(format!("/{name}"), file);
        format!("{}/{name}", self.url)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.shared
            .files
            .lock()
            .unwrap()
            .remove(&format!("/{name}"));
    }

    /// What happens to the next GETs of a file.
    pub(crate) fn script(&self, name: &str, faults: &[Fault]) {
        let script = faults.iter().copied().collect();
        self.shared
            .faults
            .lock()
            .unwrap()
            .insert(format!("/{name}"), script);
    }

    pub(crate) fn refuse_head(&self) {
        self.shared.refuses_head.store(true, Ordering::Relaxed);
    }

    pub(crate) fn send_whole(&self) {
        self.shared.sends_whole.store(true, Ordering::Relaxed);
    }

    pub(crate) fn obey_if_match(&self) {
        self.shared.obeys_if_match.store(true, Ordering::Relaxed);
    }

    /// All GETs so far of one file.
    pub(crate) fn requests(&self, name: &str) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .filter(|request| request.path == format!("/{name}"))
            .cloned()
            .collect()
    }

    pub(crate) fn heads(&self) -> usize {
        self.shared.heads.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until at least `count` requests hang.
    pub(crate) fn wait_hanging(&self, count: usize) {
        self.wait_for(&format!("{count} requests hanging"), |hanging| {
            hanging >= count
        });
    }

    /// Waits until the clients of all requests that hung are gone.
    pub(crate) fn wait_none_hanging(&self) {
        self.wait_for("no request hanging", |hanging| hanging == 0);
    }

    fn wait_for(&self, what: &str, met: impl Fn(usize) -> bool) {
        let hanging = self.shared.hanging.lock().unwrap();
        let (hanging, waited) = self
            .shared
            .changed
            .wait_timeout_while(hanging, PATIENCE, |hanging| !met(*hanging))
            .unwrap();
        let hanging = *hanging;
        assert!(!waited.timed_out(), "never {what}; now {hanging}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    // Byte by byte, and the last one left: closing a socket with unread bytes resets it.
    let mut input = BufReader::with_capacity(1, stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r") {
            if input.read_until(b'\r', &mut head)? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8(head).unwrap();
        let head = head.trim_start();
        let (method, rest) = head.split_once(' ').unwrap();
        let path = decoded(rest.split([' ', '?']).next().unwrap());
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = lines.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.trim().to_string())
        };
        let range = header("range").map(|range| {
            let (first, last) = range
                .strip_prefix("bytes=")
                .unwrap()
                .split_once('-')
                .unwrap();
            first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
        });
        if method == "HEAD" {
            shared.heads.fetch_add(1, Ordering::Relaxed);
        } else {
            let request = Request {
                path: path.clone(),
                range: range.clone(),
            };
            shared.requests.lock().unwrap().push(request);
        }
        let file = shared
            .files
            .lock()
            .unwrap()
            .get(&path)
            .map(|file| (file.bytes.clone(), file.e_tag.clone()));
        let Some((bytes, mut e_tag)) = file else {
            finish_head(&mut input)?;
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let fault = match method {
            "HEAD" => Fault::Fine,
            _ => shared
                .faults
                .lock()
                .unwrap()
                .get_mut(&path)
                .and_then(VecDeque::pop_front)
                .unwrap_or(Fault::Fine),
        };
        if fault == Fault::Changed {
            e_tag = Some("\"changed\"".into());
        }
        let wants_other = header("if-match").is_some_and(|tag| Some(tag) != e_tag);
        let refused = refusal(shared, method, fault, wants_other);
        if let Some((status, after)) = refused {
            finish_head(&mut input)?;
            write!(out, "HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n")?;
            if let Some(seconds) = after {
                write!(out, "Retry-After: {seconds}\r\n")?;
            }
            write!(out, "\r\n")?;
            continue;
        }
        let whole = fault == Fault::Whole || shared.sends_whole.load(Ordering::Relaxed);
        let range = range.filter(|_| !whole);
        let part = range.clone().unwrap_or(0..bytes.len());
        let body = &bytes[part.start.min(bytes.len())..part.end.min(bytes.len())];
        let length = match fault {
            Fault::Length(off) => body.len().saturating_add_signed(off as isize),
            _ => body.len(),
        };
        let end = part.start + body.len();
        let sent = range.map(|range| range.start..end);
        let answer = answer_head(length, sent, bytes.len(), e_tag);
        if fault != Fault::Silence {
            out.write_all(answer.as_bytes())?;
        }
        if method == "HEAD" {
            finish_head(&mut input)?;
            continue;
        }
        let behind = &bytes[part.end.min(bytes.len())..];
        if !send_body((&mut input, &mut out), shared, fault, (body, behind))? {
            return Ok(());
        }
    }
}

/// Reads the last byte of a request's head.
fn finish_head(input: &mut impl Read) -> std::io::Result<()> {
    input.read_exact(&mut [0])
}

/// Sends a body, as the fault wants it; `behind` is what the file has after it. Whether the connection
/// goes on.
fn send_body(
    (input, out): (&mut BufReader<TcpStream>, &mut TcpStream),
    shared: &Shared,
    fault: Fault,
    (body, behind): (&[u8], &[u8]),
) -> std::io::Result<bool> {
    match fault {
        Fault::Reset(count) => {
            out.write_all(&body[..count.min(body.len())])?;
            return Ok(false);
        }
        Fault::Short(count) => {
            finish_head(input)?;
            out.write_all(&body[..count.min(body.len())])?;
            return Ok(false);
        }
        Fault::Length(off) => {
            finish_head(input)?;
            let more = usize::try_from(off).unwrap_or(0).min(behind.len());
            out.write_all(body)?;
            out.write_all(&behind[..more])?;
            return Ok(false);
        }
        Fault::Slow(size) => {
            finish_head(input)?;
            for piece in body.chunks(size) {
                out.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Fault::Hang(count) => {
            finish_head(input)?;
            out.write_all(&body[..count.min(body.len())])?;
            hang(input, shared);
            return Ok(false);
        }
        Fault::Silence => {
            finish_head(input)?;
            hang(input, shared);
            return Ok(false);
        }
        _ => {
            finish_head(input)?;
            out.write_all(body)?;
        }
    }
    Ok(true)
}

/// The head of an answer with `length` bytes announced, of `part` of a file of `whole` bytes if a range was
/// asked for.
fn answer_head(
    length: usize,
    part: Option<Range<usize>>,
    whole: usize,
    e_tag: Option<String>,
) -> String {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n");
    if let Some(part) = part {
        answer = answer.replace("200 OK", "206 Partial Content");
        let last = part.end - 1;
        answer += &format!("Content-Range: bytes {}-{last}/{}\r\n", part.start, whole);
    }
    if let Some(tag) = e_tag {
        answer += &format!("ETag: {tag}\r\nLast-Modified: {MODIFIED}\r\n");
    }
    answer += "\r\n";
    answer
}

/// The status of an answer without a body, and after how many seconds to ask again.
fn refusal(
    shared: &Shared,
    method: &str,
    fault: Fault,
    wants_other: bool,
) -> Option<(u16, Option<u64>)> {
    match fault {
        _ if method == "HEAD" && shared.refuses_head.load(Ordering::Relaxed) => Some((405, None)),
        Fault::Busy(seconds) => Some((503, Some(seconds))),
        Fault::Status(status) => Some((status, None)),
        _ if wants_other && shared.obeys_if_match.load(Ordering::Relaxed) => Some((412, None)),
        _ => None,
    }
}

/// Without percent signs.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Waits until the client goes.
fn hang(input: &mut impl Read, shared: &Shared) {
    *shared.hanging.lock().unwrap() += 1;
    shared.changed.notify_all();
    let _ = input.read(&mut [0]);
    *shared.hanging.lock().unwrap() -= 1;
    shared.changed.notify_all();
}
