//! `stats`, against numbers that Python counts.

use serde_json::Value;

use crate::{json_lines, photographs, python, run, test_data};

/// Sizes by Pillow, words by Python, tokens by transformers, quantiles by their definition.
const COUNT: &str = r#"
import json, sys, unicodedata
from PIL import Image
from transformers import BertTokenizer
tokenizer = BertTokenizer(sys.argv[1]) if len(sys.argv) > 1 else None
images = [Image.open(f"pairs/{n:06}.jpg") for n in range(40)]
captions = [l.strip() for n in range(40) for l in open(f"pairs/{n:06}.txt", encoding="utf-8") if l.strip()]
def spread(values):
    values = sorted(values)
    return {"min": values[0], "max": values[-1], "mean": sum(values) / len(values), "median": values[int(0.5 * (len(values) - 1))]}
out = {
    "width": spread([i.width for i in images]),
    "height": spread([i.height for i in images]),
    "shorter_side": spread([min(i.size) for i in images]),
    "words": spread([len(c.split()) for c in captions]),
    "captions": len(captions),
}
if tokenizer:
    import re
    def pre(c):
        c = re.sub(r"([.!\"()*#:;~])", " ", c.lower())
        c = re.sub(r"\s{2,}", " ", c).rstrip("\n").strip(" ")
        return " ".join(c.split(" ")[:50])
    lengths = [len(tokenizer(pre(c)).input_ids) for c in captions]
    out["tokens"] = spread(lengths)
    out["captions_cut"] = sum(n > 14 for n in lengths)
print(json.dumps(out))
"#;

#[test]
fn numbers_are_those_that_python_counts() {
    let test = "numbers_are_those_that_python_counts";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let Some(vocabulary) = test_data::find(test, "data/bert/vocab.txt") else {
        return;
    };
    let vocabulary = vocabulary.to_str().unwrap();
    if photographs(test, folder, 40, "tar").is_none() {
        return;
    }
    let Some(expected) = python(test, folder, COUNT, &[vocabulary]) else {
        return;
    };
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let arguments = [
        "stats",
        "s-*.tar",
        "--json",
        "--tokenizer",
        vocabulary,
        "--text-len",
        "14",
    ];
    let found = json_lines(&run(folder, 0, &arguments)).remove(0);
    assert_eq!(found["samples"], 40);
    assert_eq!(found["formats"]["JPEG"], 40);
    for name in ["captions", "captions_cut"] {
        assert_eq!(found[name], expected[name], "{name}");
    }
    assert_eq!(found["scripts"]["Latin"], found["captions"]);
    for name in ["width", "height", "shorter_side", "words", "tokens"] {
        let number = |value: &Value, field: &str| value[name][field].as_f64().unwrap();
        for field in ["min", "max"] {
            assert_eq!(
                number(&found, field),
                number(&expected, field),
                "{name} {field}"
            );
        }
        let near = |field: &str, share: f64| {
            let (a, b) = (number(&found, field), number(&expected, field));
            assert!((a - b).abs() <= share * b, "{name} {field}: {a} and {b}");
        };
        near("mean", 1e-9);
        near("median", 0.016);
    }
    let text = run(folder, 0, &["stats", "s-*.tar"]);
    assert!(
        text.contains("4 shards") && text.contains("words per caption"),
        "{text}"
    );
}
