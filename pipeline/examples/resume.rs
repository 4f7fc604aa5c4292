//! Takes two batches and saves where it stands. The next call continues there, until the epoch is over:
//!
//! ```sh
//! cargo run -p qf-pipeline --example resume -- 'scenes-*.tar' vocab.txt state.json
//! ```

use std::error::Error;
use std::fs;
use std::io::Write;
use std::sync::Arc;

use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::loader::LoaderState;
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, vocabulary, state] = arguments.as_slice() else {
        return Err("usage: resume SHARDS VOCABULARY STATE".into());
    };
    let tokenizer = Arc::new(CaptionTokenizer::from_file(vocabulary.as_ref())?);
    let config = LoaderConfig {
        batch_size: 4,
        epochs: 1,
        ..LoaderConfig::default()
    };
    // Other data, another seed or other settings of the order are an error that names both.
    let saved: Option<LoaderState> = match fs::read(state) {
        Ok(json) => Some(serde_json::from_slice(&json)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let mut loader = Loader::builder(config)
        .shards(resolve_shards(&[shards])?)
        .resume(saved)
        .batches(tokenizer)?;
    for _ in 0..2 {
        let Some(batch) = loader.next_batch()? else {
            println!("the epoch is over");
            break;
        };
        for (id, caption) in batch.ids.iter().zip(&batch.captions) {
            println!("{id}\t{caption}");
        }
    }
    // The state after the last batch that was taken; what the loader read ahead does not count.
    let mut file = AtomicFile::create(state)?;
    file.write_all(&serde_json::to_vec(loader.state())?)?;
    file.commit()?;
    Ok(())
}
