//! A web server that does what a closure says, and what is logged meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// The range that is asked for.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().unwrap(), last.parse::<usize>().unwrap() + 1))
    }
}

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// With a Content-Length.
    Whole,
    /// In chunks, without a length.
    Chunked,
    /// Without a length: the connection is closed after it.
    UntilClosed,
    /// With a Content-Length, so many bytes at a time with pauses.
    Trickle(usize, Duration),
    /// No answer; the connection stays open until the client goes.
    Never,
    /// The connection is closed without an answer.
    Reset,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) pace: Pace,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
            pace: Pace::Whole,
        }
    }

    pub(crate) fn header(mut self, line: impl Into<String>) -> Reply {
        self.headers.push(line.into());
        self
    }

    pub(crate) fn pace(self, pace: Pace) -> Reply {
        Reply { pace, ..self }
    }

    /// A file as an ordinary server sends it, the range that is asked for.
    pub(crate) fn file(head: &Head, content: &[u8]) -> Reply {
        let Some((start, end)) = head.range() else {
            return Reply::new(200, content);
        };
        let end = end.min(content.len());
        let line = format!("Content-Range: bytes {start}-{}/{}", end - 1, content.len());
        Reply::new(206, &content[start..end]).header(line)
    }
}

pub(crate) struct Custom {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Head>>>,
    closing: Arc<AtomicBool>,
}

impl Custom {
    pub(crate) fn start(answer: impl Fn(&Head) -> Reply + Send + Sync + 'static) -> Custom {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<Head>>>::default();
        let closing = Arc::new(AtomicBool::new(false));
        let (answer, log, closed) = (Arc::new(answer), requests.clone(), closing.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                let (answer, log) = (answer.clone(), log.clone());
                let stream = stream.unwrap();
                // A client that goes is no error here.
                std::thread::spawn(move || drop(serve(stream, &*answer, &log)));
            }
        });
        Custom {
            url,
            requests,
            closing,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Head> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests whose path ends with this.
    pub(crate) fn count(&self, ending: &str) -> usize {
        let requests = self.requests();
        let path = |head: &Head| head.target.split('?').next().unwrap().to_string();
        requests
            .iter()
            .filter(|head| path(head).ends_with(ending))
            .count()
    }
}

impl Drop for Custom {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
    }
}

fn serve(
    stream: TcpStream,
    answer: &dyn Fn(&Head) -> Reply,
    log: &Mutex<Vec<Head>>,
) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut head = Head {
        method: method.into(),
        target: target.into(),
        headers: Vec::new(),
    };
    for line in lines.by_ref() {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let pair = (name.to_ascii_lowercase(), value.trim().to_string());
        head.headers.push(pair);
    }
    log.lock().unwrap().push(head.clone());
    let reply = answer(&head);
    match reply.pace {
        Pace::Never => {
            // Until the client goes.
            lines.next();
            return Ok(());
        }
        Pace::Reset => return Ok(()),
        _ => {}
    }
    let mut text = format!("HTTP/1.1 {} Reply\r\nConnection: close\r\n", reply.status);
    for line in &reply.headers {
        text += &format!("{line}\r\n");
    }
    match reply.pace {
        Pace::Chunked => text += "Transfer-Encoding: chunked\r\n",
        Pace::UntilClosed => {}
        _ => text += &format!("Content-Length: {}\r\n", reply.body.len()),
    }
    write!(out, "{text}\r\n")?;
    if head.method == "HEAD" {
        return Ok(());
    }
    match reply.pace {
        Pace::Chunked => {
            for chunk in reply.body.chunks(5000) {
                write!(out, "{:x}\r\n", chunk.len())?;
                out.write_all(chunk)?;
                out.write_all(b"\r\n")?;
            }
            out.write_all(b"0\r\n\r\n")?;
        }
        Pace::Trickle(bytes, pause) => {
            for chunk in reply.body.chunks(bytes) {
                out.write_all(chunk)?;
                std::thread::sleep(pause);
            }
        }
        _ => out.write_all(&reply.body)?,
    }
    Ok(())
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            LINES.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Keeps warnings from now on.
pub(crate) fn collect_warnings() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Collector).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
}

/// Warnings that name this: a server's URL tells those of one test.
pub(crate) fn warnings(part: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines
        .iter()
        .filter(|line| line.contains(part))
        .cloned()
        .collect()
}
