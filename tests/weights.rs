//! Weights exchanged with PyTorch and transformers, run from the test Python, and `hf://` places on a
//! stand-in of the hub.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use qf_model::config::{ModelConfig, VisionConfig, VitConfig};
use qf_model::vision::{interpolate_positions, PositionInterpolation};
use qf_model::weights::{
    export_hugging_face, export_lavis, load_into, read_config, read_safetensors, Absent, Part,
    WeightsFile,
};
use qf_model::Blip2Qformer;
use tch::{Device, Kind, Tensor};

use crate::{test_data, train_cli};

/// What `transformers` and our model may differ by.
const TOLERANCE: f64 = 1e-5;

/// Scores of the model in `argv[1]` by transformers, on inputs drawn here, as safetensors `argv[2]`.
const SCORE: &str = r#"
import sys, torch
from safetensors.torch import save_file
from transformers import Blip2ForImageTextRetrieval
model, report = Blip2ForImageTextRetrieval.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
score(model.eval(), sys.argv[2])
"#;

/// A tiny model of transformers with random numbers, in shards, and its scores.
const MAKE: &str = r#"
import sys, torch
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForImageTextRetrieval
torch.manual_seed(3)
config = Blip2Config(
    vision_config=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                       num_attention_heads=3, image_size=28, patch_size=7, initializer_range=0.3),
    qformer_config=dict(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=20, encoder_hidden_size=24,
                        use_qformer_text_input=True),
    num_query_tokens=5, image_text_hidden_size=12)
model = Blip2ForImageTextRetrieval(config).eval()
for name, parameter in model.named_parameters():
    torch.nn.init.normal_(parameter, 1.0 if "norm" in name.lower() and "weight" in name else 0.0, 0.1)
    if name.endswith("qkv.bias"):
        parameter.data[24:48] = 0
model.save_pretrained(sys.argv[1], max_shard_size="20KB")
score(model, sys.argv[2])
"#;

/// Defines `score`.
const SCORING: &str = r#"
def score(model, path):
    torch.manual_seed(4)
    side, words = model.config.vision_config.image_size, model.config.qformer_config.vocab_size
    io = dict(pixel_values=torch.randn(3, 3, side, side), input_ids=torch.randint(4, words, (3, 9)),
              attention_mask=torch.ones(3, 9, dtype=torch.int64))
    io["attention_mask"][1, 6:] = 0
    with torch.no_grad():
        itm = model(**io, use_image_text_matching_head=True)
        itc = model(**io, use_image_text_matching_head=False)
    save_file(dict(io, itm=itm.logits_per_image.contiguous(), itc=itc.logits_per_image.contiguous()), path)
"#;

/// State dicts in both layouts of torch.save, and as safetensors what is in them.
const SAVE: &str = r#"
import argparse, collections, sys, torch, torch.nn.functional as F
from safetensors.torch import save_file
folder = sys.argv[1]
torch.manual_seed(5)
base = torch.randn(6, 4)
state = collections.OrderedDict(
    base=base, transposed=base.t(), column=base[:, 1], tail=base[4:], parameter=torch.nn.Parameter(base + 1),
    half=base.half(), brain=base.bfloat16(), double=base.double(), long=torch.arange(5),
    flag=torch.tensor([True, False]), byte=torch.arange(4, dtype=torch.uint8), scalar=torch.tensor(0.07),
    empty=torch.zeros(0, 3), strided=base[::2, ::2])
checkpoint = dict(model=state, optimizer=dict(state={0: dict(step=3, exp_avg=base)}, param_groups=[]),
                  config=argparse.Namespace(lr=1e-4, parts=["a", {"b": None}]), scaler={}, epoch=2)
class Opaque:
    pass
Opaque.__module__ = "omegaconf.dictconfig"
for name, content in [("flat", state), ("lavis", checkpoint)]:
    torch.save(content, f"{folder}/{name}.zip.pth")
    torch.save(content, f"{folder}/{name}.old.pth", _use_new_zipfile_serialization=False)
    torch.save(content, f"{folder}/{name}.p4.pth", pickle_protocol=4)
save_file({name: value.detach().clone().contiguous() for name, value in state.items()}, f"{folder}/expected.safetensors")

# A tower as published: fp16, one block more than is used, norm and head; positions of another grid.
width, mlp, depth = 24, 40, 3
eva = {"cls_token": (1, 1, width), "pos_embed": (1, 17, width), "patch_embed.proj.weight": (width, 3, 7, 7),
       "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
       "head.weight": (10, width), "head.bias": (10,)}
for block in range(depth):
    for name, shape in {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,),
            "norm2.bias": (width,), "attn.q_bias": (width,), "attn.v_bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (mlp, width), "mlp.fc1.bias": (mlp,), "mlp.fc2.weight": (width, mlp),
            "mlp.fc2.bias": (width,)}.items():
        eva[f"blocks.{block}.{name}"] = shape
eva = {name: torch.randn(shape).half() for name, shape in eva.items()}
torch.save(eva, f"{folder}/eva.pth")
grid = eva["pos_embed"][:, 1:].float().reshape(1, 4, 4, width).permute(0, 3, 1, 2)
grid = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
grid = torch.cat([eva["pos_embed"][:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
save_file({"pos_embed": grid.contiguous(), "qkv": eva["blocks.1.attn.qkv.weight"].float()}, f"{folder}/eva.safetensors")
"#;

/// A file of transformers' BERT as pytorch_model.bin, as it was written before torch 1.6.
const BERT_BIN: &str = r#"
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2], _use_new_zipfile_serialization=False)
"#;

/// What transformers' processor makes of an image and a text, with the exported folder `argv[1]`.
const PROCESS: &str = r#"
import json, sys
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1])
inputs = processor(images=Image.new("RGB", (90, 60), (255, 0, 0)), text="a red square", return_tensors="pt")
print(json.dumps([list(inputs["pixel_values"].shape), inputs["input_ids"][0].tolist()]))
"#;

/// The model whose state dict is the safetensors file `argv[1]`, wrapped as trainers do, as `argv[2]/*.pth`.
const WRAP: &str = r#"
import sys, torch
from safetensors.torch import load_file
def module():
    root = torch.nn.Module()
    for name, value in load_file(sys.argv[1]).items():
        *parents, own = name.split(".")
        node = root
        for part in parents:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        if value.is_floating_point():
            node.register_parameter(own, torch.nn.Parameter(value))
        else:
            node.register_buffer(own, value)
    return root
def parts_compiled():
    model = module()
    model.Qformer.bert = torch.compile(model.Qformer.bert)
    model.visual_encoder = torch.nn.DataParallel(model.visual_encoder)
    return model
class Trainer(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
for name, model in {
    "ddp": torch.nn.DataParallel(module()), "compiled": torch.compile(module()),
    "both": torch.compile(torch.nn.DataParallel(module())), "inside": torch.nn.DataParallel(torch.compile(module())),
    "parts": parts_compiled(), "trainer": Trainer(torch.compile(module())),
}.items():
    state = model.state_dict()
    torch.save({"model" if name != "trainer" else "state_dict": state, "epoch": 3}, f"{sys.argv[2]}/{name}.pth")
"#;

/// The test Python, where it has torch and transformers.
#[allow(clippy::disallowed_methods)] // A test decides here whether it may be skipped.
pub(crate) fn python(test: &str) -> Option<PathBuf> {
    let python = test_data::python(test)?;
    let has_torch = Command::new(&python)
        .args(["-c", "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('transformers')))"])
        .status()
        .is_ok_and(|status| status.success());
    if has_torch {
        return Some(python);
    }
    test_data::missing(test, "no torch and transformers in the test Python");
    None
}

pub(crate) fn run(python: &Path, scripts: &[&str], arguments: &[&Path]) -> String {
    let output = Command::new(python)
        .args(["-W", "ignore", "-c", &scripts.concat()])
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Compares ITM logits and ITC scores with those in `path`, computed on the inputs there.
fn compare(model: &Blip2Qformer, path: &Path) {
    let io = read_safetensors(path).unwrap();
    let images = model.encode_image(&io["pixel_values"]).unwrap();
    let (ids, mask) = (&io["input_ids"], &io["attention_mask"]);
    let itm = model.itm_logits(&images, ids, mask).unwrap();
    let itm = itm.both().shallow_clone();
    let image_feats = model.image_features(&images).unwrap();
    let text_feats = model.text_features(ids, mask).unwrap();
    let itc = image_feats
        .matmul(&text_feats.transpose(0, 1))
        .max_dim(1, false)
        .0;
    for (name, got) in [("itm", itm), ("itc", itc)] {
        assert_eq!(got.size(), io[name].size());
        let error = (&got - &io[name]).abs().max().double_value(&[]);
        println!("{name}: largest difference to transformers {error:.1e}");
        assert!(error <= TOLERANCE, "{name}: {error:e}");
        // Constant scores would compare well.
        assert!(got.std(true).double_value(&[]) > 1e-3, "{name}");
    }
}

/// Options of a step that leaves the weights as they are.
pub(crate) const UNCHANGED: [&str; 6] = [
    "--set",
    "schedule.init_lr=0",
    "--set",
    "schedule.warmup_lr=0",
    "--set",
    "schedule.min_lr=0",
];

const BERT: Part = Part::Bert {
    fresh_head: false,
    fold_token_types: false,
};

const HEADLESS: Part = Part::Model(Absent {
    tower: false,
    head: true,
});

#[test]
fn transformers_to_us_in_shards() {
    let Some(python) = python("transformers_to_us_in_shards") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (folder, scores) = (dir.path().join("model"), dir.path().join("io.safetensors"));
    run(&python, &[SCORING, MAKE], &[&folder, &scores]);
    assert!(folder.join("model.safetensors.index.json").exists());
    let file = WeightsFile::open(&folder).unwrap();
    let config = read_config(&folder, &file).unwrap();
    let mut model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
    load_into(&mut model, &file, HEADLESS).unwrap();
    compare(&model, &scores);
}

#[test]
fn we_to_transformers() {
    let Some(python) = python("we_to_transformers") else {
        return;
    };
    for tower in [VisionConfig::Eva, VisionConfig::Small] {
        for max_shard_bytes in [u64::MAX, 20_000] {
            let mut config = ModelConfig::tiny();
            config.vision = tower(VitConfig {
                image_size: 28,
                patch_size: 7,
                width: 24,
                depth: 2,
                heads: 3,
                mlp: 40,
                trainable: true,
                drop_path: 0.0,
                checkpoint_activations: false,
            });
            config.qformer.encoder_width = 24;
            (config.qformer.vocab_size, config.qformer.dec_token_id) = (60, 59);
            config.qformer.ln_vision_eps = 1e-6;
            let model = Blip2Qformer::new(&config, Device::Cpu, 9).unwrap();
            for param in model.params().named_parameters() {
                let noise = param.tensor.randn_like() * 0.1;
                let _ = tch::no_grad(|| param.tensor.shallow_clone().g_add_(&noise));
            }
            let dir = tempfile::tempdir().unwrap();
            let (folder, scores) = (dir.path().join("model"), dir.path().join("io.safetensors"));
            fs::create_dir(&folder).unwrap();
            export_hugging_face(&model, None, &folder, max_shard_bytes).unwrap();
            run(&python, &[SCORING, SCORE], &[&folder, &scores]);
            compare(&model, &scores);
        }
    }
}

/// The golden model of transformers, in and out again, scores as in the golden file.
#[test]
fn a_model_of_transformers_in_and_out() {
    let Some(python) = python("a_model_of_transformers_in_and_out") else {
        return;
    };
    let Some(golden) = test_data::find("a_model_of_transformers_in_and_out", "golden/hf_tiny")
    else {
        return;
    };
    let file = WeightsFile::open(&golden).unwrap();
    let config = read_config(&golden, &file).unwrap();
    let mut model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
    load_into(&mut model, &file, HEADLESS).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (folder, scores) = (dir.path().join("model"), dir.path().join("io.safetensors"));
    fs::create_dir(&folder).unwrap();
    export_hugging_face(&model, None, &folder, u64::MAX).unwrap();
    run(&python, &[SCORING, SCORE], &[&folder, &scores]);
    compare(&model, &scores);
    // Tensor by tensor what it was.
    let again = WeightsFile::open(&folder).unwrap();
    assert!(again.names().eq(file.names()));
    for name in file.names() {
        assert_eq!(
            again.tensor(name).unwrap(),
            file.tensor(name).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn torch_files_bit_for_bit() {
    let Some(python) = python("torch_files_bit_for_bit") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    run(&python, &[SAVE], &[dir.path()]);
    let expected = read_safetensors(&dir.path().join("expected.safetensors")).unwrap();
    for name in ["flat", "lavis"] {
        for layout in ["zip", "old", "p4"] {
            let file = format!("{name}.{layout}.pth");
            let read = WeightsFile::open(&dir.path().join(&file)).unwrap();
            assert_eq!(read.names().count(), expected.len(), "{file}");
            for (name, expected) in &expected {
                let got = read.tensor(name).unwrap();
                assert_eq!(got.kind(), expected.kind(), "{file} {name}");
                assert_eq!(&got, expected, "{file} {name}");
            }
        }
    }

    let config = |image_size| {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Eva(VitConfig {
            image_size,
            patch_size: 7,
            width: 24,
            depth: 2,
            heads: 3,
            mlp: 40,
            trainable: false,
            drop_path: 0.0,
            checkpoint_activations: false,
        });
        config.qformer.encoder_width = 24;
        config
    };
    let file = WeightsFile::open(&dir.path().join("eva.pth")).unwrap();
    let expected = read_safetensors(&dir.path().join("eva.safetensors")).unwrap();
    for (image_size, resampled) in [(28, None), (42, Some((4, 6)))] {
        let mut model = Blip2Qformer::new(&config(image_size), Device::Cpu, 0).unwrap();
        let report = load_into(&mut model, &file, Part::Vision).unwrap();
        assert_eq!(report.resampled, resampled);
        assert_eq!(report.left_out.len(), 13 + 4);
        let value = |name: &str| model.params().get(name).unwrap().tensor.shallow_clone();
        assert_eq!(
            value("visual_encoder.blocks.1.attn.qkv.weight"),
            expected["qkv"]
        );
        if resampled.is_some() {
            let difference = value("visual_encoder.pos_embed") - &expected["pos_embed"];
            assert!(difference.abs().max().double_value(&[]) < 1e-5);
        }
    }
    // The rule matters: with aligned corners the grid would be another.
    let positions = file.tensor("pos_embed").unwrap().to_kind(Kind::Float);
    let other = interpolate_positions(&positions, 6, PositionInterpolation::Clip).unwrap();
    let difference: Tensor = other - &expected["pos_embed"];
    assert!(difference.abs().max().double_value(&[]) > 1e-2);
}

#[test]
fn bert_as_pytorch_model_bin() {
    let Some(python) = python("bert_as_pytorch_model_bin") else {
        return;
    };
    let Some(golden) = test_data::find("bert_as_pytorch_model_bin", "golden/hf_bert_tiny") else {
        return;
    };
    for name in ["model.safetensors", "model_legacy_gamma_beta.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        let source = golden.join(name);
        run(
            &python,
            &[BERT_BIN],
            &[&source, &dir.path().join("pytorch_model.bin")],
        );
        let mut config = ModelConfig::tiny();
        let qformer = &mut config.qformer;
        (qformer.hidden, qformer.layers, qformer.intermediate) = (64, 4, 128);
        (qformer.vocab_size, qformer.dec_token_id) = (200, 199);
        let load = |path: &Path| {
            let mut model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
            let file = WeightsFile::open(path).unwrap();
            load_into(&mut model, &file, BERT).unwrap();
            model
        };
        let (from_bin, from_safetensors) = (load(dir.path()), load(&source));
        for param in from_bin.params().named_parameters() {
            let other = from_safetensors.params().get(&param.name).unwrap();
            assert_eq!(param.tensor, other.tensor, "{}", param.name);
        }
    }
}

#[test]
fn a_run_is_exported_and_a_run_starts_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (first, second, shards) = (path("first"), path("second"), train_cli::glob("tar"));
    train_cli::succeeds(&train_cli::small_run(&first, &shards, &["--steps", "2"]));
    let (hf, lavis) = (path("hf"), path("lavis.safetensors"));
    for (format, out) in [("hf", &hf), ("lavis", &lavis)] {
        let arguments = [
            "export",
            "--run-dir",
            &first,
            "--format",
            format,
            "--out",
            out,
        ];
        let said = train_cli::succeeds(&arguments);
        assert!(said.contains("exported step 2"), "{said}");
        let error = train_cli::fails(1, &arguments);
        assert!(error.contains("is there already"), "{error}");
    }
    if let Some(python) = python("a_run_is_exported_and_a_run_starts_from_it") {
        let scores = dir.path().join("io.safetensors");
        run(&python, &[SCORING, SCORE], &[Path::new(&hf), &scores]);
        let processed = run(&python, &[PROCESS], &[Path::new(&hf)]);
        let (shape, ids): (Vec<i64>, Vec<i64>) = serde_json::from_str(&processed).unwrap();
        assert_eq!(shape, [1, 3, 64, 64]);
        let vocabulary = Path::new(&first).join("vocab.txt");
        let tokenizer = qf_pipeline::text::CaptionTokenizer::from_file(&vocabulary).unwrap();
        assert_eq!(tokenizer.decode(&ids), "a red square");
    }
    // Without a step the second run would hold the first one's weights; with one, it records them. The
    // export put the vocabulary beside the file.
    let more = [&["--weights", &lavis, "--steps", "1"], &UNCHANGED[..]].concat();
    train_cli::succeeds(&train_cli::small_run(&second, &shards, &more));
    let weights = |run: &str, step: u32| {
        let file = format!("checkpoints/step-{step:08}/model.safetensors");
        read_safetensors(&Path::new(run).join(file)).unwrap()
    };
    let (start, end) = (weights(&first, 2), weights(&second, 1));
    for (name, tensor) in &start {
        assert_eq!(&end[name], tensor, "{name}");
    }
    let record = fs::read_to_string(Path::new(&second).join("weights.json")).unwrap();
    assert!(
        record.contains("\"sha256\"") && record.contains(&lavis),
        "{record}"
    );
    // Another vocabulary, and a resumed run.
    let third = path("third");
    let vocabulary = path("other/vocab.txt");
    fs::create_dir(dir.path().join("other")).unwrap();
    fs::write(&vocabulary, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n").unwrap();
    let more = [
        "--weights",
        &lavis,
        "--steps",
        "1",
        "--tokenizer",
        &vocabulary,
    ];
    let error = train_cli::fails(1, &train_cli::small_run(&third, &shards, &more));
    assert!(error.contains("another vocabulary"), "{error}");
    let resumed = ["--run-dir", &second, "--resume", "--weights", &lavis];
    let error = train_cli::fails(2, &resumed);
    assert!(error.contains("--resume"), "{error}");
    // transformers' class has no language-model head: only where that is said.
    let more = ["--weights", &hf, "--steps", "1"];
    let error = train_cli::fails(1, &train_cli::small_run(&third, &shards, &more));
    assert!(error.contains("fresh_head"), "{error}");
    let more = [&more[..], &["--set", "weights.fresh_head=true"]].concat();
    train_cli::succeeds(&train_cli::small_run(&third, &shards, &more));
}

/// What `DataParallel`, `torch.compile` and trainers put into names is taken off, and said.
#[test]
fn wrapped_state_dicts() {
    let Some(python) = python("wrapped_state_dicts") else {
        return;
    };
    let model = Blip2Qformer::new(&ModelConfig::tiny(), Device::Cpu, 11).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.safetensors");
    export_lavis(&model, &plain).unwrap();
    run(&python, &[WRAP], &[&plain, dir.path()]);
    for (name, taken_off) in [
        ("ddp", &["module."][..]),
        ("compiled", &["_orig_mod."]),
        ("both", &["_orig_mod.", "module."]),
        ("inside", &["module.", "_orig_mod."]),
        ("parts", &["_orig_mod.", "module."]),
        ("trainer", &["_orig_mod.", "model."]),
    ] {
        let file = WeightsFile::open(&dir.path().join(format!("{name}.pth"))).unwrap();
        assert_eq!(file.taken_off(), taken_off, "{name}");
        let mut other = Blip2Qformer::new(&ModelConfig::tiny(), Device::Cpu, 12).unwrap();
        let report = load_into(&mut other, &file, Part::Model(Absent::default())).unwrap();
        assert_eq!(report.loaded, model.params().named_parameters().len());
        for param in model.params().named_parameters() {
            let loaded = &other.params().get(&param.name).unwrap().tensor;
            assert_eq!(&param.tensor, loaded, "{name}: {}", param.name);
        }
    }
}

/// Answers as the hub does, from a folder of files.
struct Hub {
    address: String,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// Bodies end after so many bytes.
    cut: Arc<Mutex<Option<usize>>>,
}

impl Hub {
    /// Serves the model `org/model`.
    fn start() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files: Arc::default(),
            cut: Arc::default(),
        };
        let (files, cut) = (hub.files.clone(), hub.cut.clone());
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &files.lock().unwrap(), *cut.lock().unwrap());
            }
        });
        hub
    }
}

fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    cut: Option<usize>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut range = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some((from, to)) = line
            .strip_prefix("range: bytes=")
            .and_then(|r| r.split_once('-'))
        {
            range = Some((from.parse::<usize>().unwrap_or(0), to.parse::<usize>().ok()));
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let common = "ETag: \"v1\"\r\nx-repo-commit: c0ffee\r\nConnection: close\r\n";
    if path == "/api/models/org/model/revision/main" {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"siblings": siblings, "sha": "c0ffee"}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{common}\r\n{body}",
            body.len()
        );
    }
    let file = path
        .strip_prefix("/org/model/resolve/main/")
        .and_then(|name| Some((name, files.get(name)?)));
    let Some((name, body)) = file else {
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n{common}\r\n"
        );
    };
    let (from, to) = range.unwrap_or((0, None));
    let to = to.unwrap_or(usize::MAX).min(body.len() - 1);
    let part = &body[from.min(body.len())..=to];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{to}/{}\r\n\
         ETag: \"{name}\"\r\nx-repo-commit: c0ffee\r\nConnection: close\r\n\r\n",
        part.len(),
        body.len()
    )?;
    let sent = match cut {
        Some(cut) if part.len() > 1 => part.len().min(cut),
        _ => part.len(),
    };
    stream.write_all(&part[..sent])
}

#[test]
fn places_on_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (first, shards) = (path("first"), train_cli::glob("tar"));
    train_cli::succeeds(&train_cli::small_run(&first, &shards, &["--steps", "1"]));
    let hub = Hub::start();
    let run = |name: &str, place: &str, home: &str, offline: &str| {
        let (run_dir, home) = (path(name), path(home));
        let more = ["--steps", "1", "--weights", place];
        let output = train_cli::command(&train_cli::small_run(&run_dir, &shards, &more))
            .env("HF_ENDPOINT", &hub.address)
            .env("HF_HOME", &home)
            .env("HF_HUB_OFFLINE", offline)
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked"), "{stderr}");
        (output.status.success(), stderr)
    };
    let fails = |place: &str, home: &str, offline: &str, words: &[&str]| {
        let (done, stderr) = run("failed", place, home, offline);
        assert!(!done);
        assert!(
            words.iter().all(|word| stderr.contains(word)),
            "{words:?}: {stderr}"
        );
    };
    let place = "hf://org/model";
    fails(
        "hf://org/none",
        "a",
        "0",
        &["org/none", "404", "no such model"],
    );
    fails(place, "a", "0", &["holds no weights"]);
    fails(place, "a", "1", &["HF_HUB_OFFLINE", "not in the cache"]);
    fails("hf://a/b/c", "a", "0", &["hf://ORG/NAME"]);

    let newest = "checkpoints/step-00000001/model.safetensors";
    let weights = fs::read(Path::new(&first).join(newest)).unwrap();
    let words = fs::read(Path::new(&first).join("vocab.txt")).unwrap();
    let mut files = HashMap::from([("model.safetensors".to_owned(), weights.clone())]);
    files.insert("vocab.txt".to_owned(), words);
    hub.files.lock().unwrap().clone_from(&files);
    // A body that ends early: said, nothing half kept; the next try goes on.
    *hub.cut.lock().unwrap() = Some(weights.len() / 100);
    fails(
        place,
        "a",
        "0",
        &["cannot fetch hf://org/model/model.safetensors"],
    );
    fails(place, "a", "1", &["not in the cache"]);
    *hub.cut.lock().unwrap() = None;
    let (done, stderr) = run("second", place, "a", "0");
    assert!(done, "{stderr}");
    assert!(stderr.contains("a LAVIS BLIP-2 checkpoint"), "{stderr}");
    assert!(
        stderr.contains("vocab.txt (beside the weights)"),
        "{stderr}"
    );
    // From the cache alone, with no hub to ask.
    hub.files.lock().unwrap().clear();
    let (done, stderr) = run("third", place, "a", "1");
    assert!(done, "{stderr}");
    assert!(!stderr.contains("fetching"), "{stderr}");

    // In shards, and as a file of torch's, of which only the first is taken.
    let split = dir.path().join("split");
    fs::create_dir(&split).unwrap();
    let all = read_safetensors(&Path::new(&first).join(newest)).unwrap();
    let mut names: Vec<&String> = all.keys().collect();
    names.sort();
    let mut map = serde_json::Map::new();
    files.remove("model.safetensors");
    for (shard, names) in [
        ("s1.safetensors", &names[..20]),
        ("s2.safetensors", &names[20..]),
    ] {
        let tensors: Vec<(&str, &Tensor)> = names
            .iter()
            .map(|name| (name.as_str(), &all[*name]))
            .collect();
        Tensor::write_safetensors(&tensors, split.join(shard)).unwrap();
        files.insert(shard.to_owned(), fs::read(split.join(shard)).unwrap());
        map.extend(names.iter().map(|name| (name.to_string(), shard.into())));
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    files.insert("model.safetensors.index.json".to_owned(), index.into());
    files.insert("pytorch_model.bin".to_owned(), b"not looked at".to_vec());
    hub.files.lock().unwrap().clone_from(&files);
    let (done, stderr) = run("fourth", place, "b", "0");
    assert!(done, "{stderr}");
}

/// LAVIS's names, its second names of tied tensors and its table of positions.
#[test]
fn lavis_names_are_complete() {
    let model = Blip2Qformer::new(&ModelConfig::tiny(), Device::Cpu, 0).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    export_lavis(&model, &path).unwrap();
    let file = read_safetensors(&path).unwrap();
    assert_eq!(file.len(), model.params().named_parameters().len() + 3);
    // Equal models give equal files, whose metadata has two entries.
    let again = dir.path().join("b.safetensors");
    let tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        .map(str::to_owned)
        .into();
    let tokenizer = qf_pipeline::text::CaptionTokenizer::from_vocab(tokens).unwrap();
    let mut config = ModelConfig::tiny();
    config.qformer.fit_to_tokenizer(&tokenizer);
    let model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
    let bytes: Vec<Vec<u8>> = (0..8)
        .map(|_| {
            export_lavis(&model, &again).unwrap();
            fs::read(&again).unwrap()
        })
        .collect();
    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]));
    let ids = &file["Qformer.bert.embeddings.position_ids"];
    assert_eq!((ids.size(), ids.kind()), (vec![1, 64], Kind::Int64));
    assert_eq!(
        file["Qformer.cls.predictions.decoder.weight"],
        file["Qformer.bert.embeddings.word_embeddings.weight"]
    );
}
