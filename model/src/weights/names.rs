//! Who calls a parameter what.
//!
//! Parameters carry the names of LAVIS checkpoints; a table here gives the name, or the parts, of a
//! parameter in another layout. Reading and writing use the same tables.

/// How the tensors of a file are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A LAVIS BLIP-2 checkpoint, and ours: `Qformer.bert.*`, `visual_encoder.*`.
    Lavis,
    /// `Blip2ForImageTextRetrieval` of transformers: `qformer.*`, `vision_model.*`.
    HuggingFace,
    /// BERT: `bert.*`, `cls.predictions.*`; layer norms also as `gamma` and `beta`.
    Bert,
    /// The EVA-CLIP tower: `blocks.*`, `pos_embed`.
    Eva,
    /// OpenAI's CLIP tower: `transformer.resblocks.*`, `positional_embedding`.
    Clip,
    /// CLIP of transformers: `vision_model.*` with `q_proj`, `k_proj` and `v_proj`.
    HuggingFaceClip,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layout::Lavis => "a LAVIS BLIP-2 checkpoint",
            Layout::HuggingFace => "a Hugging Face Blip2ForImageTextRetrieval",
            Layout::Bert => "a BERT",
            Layout::Eva => "an EVA-CLIP vision tower",
            Layout::Clip => "a CLIP vision tower (OpenAI names)",
            Layout::HuggingFaceClip => "a CLIP vision tower (Hugging Face names)",
        })
    }
}

/// A layout and what stands before all its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Naming {
    pub(super) layout: Layout,
    /// Before the names of a tower (`visual.`) or of BERT (`bert.`); empty where there is nothing.
    pub(super) prefix: &'static str,
}

/// Where a parameter's values are in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// One tensor.
    Whole(String),
    /// A third of a tensor's rows: 0 for Q, 1 for K, 2 for V.
    Third(String, i64),
    /// Q, K and V, whose rows follow one another in the parameter.
    Stacked([String; 3]),
}

impl Source {
    /// The name of the tensor, or of the first of them.
    pub(super) fn first_name(&self) -> &str {
        match self {
            Source::Whole(name) | Source::Third(name, _) => name,
            Source::Stacked([first, ..]) => first,
        }
    }
}

const TOWER_PREFIXES: [&str; 3] = ["", "visual.", "visual_encoder."];

/// Beginnings of names, LAVIS's and Hugging Face's.
const HUGGING_FACE_PREFIXES: [(&str, &str); 12] = [
    ("ln_vision.", "vision_model.post_layernorm."),
    (
        "visual_encoder.cls_token",
        "vision_model.embeddings.class_embedding",
    ),
    (
        "visual_encoder.pos_embed",
        "vision_model.embeddings.position_embedding",
    ),
    (
        "visual_encoder.patch_embed.proj.",
        "vision_model.embeddings.patch_embedding.",
    ),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (
        "Qformer.bert.embeddings.word_embeddings.",
        "embeddings.word_embeddings.",
    ),
    (
        "Qformer.bert.embeddings.position_embeddings.",
        "embeddings.position_embeddings.",
    ),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.encoder.", "qformer.encoder."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    ("itm_head.", "itm_head."),
];

/// Middles of names within a layer, LAVIS's and Hugging Face's.
const HUGGING_FACE_MIDDLES: [(&str, &str); 5] = [
    ("attention.self.", "attention.attention."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
];

/// Beginnings of names of a CLIP tower, OpenAI's and Hugging Face's; the second has a spelling
/// mistake of its own.
const CLIP_PREFIXES: [(&str, &str); 5] = [
    ("class_embedding", "embeddings.class_embedding"),
    (
        "positional_embedding",
        "embeddings.position_embedding.weight",
    ),
    ("conv1.", "embeddings.patch_embedding."),
    ("ln_pre.", "pre_layrnorm."),
    ("transformer.resblocks.", "encoder.layers."),
];

const CLIP_MIDDLES: [(&str, &str); 5] = [
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
];

impl Naming {
    /// What the tensors' names say.
    pub(super) fn detect(names: &[&str]) -> Option<Naming> {
        let any = |part: &str| names.iter().any(|name| name.contains(part));
        let starts = |start: &str| names.iter().any(|name| name.starts_with(start));
        let naming = |layout, prefix| Some(Naming { layout, prefix });
        if starts("Qformer.bert.encoder.") {
            return naming(Layout::Lavis, "");
        }
        if starts("qformer.encoder.") {
            return naming(Layout::HuggingFace, "");
        }
        if starts("vision_model.") && any(".self_attn.q_proj.") {
            return naming(Layout::HuggingFaceClip, "vision_model.");
        }
        for prefix in TOWER_PREFIXES {
            if starts(&format!("{prefix}blocks.0.attn.qkv.")) {
                return naming(Layout::Eva, prefix);
            }
            if starts(&format!("{prefix}transformer.resblocks.0.attn.in_proj_")) {
                return naming(Layout::Clip, prefix);
            }
        }
        for prefix in ["bert.", ""] {
            if starts(&format!("{prefix}encoder.layer.0.attention.self.")) {
                return naming(Layout::Bert, prefix);
            }
        }
        None
    }

    /// Where the values of the parameter `param` are; `None` if this layout has no counterpart.
    pub(super) fn source(self, param: &str) -> Option<Source> {
        let tower = || param.strip_prefix("visual_encoder.");
        let prefixed = |name: &str| Source::Whole(format!("{}{name}", self.prefix));
        match self.layout {
            Layout::Lavis => Some(Source::Whole(param.to_owned())),
            Layout::HuggingFace => hugging_face(param),
            Layout::Eva | Layout::Clip => tower().map(prefixed),
            Layout::HuggingFaceClip => {
                let name = tower()?;
                if let Some((stem, kind)) = name.split_once(".attn.in_proj_") {
                    let layer = stem.replacen("transformer.resblocks.", "encoder.layers.", 1);
                    return Some(Source::Stacked(["q", "k", "v"].map(|part| {
                        format!("{}{layer}.self_attn.{part}_proj.{kind}", self.prefix)
                    })));
                }
                translate(name, &CLIP_PREFIXES, &CLIP_MIDDLES).map(|name| prefixed(&name))
            }
            Layout::Bert => {
                let name = param.strip_prefix("Qformer.")?;
                if name.contains(".crossattention.") {
                    return None;
                }
                // The query networks begin as copies of the text networks.
                let name = name.replace("_query.", ".");
                Some(match name.strip_prefix("bert.") {
                    Some(name) => prefixed(name),
                    None => Source::Whole(name),
                })
            }
        }
    }

    /// Why a tensor that no parameter takes may be left out; `None` if it may not. `depth` is the
    /// number of blocks of the model's tower.
    pub(super) fn left_out(self, name: &str, depth: i64) -> Option<&'static str> {
        if name.ends_with("position_ids") {
            return Some("a constant table of positions");
        }
        let own = name.strip_prefix(self.prefix);
        let block = |stem: &str| {
            let rest = own?.strip_prefix(stem)?;
            let (index, _) = rest.split_once('.')?;
            (index.parse() == Ok(depth)).then_some("the last block, whose output BLIP-2 skips")
        };
        let whole_clip = "of CLIP's text half and its projections";
        match self.layout {
            Layout::Lavis | Layout::HuggingFace => None,
            Layout::Bert => match own.unwrap_or(name) {
                "pooler.dense.weight" | "pooler.dense.bias" => Some("BERT's pooler"),
                "embeddings.token_type_embeddings.weight" => Some("BERT's token types"),
                "cls.seq_relationship.weight" | "cls.seq_relationship.bias" => {
                    Some("BERT's next-sentence head")
                }
                _ => None,
            },
            Layout::Eva => match own {
                Some("norm.weight" | "norm.bias" | "head.weight" | "head.bias") => {
                    Some("norm and head behind the last block")
                }
                None if self.prefix == "visual." => {
                    (name.starts_with("text.") || name == "logit_scale").then_some(whole_clip)
                }
                _ => block("blocks."),
            },
            Layout::Clip => match own {
                Some("ln_post.weight" | "ln_post.bias" | "proj") => {
                    Some("norm and projection behind the last block")
                }
                None if self.prefix == "visual." => {
                    let is_text = name.starts_with("transformer.resblocks.")
                        || name.starts_with("ln_final.")
                        || CLIP_TEXT.contains(&name);
                    is_text.then_some(whole_clip)
                }
                _ => block("transformer.resblocks."),
            },
            Layout::HuggingFaceClip => match own {
                Some("post_layernorm.weight" | "post_layernorm.bias") => {
                    Some("norm behind the last block")
                }
                Some(_) => block("encoder.layers."),
                None => {
                    let is_text =
                        name.starts_with("text_model.") || HUGGING_FACE_CLIP_TEXT.contains(&name);
                    is_text.then_some(whole_clip)
                }
            },
        }
    }

    /// The tensor of which `name` is a second copy, if files of this layout have such.
    pub(super) fn alias_of(self, name: &str) -> Option<String> {
        let (start, words) = match self.layout {
            Layout::Lavis => ("Qformer.", "Qformer.bert.".to_owned()),
            Layout::Bert => ("", self.prefix.to_owned()),
            _ => return None,
        };
        match name.strip_prefix(start)? {
            "cls.predictions.decoder.weight" => {
                Some(format!("{words}embeddings.word_embeddings.weight"))
            }
            "cls.predictions.decoder.bias" => Some(format!("{start}cls.predictions.bias")),
            _ => None,
        }
    }
}

/// Of OpenAI's whole CLIP, beside the text transformer's blocks.
const CLIP_TEXT: [&str; 7] = [
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "token_embedding.weight",
    "input_resolution",
    "context_length",
    "vocab_size",
];

const HUGGING_FACE_CLIP_TEXT: [&str; 3] = [
    "visual_projection.weight",
    "text_projection.weight",
    "logit_scale",
];

/// Where `Blip2ForImageTextRetrieval` keeps a parameter.
pub(super) fn hugging_face(param: &str) -> Option<Source> {
    if param == "query_tokens" {
        return Some(Source::Whole(param.to_owned()));
    }
    for (bias, third) in [("q_bias", 0), ("v_bias", 2)] {
        if let Some(stem) = param.strip_suffix(bias) {
            let name = format!("{stem}qkv.bias");
            let name = translate(&name, &HUGGING_FACE_PREFIXES, &HUGGING_FACE_MIDDLES)?;
            return Some(Source::Third(name, third));
        }
    }
    translate(param, &HUGGING_FACE_PREFIXES, &HUGGING_FACE_MIDDLES).map(Source::Whole)
}

/// Replaces the beginning, and what the middle has, from the first to the second spelling.
fn translate(name: &str, prefixes: &[(&str, &str)], middles: &[(&str, &str)]) -> Option<String> {
    let (rest, to) = prefixes
        .iter()
        .find_map(|(from, to)| Some((name.strip_prefix(from)?, to)))?;
    let name = middles
        .iter()
        .fold(format!("{to}{rest}"), |name, (from, to)| {
            name.replace(from, to)
        });
    Some(name)
}

/// BERT's older spelling of a layer norm's tensor.
pub(super) fn gamma_beta(name: &str) -> Option<String> {
    if !name.contains("LayerNorm.") {
        return None;
    }
    match name.strip_suffix(".weight") {
        Some(stem) => Some(format!("{stem}.gamma")),
        None => Some(format!("{}.beta", name.strip_suffix(".bias")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(layout: Layout, prefix: &'static str) -> Naming {
        Naming { layout, prefix }
    }

    #[test]
    fn layouts_are_told_by_names() {
        let check = |names: &[&str], expected: Option<Naming>| {
            assert_eq!(Naming::detect(names), expected, "{names:?}");
        };
        check(
            &[
                "temp",
                "Qformer.bert.encoder.layer.0.x",
                "visual_encoder.blocks.0.attn.qkv.weight",
            ],
            Some(naming(Layout::Lavis, "")),
        );
        check(
            &[
                "qformer.encoder.layer.0.x",
                "vision_model.encoder.layers.0.self_attn.qkv.weight",
            ],
            Some(naming(Layout::HuggingFace, "")),
        );
        check(
            &[
                "bert.encoder.layer.0.attention.self.query.weight",
                "cls.predictions.bias",
            ],
            Some(naming(Layout::Bert, "bert.")),
        );
        check(
            &["encoder.layer.0.attention.self.query.weight"],
            Some(naming(Layout::Bert, "")),
        );
        for prefix in TOWER_PREFIXES {
            let qkv = format!("{prefix}blocks.0.attn.qkv.weight");
            check(&["x", &qkv], Some(naming(Layout::Eva, prefix)));
            let qkv = format!("{prefix}transformer.resblocks.0.attn.in_proj_weight");
            // The text half of a whole CLIP has the same names without a prefix.
            check(&[&qkv, "y"], Some(naming(Layout::Clip, prefix)));
        }
        check(
            &[
                "vision_model.encoder.layers.0.self_attn.q_proj.weight",
                "text_model.x",
            ],
            Some(naming(Layout::HuggingFaceClip, "vision_model.")),
        );
        check(&["layer1.0.conv1.weight"], None);
        check(&[], None);
    }

    #[test]
    fn sources_of_parameters() {
        let whole = |name: &str| Some(Source::Whole(name.to_owned()));
        let check = |naming: Naming, param: &str, expected: Option<Source>| {
            assert_eq!(naming.source(param), expected, "{param}");
        };
        let hf = naming(Layout::HuggingFace, "");
        check(hf, "temp", None);
        check(hf, "Qformer.cls.predictions.bias", None);
        check(hf, "query_tokens", whole("query_tokens"));
        check(
            hf,
            "Qformer.bert.encoder.layer.3.crossattention.self.key.weight",
            whole("qformer.encoder.layer.3.crossattention.attention.key.weight"),
        );
        check(
            hf,
            "visual_encoder.blocks.7.attn.v_bias",
            Some(Source::Third(
                "vision_model.encoder.layers.7.self_attn.qkv.bias".to_owned(),
                2,
            )),
        );
        let bert = naming(Layout::Bert, "bert.");
        check(
            bert,
            "Qformer.bert.encoder.layer.1.intermediate_query.dense.bias",
            whole("bert.encoder.layer.1.intermediate.dense.bias"),
        );
        check(
            bert,
            "Qformer.bert.encoder.layer.0.crossattention.self.key.bias",
            None,
        );
        check(bert, "itm_head.weight", None);
        check(
            bert,
            "Qformer.cls.predictions.bias",
            whole("cls.predictions.bias"),
        );
        let eva = naming(Layout::Eva, "visual.");
        check(
            eva,
            "visual_encoder.blocks.1.attn.q_bias",
            whole("visual.blocks.1.attn.q_bias"),
        );
        check(eva, "ln_vision.weight", None);
        let clip = naming(Layout::HuggingFaceClip, "vision_model.");
        check(
            clip,
            "visual_encoder.transformer.resblocks.2.mlp.c_fc.weight",
            whole("vision_model.encoder.layers.2.mlp.fc1.weight"),
        );
        check(
            clip,
            "visual_encoder.transformer.resblocks.2.attn.in_proj_bias",
            Some(Source::Stacked(["q", "k", "v"].map(|part| {
                format!("vision_model.encoder.layers.2.self_attn.{part}_proj.bias")
            }))),
        );
        check(
            clip,
            "visual_encoder.ln_pre.bias",
            whole("vision_model.pre_layrnorm.bias"),
        );
    }

    #[test]
    fn only_what_is_listed_may_be_left_out() {
        let check = |naming: Naming, name: &str, expected: bool| {
            assert_eq!(naming.left_out(name, 39).is_some(), expected, "{name}");
        };
        let eva = naming(Layout::Eva, "");
        check(eva, "blocks.39.attn.qkv.weight", true);
        check(eva, "blocks.38.attn.qkv.bias", false);
        check(eva, "blocks.40.attn.qkv.weight", false);
        check(eva, "head.weight", true);
        check(eva, "text.x", false);
        check(naming(Layout::Eva, "visual."), "text.blocks.0.x", true);
        check(
            naming(Layout::Clip, "visual."),
            "transformer.resblocks.0.x",
            true,
        );
        check(naming(Layout::Clip, ""), "transformer.resblocks.0.x", false);
        check(naming(Layout::Clip, ""), "transformer.resblocks.39.x", true);
        let bert = naming(Layout::Bert, "bert.");
        check(bert, "bert.pooler.dense.weight", true);
        check(bert, "cls.seq_relationship.bias", true);
        check(bert, "bert.embeddings.position_ids", true);
        check(bert, "bert.encoder.layer.9.x", false);
        check(
            naming(Layout::Lavis, ""),
            "Qformer.bert.pooler.dense.weight",
            false,
        );
        check(
            naming(Layout::Lavis, ""),
            "Qformer.bert.embeddings.position_ids",
            true,
        );
        let alias = "cls.predictions.decoder.weight";
        assert_eq!(
            naming(Layout::Lavis, "")
                .alias_of(&format!("Qformer.{alias}"))
                .unwrap(),
            "Qformer.bert.embeddings.word_embeddings.weight"
        );
        assert_eq!(
            bert.alias_of(alias).unwrap(),
            "bert.embeddings.word_embeddings.weight"
        );
        assert_eq!(eva.alias_of(alias), None);
    }

    #[test]
    fn older_spelling() {
        assert_eq!(
            gamma_beta("a.LayerNorm.weight").unwrap(),
            "a.LayerNorm.gamma"
        );
        assert_eq!(gamma_beta("a.LayerNorm.bias").unwrap(), "a.LayerNorm.beta");
        assert_eq!(gamma_beta("a.dense.bias"), None);
    }
}
