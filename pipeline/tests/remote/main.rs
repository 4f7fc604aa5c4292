//! Remote shards: against servers that misbehave, a cache that others use too, and S3.

/// Azurite's blobs.
mod azure;
#[path = "../../../tests/azurite.rs"]
mod azurite;
/// The folder of this machine that shards are kept in.
mod cache;
/// A web server that does what a closure says, and what is logged meanwhile.
mod custom;
/// Everything that can go wrong on the way.
mod faults;
/// Shards without an index, whatever the server says of one.
mod index;
/// A loader over them.
mod loader;
/// Servers that are down, silent or slow.
mod outage;
/// moto's S3 server.
mod renewal;
mod s3;
/// Redirects, signed URLs and tokens: who gets to see what.
mod secrets;
/// A web server that misbehaves as told.
mod server;
#[path = "../../../tests/test_data.rs"]
mod test_data;

use std::io::Read;
use std::time::Duration;

use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::{resolve_shards_with, ShardLocation};
use qf_pipeline::stop::Stop;

const PART: usize = 16 << 10;

/// Bytes that differ from place to place.
fn bytes(count: usize) -> Vec<u8> {
    let words = (0..count as u64 / 8 + 1)
        .map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.flatten().take(count).collect()
}

/// Small parts, short waits.
fn options() -> RemoteOptions {
    RemoteOptions {
        parallel_requests: 4,
        part_bytes: PART,
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(5),
        outage: Duration::from_secs(10),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        ..RemoteOptions::default()
    }
}

fn resolve(spec: &str, options: &RemoteOptions) -> Result<Vec<ShardLocation>, String> {
    resolve_shards_with(&[spec], options).map_err(|error| qf_pipeline::error::full_message(&error))
}

fn one(url: &str, options: &RemoteOptions) -> ShardLocation {
    resolve(url, options).unwrap().remove(0)
}

fn read(shard: &ShardLocation) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    shard.open(&Stop::default())?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
