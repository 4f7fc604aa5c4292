//! The threads of remote reads end with the last remote shard, also while a server keeps silent. In a
//! process of its own, where no other test holds them.
#![cfg(target_os = "linux")]

#[path = "remote/server.rs"]
#[allow(dead_code)] // Of the faults, one.
mod server;

use std::io::Read;
use std::time::{Duration, Instant};

use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::resolve_shards_with;
use qf_pipeline::stop::Stop;
use server::{Fault, Server};

/// Threads of this process that make requests.
fn request_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("qf-remote")).count()
}

#[test]
fn threads_end_with_the_last_shard() {
    let server = Server::start();
    let url = server.put("a.tar", vec![7; 1000], Some("one"));
    assert_eq!(request_threads(), 0);
    for _ in 0..2 {
        server.script("a.tar", &[Fault::Hang(10)]);
        let options = RemoteOptions::default();
        let first = resolve_shards_with(&[&url], &options).unwrap();
        let second = resolve_shards_with(&[&url], &options).unwrap();
        assert!(
            (2..=6).contains(&request_threads()),
            "{} threads",
            request_threads()
        );
        let mut reader = first[0].open(&Stop::default()).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        server.wait_hanging(1);
        drop((first, second));
        assert!(request_threads() >= 2, "the reader still needs them");
        let start = Instant::now();
        drop(reader);
        assert!(start.elapsed() < Duration::from_secs(1));
        server.wait_none_hanging();
        // A joined thread may be listed a moment longer.
        while request_threads() > 0 {
            assert!(start.elapsed() < Duration::from_secs(2), "threads stay");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
