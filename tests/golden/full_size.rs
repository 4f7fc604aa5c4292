//! Networks of the published size, their parameters made by a hash.

use super::*;

/// FNV-1a, 32 bits.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The file's hash of flat index `index` of the tensor `seed` stands for.
fn hash(seed: u32, index: u32) -> u32 {
    let mut hash = index.wrapping_mul(2_654_435_761).wrapping_add(seed);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The file's numbers in [-1, 1) for tensor `name`, through `value`.
fn hashed(name: &str, shape: &[i64], value: impl Fn(f32) -> f32) -> Tensor {
    let seed = fnv1a(name);
    let count = shape.iter().product::<i64>() as u32;
    let values: Vec<f32> = (0..count)
        .map(|index| value((hash(seed, index) >> 8) as f32 / 8_388_608.0 - 1.0))
        .collect();
    Tensor::from_slice(&values).view(shape)
}

fn hashed_parameter(name: &str, shape: &[i64]) -> Tensor {
    if name == "temp" {
        Tensor::from(0.07f32)
    } else if name.ends_with("LayerNorm.weight") || name == "ln_vision.weight" {
        hashed(name, shape, |r| 1.0 + 0.1 * r)
    } else if name.ends_with("bias") {
        hashed(name, shape, |r| 0.05 * r)
    } else {
        hashed(name, shape, |r| 0.0625 * r)
    }
}

/// The step whose inputs a golden of full size names.
fn full_size_step(golden: &Golden) -> Step {
    let json = &golden.json;
    let (batch, length) = (golden.size("batch"), golden.size("txt_len"));
    let width = golden.size("enc_width");
    let images = hashed(
        "input.vit_output",
        &[batch, golden.size("img_tokens"), width],
        |r| 1.5 * r,
    );
    let seed = fnv1a("input.input_ids");
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in 0..batch {
        let tokens = json["config"]["lengths"][row as usize].as_i64().unwrap();
        for column in 0..length {
            let drawn = 1000 + i64::from(hash(seed, (row * length + column) as u32) % 20_000);
            ids.push(match column {
                0 => golden.size("cls_id"),
                _ if column == tokens - 1 => golden.size("sep_id"),
                _ if column >= tokens => golden.size("pad_id"),
                _ => drawn,
            });
            mask.push(i64::from(column < tokens));
        }
    }
    let here = |tensor: Tensor| tensor.to_device(device());
    let neg = |key: &str| here(numbers(&json["neg"][key]).to_kind(Kind::Int64));
    Step {
        vit_output: here(images).set_requires_grad(true),
        token_ids: here(Tensor::from_slice(&ids).view([batch, length])),
        attention_mask: here(Tensor::from_slice(&mask).view([batch, length])),
        negative_images: neg("neg_image_idx"),
        negative_texts: neg("neg_text_idx"),
    }
}

/// Losses, and numbers of the outputs.
fn full_size_outputs(line: &mut Line, golden: &Golden, result: &StepResult) {
    let (json, output) = (&golden.json, &result.output);
    for (name, got) in [
        ("loss", &output.loss),
        ("loss_itc", &output.loss_itc),
        ("loss_i2t", &output.loss_i2t),
        ("loss_t2i", &output.loss_t2i),
        ("loss_itm", &output.loss_itm),
        ("loss_lm", &output.loss_lm),
    ] {
        let expected = json["losses"][name].as_f64().unwrap();
        line.loss(name, scalar(got), expected, FULL_TOLERANCE);
    }
    let first = |tensor: Tensor| tensor.narrow(0, 0, 8);
    let vocab = golden.size("vocab");
    for (name, got) in [
        ("sim_i2t", output.sim_i2t.view(-1)),
        ("sim_t2i", output.sim_t2i.reshape(-1)),
        ("itm_logits", output.itm_logits.view(-1)),
        (
            "image_embeds_0_0_8",
            first(result.image_embeds.get(0).get(0)),
        ),
        ("image_feats_0_0_8", first(output.image_feats.get(0).get(0))),
        ("text_feat_0_8", first(output.text_feat.get(0))),
        ("text_feat_1_8", first(output.text_feat.get(1))),
    ] {
        line.output(name, &got, &numbers(&json[name]), FULL_TOLERANCE);
    }
    if let (Some(hidden), Some(lm_logits)) = (&output.hidden, &result.lm_logits) {
        for (name, got) in [
            ("hidden_image_1_31_8", first(hidden.image.get(1).get(31))),
            ("hidden_text_1_5_8", first(hidden.text.get(1).get(5))),
            ("hidden_itm_5_0_8", first(hidden.itm.get(5).get(0))),
            ("hidden_itm_0_40_8", first(hidden.itm.get(0).get(40))),
            ("hidden_itg_1_11_8", first(hidden.itg.get(1).get(11))),
            ("lm_logits_0_0_8", first(lm_logits.get(0).get(0))),
            (
                "lm_logits_1_11_tail8",
                lm_logits.get(1).get(11).narrow(0, vocab - 8, 8),
            ),
        ] {
            line.output(name, &got, &numbers(&json[name]), FULL_TOLERANCE);
        }
    }
}

/// Norm, sum and first numbers of a gradient.
fn full_size_gradient(line: &mut Line, name: &str, got: &Tensor, expected: &Value) {
    let got = double(got).reshape(-1);
    if is_key_bias(name) {
        line.note(name, largest(&got), ZERO_GRADIENT_TOLERANCE);
        return;
    }
    let expected_norm = expected["norm"].as_f64().unwrap();
    let error = (norm(&got) - expected_norm).abs() / expected_norm;
    line.worst_gradient = line.worst_gradient.max(error);
    line.note(name, error, FULL_GRADIENT_TOLERANCE);
    // A sum may cancel: measured against the norm as well.
    if let Some(sum) = expected["sum"].as_f64() {
        let got_sum = scalar(&got.sum(Kind::Double));
        let error = (got_sum - sum).abs() / (sum.abs() + expected_norm);
        line.note(&format!("{name} sum"), error, FULL_GRADIENT_TOLERANCE);
    }
    // A head may be far smaller than the rest.
    let head = numbers(&expected["head"]);
    let difference = norm(&(got.narrow(0, 0, head.size()[0]) - &head));
    let typical = expected_norm / (got.numel() as f64).sqrt();
    let error = difference / (norm(&head) + typical);
    line.note(&format!("{name} head"), error, FULL_GRADIENT_TOLERANCE);
}

#[test]
fn golden_full_size() {
    let Some(folder) = folder("golden_full_size") else {
        return;
    };
    for golden in goldens("golden_full_size", &folder, is_full_size) {
        let json = &golden.json;
        let mut model = Blip2Qformer::new(&model_config(&golden), device(), 0).unwrap();
        check_param_order(&model, json);
        let params: Tensors = model
            .params()
            .named_parameters()
            .iter()
            .map(|p| (p.name.clone(), hashed_parameter(&p.name, &p.tensor.size())))
            .collect();
        model
            .params_mut()
            .load(&params, &golden.name, LoadScope::All)
            .unwrap();

        let step = full_size_step(&golden);

        let mut line = Line::new(&format!("{} (inputs)", golden.name));
        for (name, values) in json["sample_values"].as_object().unwrap() {
            let expected = numbers(values);
            let got = match name.as_str() {
                "input.vit_output" => &step.vit_output,
                "input.input_ids" => &step.token_ids,
                name => &params[name],
            };
            let got = got.detach().view(-1).narrow(0, 0, expected.size()[0]);
            line.output(name, &got.to_kind(Kind::Double), &expected, 1e-7);
        }
        line.finish();

        for (label, compute) in COMPUTE {
            let mut line = Line::new(&format!("{} ({label})", golden.name));
            model.set_compute(compute);
            zero_grad(&model);
            let images = step.vit_output.detach().copy().set_requires_grad(true);
            let result = step.run(&model, &images, &SingleProcess);
            result.output.loss.backward();
            full_size_outputs(&mut line, &golden, &result);
            let gradients = json["grad"].as_object().unwrap();
            assert_eq!(gradients.len(), params.len());
            let expected = &json["grad_input_vit_output"];
            full_size_gradient(&mut line, "input.vit_output", &images.grad(), expected);
            for param in model.params().named_parameters() {
                let expected = &gradients[&param.name];
                full_size_gradient(&mut line, &param.name, &param.tensor.grad(), expected);
            }
            line.finish();
        }
    }
}
