use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use qf_pipeline::remote::{CacheOptions, RemoteOptions};
use qf_pipeline::stop::Stop;

use crate::server::{Fault, Server};
use crate::{bytes, one, options, read, PART};

const SIZE: usize = 3 * PART + 5;

fn cached(dir: &Path, max_bytes: u64) -> RemoteOptions {
    let dir = dir.to_path_buf();
    RemoteOptions {
        cache: Some(CacheOptions { dir, max_bytes }),
        ..options()
    }
}

/// Files of the cache with this ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect()
}

#[test]
fn a_shard_is_fetched_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let url = server.put("a.tar", bytes(SIZE), Some("one"));
    let options = cached(dir.path(), 1 << 20);
    let shard = one(&url, &options);
    // A range alone is no reason to fetch all.
    let range = |from: usize, to: usize| {
        let mut found = Vec::new();
        let mut reader = shard
            .open_range(from as u64..to as u64, &Stop::default())
            .unwrap();
        reader.read_to_end(&mut found).unwrap();
        assert!(found == bytes(SIZE)[from..to]);
        server.requests("a.tar").len()
    };
    assert_eq!(range(10, 20), 1);
    for _ in 0..3 {
        assert!(read(&shard).unwrap() == bytes(SIZE));
    }
    assert_eq!(range(100, SIZE), 5, "one range and four parts");
    assert!(
        read(&one(&url, &options)).unwrap() == bytes(SIZE),
        "by another resolution"
    );
    assert_eq!(server.requests("a.tar").len(), 5);
    assert_eq!(
        (
            files(dir.path(), "shard").len(),
            files(dir.path(), "part").len()
        ),
        (1, 0)
    );

    // So is its sidecar; and a changed shard is another one.
    server.put("a.tar.qfidx", b"index".to_vec(), Some("i"));
    for _ in 0..2 {
        assert_eq!(
            read(&one(&url, &options).sidecar(".qfidx")).unwrap(),
            b"index"
        );
    }
    assert_eq!(server.requests("a.tar.qfidx").len(), 1);
    let mut changed = bytes(SIZE);
    changed[7] ^= 1;
    server.put("a.tar", changed.clone(), Some("two"));
    assert!(read(&one(&url, &options)).unwrap() == changed);
    // Nothing tells versions apart: not cached.
    let url = server.put("b.tar", bytes(SIZE), None);
    for _ in 0..2 {
        assert!(read(&one(&url, &options)).unwrap() == bytes(SIZE));
    }
    assert_eq!(server.requests("b.tar").len(), 8);
}

#[test]
fn an_unfinished_read_leaves_nothing_unless_only_padding_was_left() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let big = 3 << 20;
    let url = server.put("a.tar", bytes(big), Some("one"));
    let shard = one(&url, &cached(dir.path(), 16 << 20));
    let read_some = |count: usize| {
        shard
            .open(&Stop::default())
            .unwrap()
            .read_exact(&mut vec![0; count])
            .unwrap();
        [
            files(dir.path(), "shard").len(),
            fs::read_dir(dir.path()).unwrap().count(),
        ]
    };
    assert_eq!(read_some(100), [0, 1], "the lock file alone");
    assert_eq!(read_some(big - 10_000), [1, 3]);
    assert!(read(&shard).unwrap() == bytes(big));
}

#[test]
fn a_damaged_file_is_fetched_again() {
    for damage in ["flip", "cut", "notes"] {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let url = server.put("a.tar", bytes(SIZE), Some("one"));
        let options = cached(dir.path(), 1 << 20);
        one(&url, &options).prefetch(&Stop::default()).unwrap();
        let [file] = &files(dir.path(), "shard")[..] else {
            panic!("no file")
        };
        let mut content = fs::read(file).unwrap();
        match damage {
            "flip" => content[100] ^= 1,
            "cut" => content.truncate(SIZE - 1),
            _ => fs::write(file.with_extension("json"), "{}").unwrap(),
        }
        // Another inode and time, as a file of another run has.
        fs::remove_file(file).unwrap();
        fs::write(file, content).unwrap();
        let handle = fs::File::options().write(true).open(file).unwrap();
        handle
            .set_modified(SystemTime::now() - Duration::from_secs(3600))
            .unwrap();
        assert!(
            read(&one(&url, &options)).unwrap() == bytes(SIZE),
            "{damage}"
        );
        assert!(fs::read(file).unwrap() == bytes(SIZE), "{damage}");
        assert_eq!(server.requests("a.tar").len(), 8, "{damage}");
        read(&one(&url, &options)).unwrap();
        assert_eq!(server.requests("a.tar").len(), 8, "{damage}");
    }
}

#[test]
fn room_is_made_by_the_least_recently_opened() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    // Two shards fit, with their notes.
    let options = cached(dir.path(), 2 * SIZE as u64 + 2000);
    let shards: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| one(&server.put(name, bytes(SIZE), Some(name)), &options))
        .into();
    let requests = || ["a", "b", "c", "d"].map(|name| server.requests(name).len());
    let pause = || std::thread::sleep(Duration::from_millis(10));
    for index in [0, 1, 0, 2] {
        assert!(read(&shards[index]).unwrap() == bytes(SIZE));
        pause();
    }
    assert_eq!(requests(), [4, 4, 4, 0]);
    read(&shards[0]).unwrap();
    assert_eq!(requests(), [4, 4, 4, 0], "a was opened after b, and stayed");
    pause();

    // c would be next, and a after it; both are open.
    let mut held: Vec<_> = [0, 2]
        .map(|index| shards[index].open(&Stop::default()).unwrap())
        .into();
    assert!(read(&shards[1]).unwrap() == bytes(SIZE));
    assert_eq!(requests(), [4, 8, 4, 0]);
    assert_eq!(files(dir.path(), "shard").len(), 2);
    for reader in &mut held {
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        assert!(found == bytes(SIZE));
    }
    drop(held);
    read(&shards[3]).unwrap();
    read(&shards[3]).unwrap();
    assert_eq!(requests(), [4, 8, 4, 4]);
    let all = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(all.sum::<u64>() <= 2 * SIZE as u64 + 2000);

    // One that is larger than the cache, and a cache that cannot be written to, do no harm.
    let large = one(&server.put("e", bytes(3 * SIZE), Some("e")), &options);
    assert!(read(&large).unwrap() == bytes(3 * SIZE));
    let gone = tempfile::tempdir().unwrap();
    let shard = one(&format!("{}/a", server.url), &cached(gone.path(), 1 << 20));
    gone.close().unwrap();
    assert!(read(&shard).unwrap() == bytes(SIZE));
}

#[test]
fn one_of_many_readers_fetches() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let url = server.put("a.tar", bytes(SIZE), Some("one"));
    let shard = one(&url, &cached(dir.path(), 1 << 20));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let shard = shard.clone();
            std::thread::spawn(move || assert!(read(&shard).unwrap() == bytes(SIZE)))
        })
        .collect();
    readers
        .into_iter()
        .for_each(|reader| reader.join().unwrap());
    assert_eq!(files(dir.path(), "shard").len(), 1);
    let before = server.requests("a.tar").len();
    assert!(read(&shard).unwrap() == bytes(SIZE));
    assert_eq!(server.requests("a.tar").len(), before);
}

const CHILD: &str = "QF_TEST_CACHE_CHILD";

/// The other process of the next test: reads what the first line says until its input ends.
#[test]
#[allow(clippy::disallowed_methods)] // Told by its parent.
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let [url, count] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    let shard = one(url, &cached(Path::new(&dir), 1 << 20));
    let mut found = vec![0; count.parse().unwrap()];
    let mut reader = shard.open(&Stop::default()).unwrap();
    reader.read_exact(&mut found).unwrap();
    assert!(found == bytes(SIZE)[..found.len()]);
    println!("\nREAD");
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn processes_share_a_cache_and_outlive_each_other() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let url = server.put("a.tar", bytes(SIZE), Some("one"));
    let options = cached(dir.path(), SIZE as u64 + 1000);
    let child = |count: usize| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{url} {count}").unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "READ"));
        child
    };
    // While the other fetches, the store is read; what it leaves when killed is no obstacle.
    server.script("a.tar", &[Fault::Fine; 1]);
    let mut fetching = child(100);
    assert_eq!(files(dir.path(), "part").len(), 1);
    assert!(read(&one(&url, &options)).unwrap() == bytes(SIZE));
    assert_eq!(files(dir.path(), "shard").len(), 0);
    fetching.kill().unwrap();
    fetching.wait().unwrap();
    assert_eq!(files(dir.path(), "part").len(), 1);
    assert!(read(&one(&url, &options)).unwrap() == bytes(SIZE));
    assert_eq!(
        (
            files(dir.path(), "shard").len(),
            files(dir.path(), "part").len()
        ),
        (1, 0)
    );

    // What another process has open stays, until that process is gone.
    let before = server.requests("a.tar").len();
    let mut reading = child(100);
    assert_eq!(
        server.requests("a.tar").len(),
        before,
        "the other read the cache"
    );
    let other = one(&server.put("b.tar", bytes(SIZE), Some("b")), &options);
    read(&other).unwrap();
    assert!(read(&one(&url, &options)).unwrap() == bytes(SIZE));
    assert_eq!(server.requests("a.tar").len(), before);
    reading.kill().unwrap();
    reading.wait().unwrap();
    read(&other).unwrap();
    read(&one(&url, &options)).unwrap();
    assert!(server.requests("a.tar").len() > before);
}
