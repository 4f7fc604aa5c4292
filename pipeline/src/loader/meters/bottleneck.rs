//! Names what limits a loader, and the setting to change.

use super::queue::QueueName;
use super::stats::{LoaderReport, StageReport};

/// What a loader's settings are called where its user sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingNames {
    /// Threads that decode.
    pub threads: &'static str,
    /// Threads that read.
    pub io_threads: &'static str,
    /// The setting that reduces JPEGs most while they are decoded, with its value.
    pub decode_fast: &'static str,
    /// The folder that remote shards are kept in.
    pub cache: &'static str,
}

impl SettingNames {
    /// Those of a training configuration.
    pub const CONFIG: SettingNames = SettingNames {
        threads: "data.threads",
        io_threads: "data.io_threads",
        decode_fast: "data.decode_quality = \"fast\"",
        cache: "remote.cache",
    };
}

/// The consumer is the limit where batches wait for it this share of the time, ...
const FULL_SHARE: f64 = 0.5;

/// ... and it for them no more than this.
const EMPTY_SHARE: f64 = 0.01;

/// Threads busy less than this share of the time limit nothing.
const BUSY_SHARE: f64 = 0.5;

/// Threads that compute get less than this share of the CPU time they want where others have the
/// cores.
const STARVED_SHARE: f64 = 0.5;

/// Most reading threads that are proposed.
const MAX_IO_THREADS: usize = 16;
const MAX_REMOTE_IO_THREADS: usize = 64;

impl LoaderReport {
    /// One clause: what limits the loader, and the setting to change, as a training configuration
    /// calls it.
    pub fn bottleneck(&self) -> String {
        self.bottleneck_as(&SettingNames::CONFIG)
    }

    /// One clause: what limits the loader, and the setting to change under its name.
    pub fn bottleneck_as(&self, names: &SettingNames) -> String {
        if let Some(clause) = self.starvation(0.0) {
            return clause;
        }
        let workers = self.group(&["decode", "augment", "tokenise"]);
        let readers = self.group(&["read", "decompress"]);
        let collator = self.group(&["collate"]);
        if let Some(clause) = self.consumer(workers.share, names) {
            return clause;
        }
        let groups = [workers, readers, collator];
        let busiest = groups
            .into_iter()
            .max_by(|a, b| a.share.total_cmp(&b.share));
        let Some((name, share)) = busiest.and_then(|group| Some((group.stage?, group.share)))
        else {
            return "nothing ran".into();
        };
        let percent = 100.0 * share;
        if share < BUSY_SHARE {
            return format!(
                "no stage is busy even half of the time (the busiest, {name}, {percent:.0} %): others \
                 use the machine's cores or its disk, or work comes unevenly; a trace shows where \
                 threads wait"
            );
        }
        let remedy = match name {
            "decode" | "augment" | "tokenise" => self.more_threads(name, names),
            "read" => self.faster_reads(names),
            "decompress" => self.less_compression(names),
            _ => "one thread does it: draw one caption of each sample, and ask for fewer members"
                .into(),
        };
        format!("the busiest stage is {name} (its threads are busy {percent:.0} % of the time): {remedy}")
    }

    /// The clause where threads that compute do not get the machine's cores: what they seem to take is
    /// then mostly waiting for one. `more_busy_secs` is what other threads of this process computed.
    pub fn starvation(&self, more_busy_secs: f64) -> Option<String> {
        let wall = self.wall_secs.max(1e-9);
        let computes = ["decode", "augment", "tokenise", "collate"];
        let computing = (self.stages.iter())
            .filter(|stage| computes.contains(&stage.name.as_str()))
            .map(|stage| stage.busy_secs);
        let wanted = (computing.sum::<f64>() + more_busy_secs).min(self.cores as f64 * wall);
        let got = self.cpu_secs?;
        if wanted < BUSY_SHARE * wall || got >= STARVED_SHARE * wanted {
            return None;
        }
        Some(format!(
            "got {:.1} of {} cores: the machine is busy, or this program is kept to less (its threads \
             wanted {:.1}); measure again while nothing else runs",
            got / wall,
            self.cores,
            wanted / wall
        ))
    }

    /// The clause where the consumer of batches is slower than the loader.
    fn consumer(&self, workers_share: f64, names: &SettingNames) -> Option<String> {
        let name = QueueName::Batches.name();
        let batches = self.queues.iter().find(|queue| queue.name == name)?;
        let wall = self.wall_secs.max(1e-9);
        let full = batches.full_wait_secs / wall;
        if full < FULL_SHARE || batches.empty_wait_secs / wall > EMPTY_SHARE {
            return None;
        }
        // A quarter more than they are busy, so that they stay ahead.
        let enough = (1.25 * workers_share * self.threads as f64).ceil().max(1.0) as usize;
        let fewer = match enough < self.threads {
            true => format!(" ({} {} → {enough} would do)", names.threads, self.threads),
            false => String::new(),
        };
        Some(format!(
            "the consumer of batches, not the loader: a batch was ready, and waited for it, {:.0} % of \
             the time; make what is done with batches faster, more loader threads change nothing{fewer}",
            100.0 * full
        ))
    }

    fn more_threads(&self, stage: &str, names: &SettingNames) -> String {
        let SettingNames {
            threads,
            decode_fast,
            ..
        } = names;
        if self.threads < self.cores {
            return format!("{threads} {} → {} (one a core)", self.threads, self.cores);
        }
        let less_work = match stage {
            "decode" => format!("try {decode_fast}, shard smaller images, or "),
            _ => String::new(),
        };
        format!(
            "each of the {} cores has a thread already; {less_work}use more or faster cores",
            self.cores
        )
    }

    fn faster_reads(&self, names: &SettingNames) -> String {
        let (most, otherwise) = match self.is_remote {
            true => (
                MAX_REMOTE_IO_THREADS,
                format!("keep shards on this machine ({})", names.cache),
            ),
            false => (MAX_IO_THREADS, "use faster storage".into()),
        };
        match self.io_threads < most {
            true => format!("{}, or {otherwise}", self.more_io_threads(most, names)),
            false => otherwise,
        }
    }

    fn less_compression(&self, names: &SettingNames) -> String {
        let otherwise = "shard as plain tar: photographs do not shrink";
        match self.io_threads < self.cores {
            true => format!(
                "{}, or {otherwise}",
                self.more_io_threads(self.cores, names)
            ),
            false => otherwise.into(),
        }
    }

    fn more_io_threads(&self, most: usize, names: &SettingNames) -> String {
        let more = (2 * self.io_threads).min(most);
        format!("{} {} → {more}", names.io_threads, self.io_threads)
    }

    /// Stages that share threads.
    fn group(&self, names: &[&str]) -> Group<'_> {
        let stages = || {
            let all = self.stages.iter();
            all.filter(|stage| names.contains(&stage.name.as_str()))
        };
        let busiest = stages().max_by(|a, b| a.busy_secs.total_cmp(&b.busy_secs));
        Group {
            stage: busiest.map(|stage: &StageReport| stage.name.as_str()),
            share: stages().map(|stage| stage.busy_share).sum(),
        }
    }
}

struct Group<'a> {
    /// The one that takes most of the time.
    stage: Option<&'a str>,
    share: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::QueueReport;

    /// Ten seconds on 4 cores.
    fn report(threads: usize, io_threads: usize, busy: &[(&str, f64)]) -> LoaderReport {
        let stage = |&(name, busy_secs): &(&str, f64)| {
            let threads = match name {
                "read" | "decompress" => io_threads,
                "collate" => 1,
                _ => threads,
            };
            StageReport::new(name, threads, 100, 0, busy_secs, 10.0)
        };
        LoaderReport {
            wall_secs: 10.0,
            cpu_secs: None,
            cores: 4,
            threads,
            io_threads,
            is_remote: false,
            stages: busy.iter().map(stage).collect(),
            queues: Vec::new(),
        }
    }

    fn batches(full_wait_secs: f64, empty_wait_secs: f64) -> Vec<QueueReport> {
        vec![QueueReport {
            name: QueueName::Batches.name().into(),
            capacity_items: Some(4),
            items: 10,
            mean_items: 3.0,
            full_wait_secs,
            empty_wait_secs,
        }]
    }

    #[track_caller]
    fn says(report: &LoaderReport, words: &[&str]) {
        let text = report.bottleneck();
        for word in words {
            assert!(text.contains(word), "`{word}`: {text}");
        }
    }

    #[test]
    fn the_limit_comes_with_a_setting() {
        let decode = [("decode", 15.0), ("augment", 3.0), ("read", 9.0)];
        says(
            &report(2, 2, &decode),
            &["is decode", "90 %", "data.threads 2 → 4"],
        );
        let all_cores = [("decode", 30.0), ("read", 1.0)];
        says(&report(4, 2, &all_cores), &["4 cores", "decode_quality"]);
        says(
            &report(4, 2, &[("augment", 30.0)]),
            &["augment", "faster cores"],
        );
        let read = [("decode", 5.0), ("read", 19.0)];
        says(&report(4, 2, &read), &["is read", "data.io_threads 2 → 4"]);
        let many = report(4, 16, &[("read", 150.0)]);
        says(&many, &["is read", "faster storage"]);
        assert!(!many.bottleneck().contains('→'));
        let mut remote = many.clone();
        remote.is_remote = true;
        says(&remote, &["data.io_threads 16 → 32", "remote.cache"]);
        let gzip = [("decompress", 12.0), ("read", 7.0)];
        says(
            &report(4, 2, &gzip),
            &["is decompress", "2 → 4", "plain tar"],
        );
        assert!(!report(4, 4, &[("decompress", 39.0)])
            .bottleneck()
            .contains('→'));
        says(
            &report(4, 2, &[("collate", 9.0)]),
            &["is collate", "one caption"],
        );
        says(
            &report(4, 2, &[("decode", 8.0)]),
            &["no stage", "decode, 20 %"],
        );
        says(&report(4, 2, &[]), &["nothing ran"]);
        let names = SettingNames {
            threads: "--threads",
            ..SettingNames::CONFIG
        };
        let text = report(2, 2, &decode).bottleneck_as(&names);
        assert!(text.contains(": --threads 2 → 4"), "{text}");
    }

    #[test]
    fn a_busy_machine_is_no_slow_decoder() {
        let mut starved = report(2, 2, &[("decode", 19.0), ("augment", 1.0), ("read", 3.0)]);
        starved.cpu_secs = Some(2.0);
        says(&starved, &["got 0.2 of 4 cores", "busy", "wanted 2.0"]);
        assert!(!starved.bottleneck().contains('→'));
        starved.cpu_secs = Some(15.0);
        says(&starved, &["is decode"]);
        // More threads than cores wait for each other, whatever else runs.
        let mut crowded = report(16, 2, &[("decode", 150.0)]);
        crowded.cpu_secs = Some(38.0);
        says(&crowded, &["is decode"]);
        crowded.cpu_secs = Some(10.0);
        says(&crowded, &["got 1.0 of 4 cores"]);
        // Waiting for a disk is no wish for a core.
        let mut slow_disk = report(2, 2, &[("decode", 1.0), ("read", 19.0)]);
        slow_disk.cpu_secs = Some(0.3);
        says(&slow_disk, &["is read"]);
        assert_eq!(slow_disk.starvation(0.5), None);
        assert!(slow_disk.starvation(9.0).unwrap().contains("busy"));
    }

    #[test]
    fn a_consumer_that_is_slower_is_named() {
        let mut slow = report(4, 2, &[("decode", 12.0), ("read", 18.0)]);
        slow.queues = batches(8.0, 0.05);
        says(&slow, &["consumer", "80 %", "data.threads 4 → 2"]);
        slow.queues = batches(8.0, 3.0);
        says(&slow, &["is read"]);
        slow.queues = batches(1.0, 0.0);
        says(&slow, &["is read"]);
    }
}
