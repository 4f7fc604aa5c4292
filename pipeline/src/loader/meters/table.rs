//! Reports as tables for people.

use std::fmt::Write;

use super::stats::{QueueReport, StageReport};

/// Stages as an aligned table with a heading, one line each.
pub fn stage_table<'a>(stages: impl IntoIterator<Item = &'a StageReport>) -> String {
    let mut table = format!(
        "{:<12} {:>8} {:>10} {:>16} {:>10} {:>10}\n",
        "stage", "threads", "items", "items/s/thread", "busy", "MB/s"
    );
    for stage in stages {
        let rate = match stage.bytes {
            0 => "-".to_string(),
            bytes => format!("{:.1}", bytes as f64 / 1e6 / stage.busy_secs.max(1e-9)),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<12} {:>8} {:>10} {:>16.1} {:>8.1} % {:>10}",
            stage.name,
            stage.threads,
            stage.items,
            stage.items_per_busy_sec,
            100.0 * stage.busy_share,
            rate
        );
    }
    table
}

/// Queues as an aligned table with a heading, one line each.
pub fn queue_table<'a>(queues: impl IntoIterator<Item = &'a QueueReport>) -> String {
    let mut table = format!(
        "{:<20} {:>10} {:>10} {:>16} {:>16}\n",
        "queue", "capacity", "mean", "full, waited s", "empty, waited s"
    );
    for queue in queues {
        let capacity = queue
            .capacity_items
            .map_or("bytes".to_string(), |items| items.to_string());
        let _ = writeln!(
            table,
            "{:<20} {:>10} {:>10.1} {:>16.2} {:>16.2}",
            queue.name, capacity, queue.mean_items, queue.full_wait_secs, queue.empty_wait_secs
        );
    }
    table
}
