//! The seed decides dropout and negatives. Alone in its process: torch's generator is one for all
//! threads.

use qf_model::config::FeaturesConfig;
use qf_model::{
    Blip2Qformer, ModelConfig, NegativeSampling, SingleProcess, StepInput, VisionConfig,
};
use tch::{Device, Kind, Tensor};

#[test]
fn equal_seeds_give_equal_steps_and_others_do_not() {
    let mut config = ModelConfig::tiny();
    config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
    config.qformer.encoder_width = 24;
    config.qformer.vocab_size = 50;
    config.qformer.dec_token_id = 49;
    config.qformer.dropout = 0.1;
    let model = Blip2Qformer::new(&config, Device::Cpu, 3).unwrap();
    let images = Tensor::randn([6, 7, 24], (Kind::Float, Device::Cpu));
    let images = model.encode_image(&images).unwrap();
    let ids = Tensor::randint_low(1, 48, [6, 9], (Kind::Int64, Device::Cpu));
    let step = |seed: i64| {
        qf_model::device::seed(seed, Device::Cpu).unwrap();
        let input = StepInput {
            image_embeds: &images,
            token_ids: &ids,
            attention_mask: &ids.ones_like(),
            image_ids: None,
        };
        let negatives = NegativeSampling::Multinomial;
        let output = model
            .forward_losses(&input, negatives, &SingleProcess, true)
            .unwrap();
        output.loss.backward();
        let gradients: Vec<Tensor> = model
            .params()
            .trainable()
            .map(|param| {
                let gradient = param.tensor.grad().copy();
                param.tensor.shallow_clone().zero_grad();
                gradient
            })
            .collect();
        (output.loss.double_value(&[]), gradients)
    };
    let (first, again, other) = (step(1), step(1), step(2));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
}
