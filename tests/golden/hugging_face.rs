//! Position tables, and files of Hugging Face models.

use super::*;

#[test]
fn golden_position_interpolation() {
    let Some(folder) = folder("golden_position_interpolation") else {
        return;
    };
    for golden in goldens("golden_position_interpolation", &folder, is_processing) {
        let tensors = golden.tensors();
        let positions = &tensors["pos.in"];
        let mut line = Line::new(&format!("{} positions", golden.name));
        for (name, rule, input) in [
            (
                "pos.eva_4to7",
                PositionInterpolation::Eva,
                positions.shallow_clone(),
            ),
            (
                "pos.clip_4to7",
                PositionInterpolation::Clip,
                positions.squeeze_dim(0),
            ),
        ] {
            let got = interpolate_positions(&input, 7, rule).unwrap();
            line.output(name, &got, &tensors[name], OUTPUT_TOLERANCE);
        }
        line.finish();
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The sizes of a Hugging Face BERT or Q-Former configuration.
fn hugging_face_sizes(json: &Value, eps_key: &str) -> QformerConfig {
    let size = |key: &str| json[key].as_i64().unwrap();
    QformerConfig {
        hidden: size("hidden_size"),
        layers: size("num_hidden_layers"),
        heads: size("num_attention_heads"),
        intermediate: size("intermediate_size"),
        vocab_size: size("vocab_size"),
        max_positions: size("max_position_embeddings"),
        dec_token_id: size("vocab_size") - 1,
        eps: json[eps_key].as_f64().unwrap(),
        ..ModelConfig::tiny().qformer
    }
}

#[test]
fn golden_start_from_bert() {
    let Some(folder) = folder("golden_start_from_bert") else {
        return;
    };
    let Some(folder) = part_of(&folder, "hf_bert_tiny", "golden_start_from_bert") else {
        return;
    };
    let sizes = hugging_face_sizes(&read_json(&folder.join("config.json")), "layer_norm_eps");
    let expected = read_safetensors(&folder.join("expected_qformer_init.safetensors")).unwrap();
    let expected = under(&expected, "expect.");
    assert!(expected.len() > 20);
    // One more entry than the file has, as for `[DEC]`, and just as many.
    for extra in [0, 1] {
        for file in ["model.safetensors", "model_legacy_gamma_beta.safetensors"] {
            let config = ModelConfig {
                qformer: QformerConfig {
                    vocab_size: sizes.vocab_size + extra,
                    ..sizes.clone()
                },
                ..ModelConfig::tiny()
            };
            let mut model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
            let bert = WeightsFile::open(&folder.join(file)).unwrap();
            let report = load_into(&mut model, &bert, BERT).unwrap();
            assert!(report.kept.is_empty());
            let mut line = Line::new(&format!("hf_bert_tiny/{file} + {extra}"));
            for (name, expected) in &expected {
                let got = &model.params().get(name).unwrap().tensor.detach();
                let known = got.narrow(0, 0, expected.size()[0]);
                line.output(name, &known, expected, 0.0);
            }
            // The new word is fresh, and has no bias.
            let value = |name: &str| model.params().get(name).unwrap().tensor.detach();
            if extra == 1 {
                let words = value("Qformer.bert.embeddings.word_embeddings.weight");
                let word = words.get(sizes.vocab_size);
                let std = scalar(&word.std(true));
                assert!((0.01..0.03).contains(&std), "{std}");
                let bias = value("Qformer.cls.predictions.bias");
                assert_eq!(bias.double_value(&[sizes.vocab_size]), 0.0);
            }
            // So is what BERT does not have, biases zero.
            let cross = "Qformer.bert.encoder.layer.0.crossattention.self.key";
            let std = scalar(&value(&format!("{cross}.weight")).std(true));
            assert!((0.018..0.022).contains(&std), "{std}");
            assert_eq!(largest(&value(&format!("{cross}.bias"))), 0.0);
            line.finish();
        }
    }
}

#[test]
fn golden_hugging_face_inference() {
    let Some(folder) = folder("golden_hugging_face_inference") else {
        return;
    };
    let Some(folder) = part_of(&folder, "hf_tiny", "golden_hugging_face_inference") else {
        return;
    };
    let file = WeightsFile::open(&folder).unwrap();
    let config = read_config(&folder, &file).unwrap();
    let mut model = Blip2Qformer::new(&config, device(), 0).unwrap();
    // The file has no temperature and no language-model head, and neither is needed here.
    let strict = Part::Model(Absent::default());
    let error = load_into(&mut model, &file, strict).unwrap_err();
    assert!(
        error.to_string().contains("`temp` has no counterpart"),
        "{error}"
    );
    let absent = Absent {
        head: true,
        ..Absent::default()
    };
    let report = load_into(&mut model, &file, Part::Model(absent)).unwrap();
    assert_eq!(report.kept.len(), 6);

    let io = read_safetensors(&folder.join("golden_io.safetensors")).unwrap();
    let mut line = Line::new("hf_tiny");
    let input = |name: &str| io[name].to_device(device());
    let images = model.encode_image(&input("pixel_values")).unwrap();
    let (ids, mask) = (&input("input_ids"), &input("attention_mask"));
    let image_feats = model.image_features(&images).unwrap();
    let text_feats = model.text_features(ids, mask).unwrap();
    let scores = image_feats
        .matmul(&text_feats.transpose(0, 1)) // [images, Q, texts]
        .max_dim(1, false)
        .0;
    for (name, got) in [
        ("vision_last_hidden", model.image_embeds(&images).unwrap()),
        ("itc_image_embeds", image_feats),
        ("itc_text_embeds", text_feats),
        ("itc_logits_per_image", scores),
        (
            "itm_logits",
            model
                .itm_logits(&images, ids, mask)
                .unwrap()
                .both()
                .shallow_clone(),
        ),
    ] {
        line.output(name, &got, &io[name], OUTPUT_TOLERANCE);
    }
    line.finish();
}
