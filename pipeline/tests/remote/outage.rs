use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qf_pipeline::config::OnBad;
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::write::ShardFormat;
use qf_pipeline::{Loader, LoaderConfig, PipelineError};

use crate::custom::{collect_warnings, warnings, Custom, Pace, Reply};
use crate::loader::{config, put, run, write_shards};
use crate::server::{Fault, Server};
use crate::{bytes, one, options, read, resolve, PART};

const SIZE: usize = 6 * PART + 7;

/// A server that is down while the flag is set.
fn with_outages(content: Vec<u8>) -> (Custom, Arc<AtomicBool>) {
    let is_down = Arc::new(AtomicBool::new(false));
    let (down, turn) = (is_down.clone(), AtomicUsize::new(0));
    let server = Custom::start(move |head| {
        if !down.load(Ordering::Relaxed) {
            return Reply::file(head, &content);
        }
        // All that an outage looks like.
        match turn.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Reply::new(503, ""),
            1 => Reply::new(200, "").pace(Pace::Reset),
            _ => Reply::new(502, ""),
        }
    });
    (server, is_down)
}

#[test]
fn an_outage_is_said_once_at_its_start_and_once_at_its_end() {
    collect_warnings();
    let (server, is_down) = with_outages(bytes(SIZE));
    let options = RemoteOptions {
        warn_after: Duration::from_millis(200),
        ..options()
    };
    let shards: Vec<_> = (0..4)
        .map(|number| one(&format!("{}/{number}.tar", server.url), &options))
        .collect();
    let mut readers: Vec<_> = shards
        .iter()
        .map(|shard| shard.open(&Stop::default()).unwrap())
        .collect();
    for reader in &mut readers {
        reader.read_exact(&mut [0; 100]).unwrap();
    }
    is_down.store(true, Ordering::Relaxed);
    let up = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(800));
        is_down.store(false, Ordering::Relaxed);
    });
    // All at once, in pieces that reach beyond what was read ahead.
    let rest: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            std::thread::spawn(move || {
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).map(|_| rest)
            })
        })
        .collect();
    for rest in rest {
        assert!(rest.join().unwrap().unwrap() == bytes(SIZE)[100..]);
    }
    up.join().unwrap();
    // A second outage has its own lines; a short one none.
    assert!(shards
        .iter()
        .all(|shard| read(shard).unwrap() == bytes(SIZE)));
    let lines = warnings(&server.url);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("trying on for up to 10 s"), "{lines:#?}");
    assert!(lines[1].contains("going on after"), "{lines:#?}");
}

#[test]
fn a_trickle_is_an_error_after_the_time_of_an_outage() {
    collect_warnings();
    for (pace, said) in [
        (Pace::Trickle(2, Duration::from_millis(50)), "bytes in"),
        (Pace::Never, "no answer within"),
    ] {
        let server = Custom::start(move |head| match head.method.as_str() {
            "HEAD" => Reply::new(200, bytes(SIZE)),
            _ => Reply::file(head, &bytes(SIZE)).pace(pace),
        });
        let options = RemoteOptions {
            stall_timeout: Duration::from_millis(300),
            outage: Duration::from_millis(1000),
            warn_after: Duration::from_millis(200),
            ..options()
        };
        let shard = one(&format!("{}/a.tar", server.url), &options);
        let start = Instant::now();
        let message = read(&shard).unwrap_err().to_string();
        let took = start.elapsed();
        assert!(
            message.contains(said) && message.contains("requests in 1."),
            "{message}"
        );
        assert!(took < Duration::from_secs(3), "{took:?}");
        let lines = warnings(&server.url);
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }
}

#[test]
fn slow_but_fast_enough_is_no_fault() {
    collect_warnings();
    let server = Custom::start(|head| {
        let pace = Pace::Trickle(200, Duration::from_millis(20));
        Reply::file(head, &bytes(8000)).pace(pace)
    });
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(300),
        outage: Duration::from_millis(600),
        warn_after: Duration::from_millis(100),
        ..options()
    };
    // 8,000 bytes a second and at least 1,024: some 0.8 s, which is longer than an outage may last.
    let shard = one(&format!("{}/a.tar", server.url), &options);
    assert!(read(&shard).unwrap() == bytes(8000));
    assert_eq!(warnings(&server.url), [""; 0]);
    assert_eq!(server.count("a.tar"), 2);
}

#[test]
fn permanent_answers_are_not_asked_for_again() {
    for status in [400, 401, 403, 404, 405, 410, 416, 451, 501, 505, 511] {
        let server = Custom::start(move |_| Reply::new(status, ""));
        let start = Instant::now();
        let message = resolve(&format!("{}/a.tar", server.url), &options()).unwrap_err();
        assert!(message.contains(&status.to_string()), "{message}");
        assert!(start.elapsed() < Duration::from_secs(2), "{status}");
        // HEAD, and GET in case it is only that.
        assert_eq!(server.count("a.tar"), 2, "{status}");
    }
}

#[test]
fn resolving_ends_with_its_stop() {
    let server = Custom::start(|_| Reply::new(200, "").pace(Pace::Never));
    let stop = Arc::new(AtomicBool::new(false));
    let options = RemoteOptions {
        stall_timeout: Duration::from_secs(600),
        outage: Duration::from_secs(600),
        stop: Stop::within(stop.clone()),
        ..options()
    };
    let url = format!("{}/a.tar", server.url);
    let waiting = std::thread::spawn(move || resolve(&url, &options).is_err());
    while server.requests().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    let start = Instant::now();
    assert!(waiting.join().unwrap());
    assert!(start.elapsed() < Duration::from_secs(1));
}

fn tokenizer() -> Arc<CaptionTokenizer> {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"];
    Arc::new(CaptionTokenizer::from_vocab(words.map(String::from).to_vec()).unwrap())
}

/// Batches before the end, and what ended them; `meanwhile` comes when all is open.
fn until_the_end(
    config: LoaderConfig,
    shards: &[ShardLocation],
    meanwhile: impl FnOnce(),
) -> (usize, u64, Option<PipelineError>) {
    let mut loader = Loader::builder(config)
        .shards(shards.to_vec())
        .batches(tokenizer())
        .unwrap();
    meanwhile();
    let mut batches = 0;
    loop {
        match loader.next_batch() {
            Ok(Some(_)) => batches += 1,
            Ok(None) => return (batches, loader.state().counters.bad_shards, None),
            Err(error) => return (batches, loader.state().counters.bad_shards, Some(error)),
        }
    }
}

fn skipping(shuffle: ShuffleMode) -> LoaderConfig {
    LoaderConfig {
        on_bad_shard: OnBad::Skip,
        on_bad_sample: OnBad::Skip,
        epochs: 1,
        // Nothing is read so far ahead that it does not notice.
        read_ahead_bytes: 1,
        shuffle_buffer_bytes: 1,
        ..config(shuffle)
    }
}

/// `on_bad_shard` goes on without a shard that is gone, and not without a store that is.
#[test]
fn a_vanished_shard_costs_itself_and_a_lost_store_ends_the_run() {
    for with_index in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        write_shards(folder.path(), ShardFormat::Tar);
        let server = Server::start();
        let urls = put(&server, folder.path(), with_index);
        let options = RemoteOptions {
            outage: Duration::from_millis(300),
            ..options()
        };
        let resolved = |urls: &[String]| -> Vec<ShardLocation> {
            urls.iter().map(|url| one(url, &options)).collect()
        };
        let remote = resolved(&urls);
        server.remove("s-1.tar");
        let (batches, bad, error) = until_the_end(skipping(ShuffleMode::None), &remote, || {});
        assert!(error.is_none(), "{error:?}");
        // 20 and 31 samples of 64.
        assert_eq!((batches, bad), (10, 1), "index: {with_index}");

        // The same of files.
        let local = write_shards(folder.path(), ShardFormat::Tar);
        let mut loader = Loader::builder(skipping(ShuffleMode::None))
            .shards(local)
            .samples()
            .unwrap();
        std::fs::remove_file(folder.path().join("s-2.tar")).unwrap();
        let read = std::iter::from_fn(|| loader.next_sample().unwrap()).count();
        assert!((33..64).contains(&read), "{read}");
        write_shards(folder.path(), ShardFormat::Tar);

        let urls = put(&server, folder.path(), with_index);
        let remote = resolved(&urls);
        let goes_down = || {
            for name in ["s-0.tar", "s-1.tar", "s-2.tar"] {
                server.script(name, &[Fault::Busy(0); 10_000]);
                server.script(&format!("{name}.qfidx"), &[Fault::Busy(0); 10_000]);
            }
        };
        let start = Instant::now();
        let (_, _, error) = until_the_end(skipping(ShuffleMode::None), &remote, goes_down);
        let error = error.expect("an error");
        assert!(matches!(error, PipelineError::StoreLost(_)), "{error}");
        assert!(error.to_string().contains("503"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

/// Batches through outages are those without, and their states too.
#[test]
fn the_state_is_exact_across_an_outage() {
    let folder = tempfile::tempdir().unwrap();
    let local = write_shards(folder.path(), ShardFormat::TarZst);
    let expected = run(config(ShuffleMode::Buffer), &local, None);
    let is_down = Arc::new(AtomicBool::new(false));
    let (down, root) = (is_down.clone(), folder.path().to_path_buf());
    let server = Custom::start(move |head| {
        let path = root.join(Path::new(head.target.trim_start_matches('/')));
        match std::fs::read(path) {
            _ if down.load(Ordering::Relaxed) => Reply::new(503, ""),
            Ok(content) => Reply::file(head, &content),
            Err(_) => Reply::new(404, ""),
        }
    });
    let options = RemoteOptions {
        part_bytes: 4096,
        ..options()
    };
    let remote: Vec<_> = local
        .iter()
        .map(|shard| one(&format!("{}/{}", server.url, shard.base_name()), &options))
        .collect();
    let flapping = Arc::new(AtomicBool::new(true));
    let flaps = flapping.clone();
    let flap = std::thread::spawn(move || {
        while flaps.load(Ordering::Relaxed) {
            is_down.fetch_xor(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(30));
        }
        is_down.store(false, Ordering::Relaxed);
    });
    let seen = run(config(ShuffleMode::Buffer), &remote, None);
    flapping.store(false, Ordering::Relaxed);
    flap.join().unwrap();
    assert!(seen == expected);
}
