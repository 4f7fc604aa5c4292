//! Names the stage that limits a loader.

use super::stats::{LoaderReport, StageReport};

impl LoaderReport {
    /// One clause: which stage limits the loader by itself, and what would help.
    pub fn bottleneck(&self) -> String {
        let stage = |name: &str| self.stages.iter().find(|stage| stage.name == name);
        let group = |names: &[&str]| -> f64 {
            names
                .iter()
                .filter_map(|name| stage(name))
                .map(|stage| stage.busy_share)
                .sum()
        };
        let workers = ["decode", "augment", "tokenise"];
        let readers = ["read", "decompress"];
        let groups = [
            (group(&workers), &workers[..]),
            (group(&readers), &readers[..]),
            (group(&["collate"]), &["collate"][..]),
        ];
        let Some((share, names)) = groups.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)) else {
            return "nothing ran".into();
        };
        let busiest = names
            .iter()
            .filter_map(|name| stage(name))
            .max_by(|a, b| a.busy_secs.total_cmp(&b.busy_secs));
        let name = busiest.map_or("read", |stage: &StageReport| stage.name.as_str());
        let remedy = match name {
            "decode" | "augment" | "tokenise" => {
                "raise --threads while cores are free, or shard smaller images"
            }
            "read" => "raise io_threads, or use faster storage",
            "decompress" => "raise io_threads, or shard as plain tar: photographs do not shrink",
            _ => "use a smaller batch_size",
        };
        format!(
            "the busiest stage is {name} (its threads are busy {:.0} % of the time): {remedy}",
            100.0 * share
        )
    }
}
