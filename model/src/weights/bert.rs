//! `config.json` of transformers' BERT.

use std::path::Path;

use super::hugging_face::{read_json, Section};
use crate::error::ModelError;

/// The sizes of a BERT that the Q-Former takes over.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertSizes {
    /// Channels of a row.
    pub hidden: i64,
    /// Number of layers.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the hidden layer of the feed-forward networks.
    pub intermediate: i64,
    /// Learned positions.
    pub max_positions: i64,
    /// Epsilon of the layer norms.
    pub eps: f64,
}

/// The sizes in the config.json of `folder`. What a BERT's leaves out has BERT base's value.
///
/// # Errors
/// [`ModelError::Io`] and [`ModelError::TensorFile`] for a file that cannot be read, or is of a model
/// that computes something else than BERT with tensors of the same names (RoBERTa, relative positions,
/// another activation).
pub fn read_bert_config(folder: &Path) -> Result<BertSizes, ModelError> {
    let path = folder.join("config.json");
    let json = read_json(&path)?;
    let unusable = |message: String| ModelError::TensorFile {
        path: path.clone(),
        message,
    };
    let top = Section {
        name: "config",
        json: &json,
    };
    let sizes = || {
        for (name, wanted) in [
            ("model_type", "bert"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
        ] {
            top.wants(name, wanted)?;
        }
        Ok(BertSizes {
            hidden: top.int("hidden_size", 768)?,
            layers: top.int("num_hidden_layers", 12)?,
            heads: top.int("num_attention_heads", 12)?,
            intermediate: top.int("intermediate_size", 3072)?,
            max_positions: top.int("max_position_embeddings", 512)?,
            eps: top.float("layer_norm_eps", 1e-12)?,
        })
    };
    sizes().map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_what_is_no_bert() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            read_bert_config(folder.path())
        };
        let base = read("{}").unwrap();
        assert_eq!((base.hidden, base.layers, base.heads), (768, 12, 12));
        assert_eq!(
            (base.intermediate, base.max_positions, base.eps),
            (3072, 512, 1e-12)
        );
        let small = read(
            r#"{"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute",
                "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 3,
                "intermediate_size": 1536, "max_position_embeddings": 128, "layer_norm_eps": 1e-7,
                "vocab_size": 30522, "architectures": ["BertModel"]}"#,
        )
        .unwrap();
        let expected = BertSizes {
            hidden: 384,
            layers: 6,
            heads: 3,
            intermediate: 1536,
            max_positions: 128,
            eps: 1e-7,
        };
        assert_eq!(small, expected);
        for (text, words) in [
            (r#"{"model_type": "roberta"}"#, r#"model_type is "roberta""#),
            (r#"{"hidden_act": "gelu_new"}"#, "hidden_act"),
            (
                r#"{"position_embedding_type": "relative_key"}"#,
                "position_embedding_type",
            ),
            (r#"{"hidden_size": "many"}"#, "hidden_size"),
            ("[", "no JSON"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("config.json"),
                "{error}"
            );
        }
        let missing = read_bert_config(&folder.path().join("none"));
        assert!(matches!(missing, Err(ModelError::Io { .. })));
    }
}
