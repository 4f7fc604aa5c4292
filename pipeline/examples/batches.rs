//! Iterates over the batches of an epoch:
//!
//! ```sh
//! cargo run -p qf-pipeline --example batches -- 'scenes-*.tar' vocab.txt
//! ```

use std::error::Error;
use std::sync::Arc;

use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, vocabulary] = arguments.as_slice() else {
        return Err("usage: batches SHARDS VOCABULARY".into());
    };
    let tokenizer = Arc::new(CaptionTokenizer::from_file(vocabulary.as_ref())?);
    let config = LoaderConfig {
        batch_size: 4,
        image_size: 224,
        epochs: 1,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::builder(config)
        .shards(resolve_shards(&[shards])?)
        .batches(tokenizer)?;
    while let Some(batch) = loader.next_batch()? {
        // u8 `[B, 3, S, S]`, not yet normalised; token ids and mask are `[B, T]`.
        let pixels = batch.pixels().shape();
        let tokens = (batch.tokens.len(), batch.tokens.text_len());
        println!("epoch {}: {pixels:?} {tokens:?}", batch.epoch);
        // Dropping the batch gives its pixel buffer back to the loader.
        for (id, caption) in batch.ids.iter().zip(&batch.captions) {
            println!("{id}\t{caption}");
        }
    }
    let counters = &loader.state().counters;
    println!("read {}, skipped {:?}", counters.read, counters.skipped);
    Ok(())
}
