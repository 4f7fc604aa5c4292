//! All ranks must mean the same run: settings, shards and program are compared before anything is
//! trained.

use std::collections::BTreeMap;

use anyhow::{bail, Context};
use qf_model::train::TrainConfig;
use qf_model::Ranks;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qftrain::settings::flatten;
use serde::{Deserialize, Serialize};
use toml::Value;

/// Settings that ranks may differ in: they change no number.
const FREE: [&str; 6] = [
    "data.io_threads",
    "data.prefetch_batches",
    "data.read_ahead_bytes",
    "data.shuffle_buffer_bytes",
    "data.threads",
    "remote.cache",
];

/// Differences that a message lists, at most.
const SHOWN: usize = 4;

/// What must be the same on all ranks.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    program: String,
    /// Every setting by its full name.
    settings: BTreeMap<String, String>,
    /// Base name and size of each shard, in order; no size where the server does not say.
    shards: Vec<(String, Option<u64>)>,
}

impl Description {
    fn new(config: &TrainConfig, shards: &[ShardLocation]) -> anyhow::Result<Description> {
        let mut settings = BTreeMap::new();
        flatten("", &Value::try_from(config)?, &mut settings);
        settings.retain(|name, _| !FREE.contains(&name.as_str()));
        let shards = shards.iter().map(|shard| {
            let size = shard.size(&Stop::default());
            let size = size.with_context(|| format!("cannot read the size of {}", shard.name))?;
            Ok((shard.base_name().to_string(), size))
        });
        Ok(Description {
            program: concat!("qftrain ", env!("CARGO_PKG_VERSION")).to_string(),
            settings,
            shards: shards.collect::<anyhow::Result<_>>()?,
        })
    }

    /// How this one, of rank `rank`, differs from rank 0's.
    fn differences(&self, first: &Description) -> Vec<String> {
        let mut all = Vec::new();
        if self.program != first.program {
            all.push(format!(
                "program {} against {}",
                self.program, first.program
            ));
        }
        let names = self.settings.keys().chain(first.settings.keys());
        let names: std::collections::BTreeSet<&String> = names.collect();
        for name in names {
            let value = |of: &Description| match of.settings.get(name) {
                Some(value) => value.clone(),
                None => "unset".to_string(),
            };
            let (own, first) = (value(self), value(first));
            if own != first {
                all.push(format!("{name} = {own} against {first}"));
            }
        }
        if self.shards.len() != first.shards.len() {
            let (own, first) = (self.shards.len(), first.shards.len());
            all.push(format!("{own} shards against {first}"));
        }
        let mut pairs = self.shards.iter().zip(&first.shards).zip(1usize..);
        if let Some(((own, first), number)) = pairs.find(|((own, first), _)| own != first) {
            let size = |size: Option<u64>| match size {
                Some(bytes) => format!("{bytes} bytes"),
                None => "unknown length".to_string(),
            };
            all.push(format!(
                "shard {number}: {} of {} against {} of {}",
                own.0,
                size(own.1),
                first.0,
                size(first.1)
            ));
        }
        all
    }
}

/// Fails on every rank, naming the ranks and settings, unless all mean the same run.
pub(crate) fn check(
    ranks: &dyn Ranks,
    config: &TrainConfig,
    shards: &[ShardLocation],
) -> anyhow::Result<()> {
    if ranks.world_size() == 1 {
        return Ok(());
    }
    let own = Description::new(config, shards)?;
    let json = serde_json::to_vec(&own)?;
    let digest = qf_model::collective::digest(&json);
    let digests = ranks.gather_bytes(&digest)?;
    if digests.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    // Long, so only now: a list of shards.
    let first: Description = serde_json::from_slice(&ranks.broadcast_bytes(&json)?)?;
    let mut differences = own.differences(&first);
    let more = differences.len().saturating_sub(SHOWN);
    differences.truncate(SHOWN);
    if more > 0 {
        differences.push(format!("{more} more"));
    }
    let all = ranks.gather_bytes(differences.join("; ").as_bytes())?;
    let lines = all.iter().zip(0..).filter(|(text, _)| !text.is_empty());
    let lines = lines.map(|(text, rank)| {
        let text = String::from_utf8_lossy(text);
        format!("rank {rank} differs from rank 0 in {text}")
    });
    let lines: Vec<String> = lines.take(SHOWN).collect();
    bail!(
        "the ranks do not mean the same run: {}; start all with the same options and data",
        lines.join(". ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use qftrain::settings::Settings;

    #[test]
    fn differences_are_named() {
        let describe = |options: &[&str], shards: &[(&str, u64)]| {
            let mut settings = Settings::preset("tiny").unwrap();
            for option in options {
                settings.set_from_text(option).unwrap();
            }
            let config = settings.resolve().unwrap();
            let mut description = Description::new(&config, &[]).unwrap();
            description.shards = shards
                .iter()
                .map(|(name, size)| (name.to_string(), Some(*size)))
                .collect();
            description
        };
        let base = describe(&[], &[("a.tar", 1), ("b.tar", 2)]);
        let check = |other: Description, expected: &[&str]| {
            assert_eq!(other.differences(&base), expected);
        };
        check(
            describe(&["data.threads=7"], &[("a.tar", 1), ("b.tar", 2)]),
            &[],
        );
        check(
            describe(
                &["seed=7", "data.shuffle=none"],
                &[("a.tar", 1), ("b.tar", 3)],
            ),
            &[
                "data.shuffle = \"none\" against \"buffer\"",
                "seed = 7 against 42",
                "shard 2: b.tar of 3 bytes against b.tar of 2 bytes",
            ],
        );
        check(describe(&[], &[("a.tar", 1)]), &["1 shards against 2"]);
        let clip = describe(
            &["optimizer.max_grad_norm=1.0"],
            &[("a.tar", 1), ("b.tar", 2)],
        );
        check(clip, &["optimizer.max_grad_norm = 1.0 against unset"]);
        let sharded = describe(
            &["optimizer.shard_state=true"],
            &[("a.tar", 1), ("b.tar", 2)],
        );
        check(sharded, &["optimizer.shard_state = true against false"]);
    }
}
