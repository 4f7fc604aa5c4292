//! Credentials of a machine's role, which expire while shards are read.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use qf_pipeline::remote::RemoteOptions;

use crate::{bytes, options, read, resolve, PART};

/// How long a key is good.
const LIFE: Duration = Duration::from_secs(1);

/// A machine's metadata service and a store in one: keys are handed out, and refused once they are old.
struct Role {
    content: Vec<u8>,
    /// When each key was handed out.
    given: Vec<Instant>,
    /// Keys that requests were signed with.
    used: Vec<usize>,
    refused: usize,
}

impl Role {
    fn answer(&mut self, head: &str) -> (u16, Vec<u8>) {
        let path = head.split(' ').nth(1).unwrap();
        match path.trim_end_matches('/') {
            "/latest/api/token" => (200, b"session".to_vec()),
            "/latest/meta-data/iam/security-credentials" => (200, b"role".to_vec()),
            "/latest/meta-data/iam/security-credentials/role" => (200, self.key().into()),
            _ => self.object(head),
        }
    }

    fn key(&mut self) -> String {
        let number = self.given.len();
        self.given.push(Instant::now());
        let ends = SystemTime::now() + LIFE;
        let ends = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let ends = time_of(ends.as_secs());
        format!(
            r#"{{"Code": "Success", "AccessKeyId": "KEY{number}", "SecretAccessKey": "secret",
                "Token": "TOKEN{number}", "Expiration": "{ends}", "LastUpdated": "{ends}",
                "Type": "AWS-HMAC"}}"#
        )
    }

    fn object(&mut self, head: &str) -> (u16, Vec<u8>) {
        let signed = head.split("Credential=KEY").nth(1).expect("a signature");
        let number: usize = signed.split('/').next().unwrap().parse().unwrap();
        let token = format!("TOKEN{number}");
        assert!(head.contains(&token), "the token of another key: {head}");
        self.used.push(number);
        if self.given[number].elapsed() > LIFE {
            self.refused += 1;
            return (403, b"<Error><Code>ExpiredToken</Code></Error>".to_vec());
        }
        (200, self.content.clone())
    }
}

/// `2026-01-31T12:00:00Z`, of seconds since 1970.
fn time_of(seconds: u64) -> String {
    let (mut days, seconds) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 0;
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= months[month] {
        days -= months[month];
        month += 1;
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let (month, day, seconds) = (month + 1, days + 1, seconds % 60);
    format!("{year}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}Z")
}

fn serve(stream: TcpStream, role: &Mutex<Role>) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if input.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let (status, body) = role.lock().unwrap().answer(&head);
        let length = body.len();
        write!(out, "HTTP/1.1 {status} OK\r\nContent-Length: {length}\r\n")?;
        write!(out, "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n")?;
        if !head.starts_with("HEAD") {
            out.write_all(&body)?;
        }
    }
}

#[test]
fn credentials_that_expire_are_renewed() {
    let content = bytes(PART / 2);
    let role = Arc::new(Mutex::new(Role {
        content: content.clone(),
        given: Vec::new(),
        used: Vec::new(),
        refused: 0,
    }));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shared = role.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let role = shared.clone();
            std::thread::spawn(move || drop(serve(stream, &role)));
        }
    });
    let env = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_METADATA_ENDPOINT", url.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let options = RemoteOptions {
        env: env
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into(),
        ..options()
    };
    let shards = resolve("s3://bucket/x-{0..3}.tar", &options).unwrap();
    for shard in &shards {
        assert!(read(shard).unwrap() == content, "{}", shard.name);
        std::thread::sleep(LIFE.mul_f64(0.7));
    }
    let role = role.lock().unwrap();
    let mut keys = role.used.clone();
    keys.dedup();
    assert!(keys.len() >= 3, "keys used: {keys:?}");
    assert_eq!(role.refused, 0, "{:?}", role.used);
}
