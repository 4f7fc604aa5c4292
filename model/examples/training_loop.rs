//! A training loop of one's own: other weights of the losses, another schedule:
//!
//! ```sh
//! cargo run -p qf-model --example training_loop -- 'scenes-*.tar' vocab.txt 40
//! ```

use std::error::Error;
use std::sync::Arc;

use qf_model::device::{open_device, DeviceChoice};
use qf_model::feed::DeviceFeed;
use qf_model::host::batch_allocator;
use qf_model::{AdamW, AdamWConfig, Blip2Qformer, ModelConfig, NegativeSampling};
use qf_model::{SingleProcess, StepInput};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shards, vocabulary, steps] = arguments.as_slice() else {
        return Err("usage: training_loop SHARDS VOCABULARY STEPS".into());
    };
    let (steps, device) = (steps.parse::<u64>()?, open_device(DeviceChoice::Auto)?);
    let tokenizer = Arc::new(CaptionTokenizer::from_file(vocabulary.as_ref())?);
    let mut config = ModelConfig::tiny();
    config.qformer.vocab_size = i64::try_from(tokenizer.vocab_size())?;
    config.qformer.dec_token_id = tokenizer.dec_id();
    let model = Blip2Qformer::new(&config, device, 42)?;
    let mut optimizer = AdamW::new(model.params(), &AdamWConfig::default())?;
    let loader = Loader::builder(LoaderConfig::default()) // Batches of 16, without end.
        .shards(resolve_shards(&[shards])?)
        .allocator(batch_allocator(device))
        .batches(tokenizer)?;
    let mut feed = DeviceFeed::start(loader, device, None)?;
    for step in 0..steps {
        let batch = feed.next_batch()?.expect("epochs without end");
        let image_embeds = model.encode_image(&batch.input.images)?;
        let input = StepInput {
            image_embeds: &image_embeds,
            token_ids: &batch.input.token_ids,
            attention_mask: &batch.input.attention_mask,
            image_ids: None,
        };
        let negatives = NegativeSampling::Multinomial;
        let output = model.forward_losses(&input, negatives, &SingleProcess, true)?;
        let generation = output.loss_lm.f_mul_scalar(2.0)?;
        let loss = output
            .loss_itc
            .f_add(&output.loss_itm)?
            .f_add(&generation)?;
        optimizer.zero_grad()?;
        loss.f_backward()?;
        let warmup = ((step + 1) as f64 / 10.0).min(1.0);
        optimizer.step(1e-3 * warmup)?;
        model.clamp_temperature()?;
        println!("{step}\t{:.4}", loss.f_double_value(&[])?);
    }
    Ok(())
}
