//! A small HTTP server on this machine, for pages to look at and numbers to collect.
//!
//! It answers GET and HEAD. Requests whose `Host` names another machine are refused, so that no page of the web
//! can read what is served here by a name that points to this machine (DNS rebinding). Nothing of a request is
//! ever used as a path of a file.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Begins with a slash; percent signs are read.
    pub path: String,
    /// Names and values of the query, in order.
    pub query: Vec<(String, String)>,
}

impl Request {
    /// The first value of this name that is not empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut values = self.query.iter();
        let found = values.find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Response {
    /// 200, 404, …
    pub status: u16,
    /// As in the header, e.g. `text/html; charset=utf-8`.
    pub content_type: &'static str,
    /// The content.
    pub body: Vec<u8>,
}

impl Response {
    /// A page.
    pub fn html(body: String) -> Response {
        Response {
            status: 200,
            content_type: "text/html; charset=utf-8",
            body: body.into_bytes(),
        }
    }

    /// A line of text with another status than 200.
    pub fn plain(status: u16, text: &str) -> Response {
        Response {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{text}\n").into_bytes(),
        }
    }
}

/// Answers requests; called on several threads.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// A server that listens.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
    takes_any_host: bool,
}

impl Server {
    /// Listens at an address; port 0 takes any that is free.
    ///
    /// # Errors
    /// If the address is taken or not of this machine.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Server> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("qf-serve")
            .enable_all()
            .build()
            .context("cannot start the server's threads")?;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .with_context(|| format!("cannot listen at {address}; name another port"))?;
        let address = listener.local_addr().context("cannot tell the address")?;
        Ok(Server {
            runtime,
            listener,
            address,
            takes_any_host: false,
        })
    }

    /// Answers requests for any `Host`: for what is no secret, at an address that other machines know by a
    /// name.
    pub fn for_any_host(self) -> Server {
        Server {
            takes_any_host: true,
            ..self
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until the process ends or `is_over` says so, which is asked several times a second.
    pub fn run(self, handler: Handler, is_over: &dyn Fn() -> bool) {
        let Server {
            runtime,
            listener,
            address,
            takes_any_host,
        } = self;
        let own = (!takes_any_host).then_some(address);
        runtime.spawn(accept(listener, own, handler));
        while !is_over() {
            std::thread::sleep(Duration::from_millis(100));
        }
        runtime.shutdown_background();
    }
}

/// `own` is the address that requests must name as their host.
async fn accept(listener: TcpListener, own: Option<SocketAddr>, handler: Handler) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, own, handler.clone()));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                log::debug!("connection: {error}");
            }
            drop(permit);
        });
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    own: Option<SocketAddr>,
    handler: Handler,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let host = request.headers().get(HOST);
    let is_ours = host
        .and_then(|host| host.to_str().ok())
        .is_some_and(|host| own.is_none_or(|own| is_own_host(host, own)));
    let response = if !is_ours {
        Response::plain(403, "this server answers for its own address only")
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        Response::plain(405, "GET and HEAD only")
    } else {
        let asked = Request {
            path: decoded(request.uri().path(), false),
            query: query(request.uri().query().unwrap_or_default()),
        };
        // Pictures are decoded in it.
        let answered = tokio::task::spawn_blocking(move || handler(&asked)).await;
        answered.unwrap_or_else(|_| {
            Response::plain(500, "this request cannot be answered; it is a bug")
        })
    };
    let is_head = *request.method() == Method::HEAD;
    Ok(encode(response, is_head))
}

fn encode(response: Response, is_head: bool) -> hyper::Response<Full<Bytes>> {
    let body = if is_head { Vec::new() } else { response.body };
    let mut encoded = hyper::Response::new(Full::new(Bytes::from(body)));
    *encoded.status_mut() =
        StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = encoded.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(response.content_type),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    if response.status == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    encoded
}

/// Whether a `Host` header names this machine by `localhost`, a loopback address, or the address that is
/// listened at.
fn is_own_host(host: &str, address: SocketAddr) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    name.parse::<IpAddr>().is_ok_and(|ip| {
        // At an address for all interfaces any of them is this machine's; names are not.
        ip.is_loopback() || ip == address.ip() || address.ip().is_unspecified()
    })
}

fn query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name, true), decoded(value, true))
    };
    pairs.map(pair).collect()
}

/// Text of a URL with its percent signs read, and in a query plus signs as blanks.
fn decoded(text: &str, is_query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &after[2..];
                continue;
            }
            (b'+', _) if is_query => bytes.push(b' '),
            (byte, _) => bytes.push(byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn hosts() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        let local = at("127.0.0.1:8400");
        for host in [
            "localhost:8400",
            "LOCALHOST",
            "127.0.0.1:8400",
            "127.0.0.2",
            "[::1]:8400",
        ] {
            assert!(is_own_host(host, local), "{host}");
        }
        for host in [
            "example.com",
            "127.0.0.1.example.com",
            "10.0.0.1:8400",
            "",
            "localhost.evil:80",
        ] {
            assert!(!is_own_host(host, local), "{host}");
        }
        assert!(is_own_host("10.0.0.1:80", at("10.0.0.1:80")));
        assert!(is_own_host("192.168.0.7:80", at("0.0.0.0:80")));
        assert!(!is_own_host("rebound.example:80", at("0.0.0.0:80")));
    }

    #[test]
    fn queries() {
        let found = query("q=a+dog&x=%C3%A9%zz&&flag&q=2");
        let expected = [("q", "a dog"), ("x", "é%zz"), ("flag", ""), ("q", "2")];
        let expected = expected.map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!(found, expected);
        let request = Request {
            path: "/".into(),
            query: found,
        };
        assert_eq!(
            (request.value("q"), request.value("flag")),
            (Some("a dog"), None)
        );
        assert_eq!(decoded("/a%2f..%2Fb+c", false), "/a/../b+c");
    }

    fn ask(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_are_answered_or_refused() {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let handler: Handler = Arc::new(|request: &Request| match request.path.as_str() {
            "/panic" => panic!("a bug"),
            path => Response::html(format!("path {path}")),
        });
        let thread =
            std::thread::spawn(move || server.run(handler, &|| over.load(Ordering::Relaxed)));
        let get = |path: &str, host: &str| {
            ask(
                address,
                &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            )
        };
        let answer = get("/a%20b?x=1", "localhost");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("path /a b"),
            "{answer}"
        );
        assert!(
            answer.contains("nosniff") && answer.contains("no-store"),
            "{answer}"
        );
        assert!(get("/", "example.com").starts_with("HTTP/1.1 403"));
        assert!(get("/panic", "localhost").starts_with("HTTP/1.1 500"));
        let posted = ask(
            address,
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
        let headless = ask(address, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(!headless.starts_with("HTTP/1.1 200"), "{headless}");
        is_over.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }
}
