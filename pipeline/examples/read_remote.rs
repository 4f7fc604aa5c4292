//! Reads shards to the end and says how fast that was:
//! `cargo run --release --example read_remote -- 's3://bucket/x-*.tar' [READERS]`
//!
//! Credentials and endpoints come from the environment, as `qf_pipeline::remote` describes.

use std::io::Read;
use std::time::Instant;

use qf_pipeline::process::{cpu_time, peak_rss_bytes};
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::resolve_shards_with;
use qf_pipeline::stop::Stop;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let spec = arguments
        .next()
        .ok_or("usage: read_remote SHARDS [READERS]")?;
    let readers: usize = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let start = Instant::now();
    let shards = resolve_shards_with(&[spec], &RemoteOptions::from_vars(std::env::vars_os()))?;
    println!(
        "{} shards, resolved in {:.3} s",
        shards.len(),
        start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    let read = &|reader: usize| -> std::io::Result<u64> {
        let (mut total, mut buffer) = (0, vec![0; 256 << 10]);
        for shard in shards.iter().skip(reader).step_by(readers.max(1)) {
            let mut bytes = shard.open(&Stop::default())?;
            loop {
                match bytes.read(&mut buffer)? {
                    0 => break,
                    count => total += count as u64,
                }
            }
        }
        Ok(total)
    };
    let totals: std::io::Result<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..readers)
            .map(|reader| scope.spawn(move || read(reader)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a reader does not panic"))
            .collect()
    });
    let total = totals?.iter().sum::<u64>() as f64 / 1e6;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{total:.1} MB in {seconds:.3} s: {:.1} MB/s; CPU {:.2} s, peak RSS {} MB",
        total / seconds,
        cpu_time().unwrap_or_default().as_secs_f64(),
        peak_rss_bytes().unwrap_or(0) / 1_000_000
    );
    Ok(())
}
