//! Reads any member of samples, in stored order and as it lies in the shard:
//!
//! ```sh
//! cargo run -p qf-pipeline --example members -- 'scenes-*.tar' json
//! ```

use std::error::Error;

use qf_pipeline::order::ShuffleMode;
use qf_pipeline::source::resolve_shards;
use qf_pipeline::{Loader, LoaderConfig, MemberData};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, name] = arguments.as_slice() else {
        return Err("usage: members SHARDS NAME (an extension, or an Arrow column)".into());
    };
    let config = LoaderConfig {
        // Beside images and captions, only members that are named here are read.
        extra_members: vec![name.clone()],
        shuffle: ShuffleMode::None,
        epochs: 1,
        ..LoaderConfig::default()
    };
    let mut samples = Loader::builder(config)
        .shards(resolve_shards(&[shards])?)
        .samples()?;
    while let Some(sample) = samples.next_sample()? {
        match sample.member(name).map(|member| &member.data) {
            Some(MemberData::Bytes(bytes)) => println!("{}\t{} bytes", sample.id, bytes.len()),
            Some(MemberData::Text(texts)) => println!("{}\t{texts:?}", sample.id),
            None => println!("{}\tno {name}", sample.id),
        }
    }
    Ok(())
}
