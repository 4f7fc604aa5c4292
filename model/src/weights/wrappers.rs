//! Names that wrappers around a model have put into its state dict.
//!
//! `torch.compile`, data-parallel and sharded training keep the model as an attribute of a module of
//! their own, whose name then stands in every tensor's name, as often and where a module was wrapped:
//! `module.temp`, `_orig_mod.module.temp`, `visual_encoder._orig_mod.blocks.0.norm1.bias`. A trainer
//! that is itself a module (Lightning's, sentence-transformers') puts its own attribute before all of
//! them: `model.temp`, `0.auto_model.embeddings.LayerNorm.bias`.

use std::collections::{BTreeMap, BTreeSet};

use super::names::Naming;

/// Attributes under which wrappers keep what they wrap: `DataParallel` and
/// `DistributedDataParallel`; `torch.compile`; `FullyShardedDataParallel`; recomputation of
/// activations; Fabric and others. No layout has names with such a part.
const ATTRIBUTES: [&str; 5] = [
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// Names without what wrappers put into them.
#[derive(Debug, PartialEq)]
pub(super) struct Unwrapped {
    /// The new name of each that changes, by its name in the file.
    pub(super) names: BTreeMap<String, String>,
    /// What was taken off, each with its dot, in the order in which it was met.
    pub(super) taken_off: Vec<String>,
}

/// Takes off what wrappers put into names; `None` where there is nothing of the kind. Parts that all
/// names begin with are taken off only where the names are of a known layout afterwards, and were of
/// none before.
///
/// Two tensors that would have one name are an error, as text.
pub(super) fn unwrapped<'a>(
    names: impl Iterator<Item = &'a str>,
) -> Result<Option<Unwrapped>, String> {
    let originals: Vec<&str> = names.collect();
    let mut taken_off = Vec::new();
    let mut plain: Vec<String> = originals
        .iter()
        .map(|name| without_attributes(name, &mut taken_off))
        .collect();
    if let Some(start) = trainer_prefix(&plain) {
        for name in &mut plain {
            name.drain(..start.len());
        }
        taken_off.push(start);
    }
    if taken_off.is_empty() {
        return Ok(None);
    }
    let mut seen = BTreeSet::new();
    for (original, name) in originals.iter().zip(&plain) {
        if !seen.insert(name) {
            return Err(format!(
                "`{original}` and another tensor are both `{name}` without {}; save one model's \
                 state_dict()",
                taken_off.join(", ")
            ));
        }
    }
    let pairs = originals.iter().zip(plain);
    Ok(Some(Unwrapped {
        names: pairs
            .filter(|(original, name)| *original != name)
            .map(|(original, name)| (original.to_string(), name))
            .collect(),
        taken_off,
    }))
}

/// The name without [`ATTRIBUTES`]; the last part is the tensor's own and stays.
fn without_attributes(name: &str, taken_off: &mut Vec<String>) -> String {
    let Some((modules, tensor)) = name.rsplit_once('.') else {
        return name.to_owned();
    };
    let mut plain = String::with_capacity(name.len());
    for part in modules.split('.') {
        if ATTRIBUTES.contains(&part) {
            let part = format!("{part}.");
            if !taken_off.contains(&part) {
                taken_off.push(part);
            }
        } else {
            plain.push_str(part);
            plain.push('.');
        }
    }
    plain.push_str(tensor);
    plain
}

/// What all names begin with and a known layout begins behind; `None` where the names are of a known
/// layout as they are, or of none at all.
fn trainer_prefix(names: &[String]) -> Option<String> {
    let detected = |start: usize| {
        let names: Vec<&str> = names.iter().map(|name| &name[start..]).collect();
        Naming::detect(&names).is_some()
    };
    let first = names.first()?;
    if detected(0) {
        return None;
    }
    for (dot, _) in first.match_indices('.') {
        let start = &first[..=dot];
        if !names.iter().all(|name| name.starts_with(start)) {
            return None;
        }
        if detected(start.len()) {
            return Some(start.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAVIS: [&str; 4] = [
        "Qformer.bert.encoder.layer.0.attention.self.query.weight",
        "itm_head.bias",
        "temp",
        "visual_encoder.blocks.0.norm1.bias",
    ];

    fn check(names: &[&str], plain: &[&str], taken_off: &[&str]) {
        let found = unwrapped(names.iter().copied()).unwrap();
        if taken_off.is_empty() {
            assert_eq!(found, None, "{names:?}");
            return;
        }
        let found = found.unwrap();
        assert_eq!(found.taken_off, taken_off, "{names:?}");
        for (name, plain) in names.iter().zip(plain) {
            let now = found.names.get(*name).map_or(*name, String::as_str);
            assert_eq!(now, *plain);
        }
    }

    #[test]
    fn wrappers_of_the_whole_in_any_order() {
        check(&LAVIS, &LAVIS, &[]);
        for (prefix, taken_off) in [
            ("module.", &["module."][..]),
            ("_orig_mod.", &["_orig_mod."]),
            ("_orig_mod.module.", &["_orig_mod.", "module."]),
            ("module._orig_mod.", &["module.", "_orig_mod."]),
            ("module.module.", &["module."]),
            ("model.", &["model."]),
            (
                "model._orig_mod.module.",
                &["_orig_mod.", "module.", "model."],
            ),
            ("a.b.c.", &["a.b.c."]),
            ("_forward_module.net.", &["_forward_module.", "net."]),
        ] {
            let wrapped = LAVIS.map(|name| format!("{prefix}{name}"));
            let wrapped = wrapped.each_ref().map(String::as_str);
            check(&wrapped, &LAVIS, taken_off);
        }
    }

    #[test]
    fn wrappers_of_parts() {
        check(
            &[
                "Qformer._orig_mod.bert.encoder.layer.0._checkpoint_wrapped_module.attention.self.query.weight",
                "_fsdp_wrapped_module.itm_head.bias",
                "temp",
                "visual_encoder.module.blocks.0.norm1.bias",
            ],
            &LAVIS,
            &[
                "_orig_mod.",
                "_checkpoint_wrapped_module.",
                "_fsdp_wrapped_module.",
                "module.",
            ],
        );
        // A whole model of sentence-transformers, and BERT's own `bert.`, which is part of the layout.
        let query = "encoder.layer.0.attention.self.query.weight";
        let of_trainer = format!("0.auto_model.{query}");
        check(&[&of_trainer], &[query], &["0.auto_model."]);
        let of_bert = format!("bert.{query}");
        check(&[&of_bert], &[&of_bert], &[]);
        check(&[&format!("module.{of_bert}")], &[&of_bert], &["module."]);
    }

    #[test]
    fn names_that_are_left_alone() {
        // Not all begin with it; of no layout with or without it; a tensor's own name; nothing.
        check(
            &["model.Qformer.bert.encoder.layer.0.x.weight", "loss.weight"],
            &[],
            &[],
        );
        check(&["model.conv.weight", "model.fc.bias"], &[], &[]);
        check(&["module", "temp.module"], &[], &[]);
        check(&[], &[], &[]);
        let error = unwrapped(["module.temp", "temp"].into_iter()).unwrap_err();
        assert!(
            error.contains("`temp`") && error.contains("both"),
            "{error}"
        );
    }
}
