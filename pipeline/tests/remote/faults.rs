use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;

use crate::server::Fault::{self, *};
use crate::server::Server;
use crate::{bytes, one, options, read, resolve, PART};

/// Sixteen parts and a bit.
const SIZE: usize = 16 * PART + 99;

fn size(shard: &ShardLocation) -> std::io::Result<u64> {
    Ok(shard.size(&Stop::default())?.expect("a length"))
}

#[test]
fn parts_cover_a_shard_once() {
    let server = Server::start();
    let content = bytes(SIZE);
    let url = server.put("a.tar", content.clone(), Some("one"));
    let shard = one(&url, &options());
    assert_eq!(
        (shard.name.as_ref(), shard.base_name(), shard.path()),
        (url.as_str(), "a.tar", None)
    );
    assert_eq!(size(&shard).unwrap(), SIZE as u64);
    assert!(read(&shard).unwrap() == content);
    assert_eq!(server.heads(), 1, "size and ETag are asked for once");
    // A connection is free again a moment after its answer is read, so how many there are is a matter
    // of time; one a request would be 18.
    assert!(
        server.connections() <= 9,
        "{} connections",
        server.connections()
    );
    let mut ranges: Vec<_> = server
        .requests("a.tar")
        .into_iter()
        .map(|r| r.range.unwrap())
        .collect();
    ranges.sort_by_key(|range| range.start);
    let starts: Vec<_> = (0..SIZE).step_by(PART).collect();
    assert_eq!(
        ranges.iter().map(|range| range.start).collect::<Vec<_>>(),
        starts
    );
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));

    let range = |from: u64, to: u64| {
        let mut bytes = Vec::new();
        shard
            .open_range(from..to, &Stop::default())
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    assert!(range(100, 40_000) == content[100..40_000]);
    assert!(range(SIZE as u64 - 5, SIZE as u64 + 5) == content[SIZE - 5..]);
    assert!(range(SIZE as u64 + 5, SIZE as u64 + 9).is_empty() && range(7, 7).is_empty());

    // A sidecar may come later.
    let sidecar = shard.sidecar(".qfidx");
    assert_eq!(size(&sidecar).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        sidecar.open(&Stop::default()).err().unwrap().kind(),
        ErrorKind::NotFound
    );
    server.put("a.tar.qfidx", b"index".to_vec(), None);
    assert_eq!(
        (size(&sidecar).unwrap(), read(&sidecar).unwrap()),
        (5, b"index".to_vec())
    );
}

/// Reads through a script of faults; returns how many requests it took.
fn check(script: &[Fault], extra_requests: usize) {
    let server = Server::start();
    let content = bytes(SIZE);
    let url = server.put("a.tar", content.clone(), Some("one"));
    server.script("a.tar", script);
    let options = RemoteOptions {
        stall_timeout: Duration::from_secs(1),
        ..options()
    };
    let shard = one(&url, &options);
    let found = read(&shard).unwrap_or_else(|error| panic!("{script:?}: {error}"));
    assert!(found == content, "{script:?}: other bytes");
    let requests = server.requests("a.tar");
    assert_eq!(
        requests.len(),
        17 + extra_requests,
        "{script:?}: {requests:?}"
    );
}

#[test]
fn passing_faults_cost_no_byte_and_repeat_none() {
    check(&[], 0);
    check(&[Reset(0)], 1);
    check(&[Reset(1000), Fine, Reset(5000), Reset(5)], 3);
    check(&[Busy(0), Fine, Busy(3600), Busy(0)], 3);
    check(&[Status(500), Status(429), Status(408), Status(502)], 4);
    check(&[Slow(2000), Fine, Slow(5000)], 0);
    check(&[Hang(0), Fine, Hang(5000)], 2);
    check(&[Silence, Silence], 2);
    check(&[Short(0), Short(1), Short(9000)], 3);
    check(&[Length(-1), Length(-(PART as i64))], 2);
    check(&[Length(1), Length(50_000)], 2);
    // Faults in a row, at one request at a time.
    for faults in [
        [Reset(10), Short(10), Hang(10)],
        [Busy(0), Length(-7), Reset(3)],
    ] {
        check(
            &[
                faults[0], faults[0], faults[0], faults[1], faults[1], faults[2],
            ],
            6,
        );
    }
}

#[test]
fn a_retry_begins_at_the_byte_reached() {
    let server = Server::start();
    let url = server.put("a.tar", bytes(PART), Some("one"));
    server.script("a.tar", &[Short(1000), Short(500), Short(PART - 1501)]);
    assert!(read(&one(&url, &options())).unwrap() == bytes(PART));
    let starts = server
        .requests("a.tar")
        .into_iter()
        .map(|request| request.range.unwrap().start);
    assert_eq!(starts.collect::<Vec<_>>(), [0, 1000, 1500, PART - 1]);
}

#[test]
fn requests_stay_near_the_reader() {
    let server = Server::start();
    let content = bytes(4 << 20);
    let url = server.put("a.tar", content.clone(), Some("one"));
    let mut reader = one(&url, &options()).open(&Stop::default()).unwrap();
    let mut buffer = vec![0; 10_000];
    for at in (0..content.len()).step_by(buffer.len()) {
        let count = buffer.len().min(content.len() - at);
        reader.read_exact(&mut buffer[..count]).unwrap();
        assert!(buffer[..count] == content[at..at + count]);
        let asked = server
            .requests("a.tar")
            .into_iter()
            .map(|request| request.range.unwrap().end);
        let ahead = asked.max().unwrap().saturating_sub(at + count);
        assert!(ahead <= 4 * PART, "{ahead} bytes ahead");
    }
}

#[test]
fn used_up_time_names_url_offset_and_answer() {
    let server = Server::start();
    let url = server.put("a.tar", bytes(SIZE), Some("one"));
    let shard = one(
        &url,
        &RemoteOptions {
            parallel_requests: 1,
            outage: Duration::from_millis(200),
            ..options()
        },
    );
    let mut script = vec![Fine, Short(100)];
    script.resize(10_000, Busy(0));
    server.script("a.tar", &script);
    let mut reader = shard.open(&Stop::default()).unwrap();
    let mut found = Vec::new();
    let message = reader.read_to_end(&mut found).unwrap_err().to_string();
    assert!(
        found == bytes(SIZE)[..PART + 100],
        "all bytes before the fault"
    );
    let offset = format!("byte {}", PART + 100);
    for part in [
        url.as_str(),
        &offset,
        "503",
        "requests in 0.2 s",
        "check the network",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        reader.read(&mut [0; 9]).is_err(),
        "an error is not followed by bytes"
    );
    // And the shard can be opened again.
    server.script("a.tar", &[]);
    assert!(read(&shard).unwrap() == bytes(SIZE));
}

#[test]
fn a_changed_shard_is_refused() {
    for obeys in [true, false] {
        let server = Server::start();
        if obeys {
            server.obey_if_match();
        }
        let url = server.put("a.tar", bytes(SIZE), Some("one"));
        let shard = one(&url, &options());
        let mut reader = shard.open(&Stop::default()).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        server.put("a.tar", bytes(SIZE), Some("two"));
        let in_between = reader.read_to_end(&mut Vec::new());
        for error in [in_between.err().unwrap(), read(&shard).err().unwrap()] {
            let message = error.to_string();
            assert!(
                message.contains("ETag one") && message.contains("now ETag two"),
                "{message}"
            );
        }
        // The answer itself is of another version, and the next is not.
        let url = server.put("b.tar", bytes(SIZE), Some("one"));
        server.script("b.tar", &[Changed]);
        if !obeys {
            let message = read(&one(&url, &options())).err().unwrap().to_string();
            assert!(message.contains("now ETag changed"), "{message}");
        }
        server.remove("a.tar");
        assert_eq!(read(&shard).err().unwrap().kind(), ErrorKind::NotFound);
    }
    // Without ETags there is still the length.
    let server = Server::start();
    let url = server.put("a.tar", bytes(SIZE), None);
    let shard = one(&url, &options());
    server.put("a.tar", bytes(SIZE + 1), None);
    assert!(read(&shard).err().unwrap().to_string().contains("changed"));
}

#[test]
fn a_stop_ends_a_read_that_hangs() {
    let server = Server::start();
    let url = server.put("a.tar", bytes(SIZE), Some("one"));
    server.script("a.tar", &[Hang(50); 4]);
    let shard = one(
        &url,
        &RemoteOptions {
            stall_timeout: Duration::from_secs(600),
            ..options()
        },
    );
    let stop = Stop::default();
    let mut reader = shard.open(&stop).unwrap();
    reader.read_exact(&mut [0; 50]).unwrap();
    server.wait_hanging(4);
    let waiting = std::thread::spawn(move || (reader.read(&mut [0; 9]), Instant::now()));
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    stop.set();
    let (result, end) = waiting.join().unwrap();
    assert!(
        result.is_err() && end - start < Duration::from_secs(1),
        "{:?}",
        end - start
    );
    // The reader is gone, and its requests with it.
    server.wait_none_hanging();
    assert!(shard.open(&stop).is_err());
}

#[test]
fn a_stalled_shard_holds_up_no_other() {
    let server = Server::start();
    let stalled = server.put("a.tar", bytes(SIZE), Some("one"));
    let fine = server.put("b.tar", bytes(SIZE), Some("one"));
    server.script("a.tar", &[Hang(0), Hang(0), Hang(0), Hang(0)]);
    let options = RemoteOptions {
        stall_timeout: Duration::from_secs(600),
        ..options()
    };
    let stop = Stop::default();
    let mut waiting = one(&stalled, &options).open(&stop).unwrap();
    let waiting = std::thread::spawn(move || waiting.read(&mut [0; 9]).is_err());
    server.wait_hanging(4);
    let fine = one(&fine, &options);
    for _ in 0..3 {
        assert!(read(&fine).unwrap() == bytes(SIZE));
    }
    assert!(!waiting.is_finished());
    stop.set();
    assert!(waiting.join().unwrap());
}

#[test]
fn servers_without_ranges_or_head() {
    let server = Server::start();
    server.send_whole();
    server.refuse_head();
    let content = bytes(SIZE);
    let url = server.put("a.tar", content.clone(), Some("one"));
    let shard = one(&url, &options());
    assert_eq!(size(&shard).unwrap(), SIZE as u64);
    assert!(read(&shard).unwrap() == content);
    // Now it is known: one request a read, and another one after each fault.
    let before = server.requests("a.tar").len();
    server.script("a.tar", &[Reset(40_000), Short(100), Busy(0)]);
    assert!(read(&shard).unwrap() == content);
    assert_eq!(server.requests("a.tar").len() - before, 4);
    let mut found = Vec::new();
    shard
        .open_range(70_000..90_000, &Stop::default())
        .unwrap()
        .read_to_end(&mut found)
        .unwrap();
    assert!(found == content[70_000..90_000]);

    // A server that forgets about ranges half-way.
    let server = Server::start();
    let url = server.put("a.tar", content.clone(), Some("one"));
    server.script("a.tar", &[Fine, Fine, Fine, Fine, Fine, Whole]);
    assert!(read(&one(&url, &options())).unwrap() == content);
}

#[test]
fn what_is_not_there_is_named() {
    let server = Server::start();
    server.put("a-0.tar", bytes(10), None);
    let check = |spec: &str, options: &RemoteOptions, parts: &[&str]| {
        let message = resolve(spec, options).unwrap_err();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let url = &server.url;
    let missing = format!("{url}/a-1.tar");
    check(
        &format!("{url}/a-{{0..1}}.tar"),
        &options(),
        &["no shard matches", &missing, "404", "check the name"],
    );
    check(&format!("{url}/*.tar"), &options(), &["no listing"]);
    check("ftp://host/x.tar", &options(), &["ftp", "unknown", "s3"]);
    check(
        &format!("{url}/a-{{0,0}}.tar"),
        &options(),
        &["more than once"],
    );
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let closed = format!("http://{closed}/x.tar");
    check(
        &closed,
        &RemoteOptions {
            outage: Duration::from_millis(200),
            ..options()
        },
        &[&closed, "refused", "requests in 0.2 s", "check the network"],
    );
    // TLS is there, and plain text is not taken for it.
    check(
        &format!("{}/x.tar", url.replace("http:", "https:")),
        &RemoteOptions {
            connect_timeout: Duration::from_millis(300),
            outage: Duration::from_millis(300),
            ..options()
        },
        &["https://"],
    );
}

#[test]
fn google_and_azure_speak_through_the_same_reader() {
    let server = Server::start();
    server.put("bucket/a.tar", bytes(SIZE), Some("one"));
    let with = |env: &[(&str, &str)]| RemoteOptions {
        env: env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        ..options()
    };
    let google = with(&[
        ("GOOGLE_BASE_URL", &server.url),
        ("GOOGLE_SKIP_SIGNATURE", "true"),
        ("GOOGLE_ALLOW_HTTP", "true"),
    ]);
    let azure = with(&[
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ENDPOINT", &server.url),
        ("AZURE_SKIP_SIGNATURE", "true"),
        ("AZURE_ALLOW_HTTP", "true"),
    ]);
    for (url, options) in [("gs://bucket/a.tar", google), ("az://bucket/a.tar", azure)] {
        let shard = one(url, &options);
        server.script("bucket/a.tar", &[Reset(10), Busy(0)]);
        assert!(read(&shard).unwrap() == bytes(SIZE), "{url}");
        assert_eq!(shard.name.as_ref(), url);
    }
}

/// A setting that is missing is no fault that may pass.
#[test]
fn plain_http_that_is_not_allowed_is_refused_at_once() {
    let server = Server::start();
    server.put("bucket/a.tar", bytes(SIZE), Some("one"));
    for (url, variable, base) in [
        ("gs://bucket/a.tar", "GOOGLE_ALLOW_HTTP", "GOOGLE_BASE_URL"),
        ("s3://bucket/a.tar", "AWS_ALLOW_HTTP", "AWS_ENDPOINT_URL"),
        (
            "az://bucket/a.tar",
            "AZURE_ALLOW_HTTP",
            "AZURE_STORAGE_ENDPOINT",
        ),
    ] {
        let env = [
            (base, server.url.as_str()),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("AWS_SKIP_SIGNATURE", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_SKIP_SIGNATURE", "true"),
        ];
        let options = RemoteOptions {
            env: env
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            ..options()
        };
        let started = Instant::now();
        let message = resolve(url, &options).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5), "{message}");
        assert!(
            message.contains(url) && message.contains(variable),
            "{message}"
        );
        assert!(message.contains("begins with http://"), "{message}");
    }
}
