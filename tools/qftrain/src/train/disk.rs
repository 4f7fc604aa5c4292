//! Room for checkpoints on the disk of a run.

use std::path::Path;

use qf_model::checkpoint;
use qf_model::train::Trainer;
use qf_pipeline::words::counted;

use super::plan::Plan;

/// What a run's checkpoints take, and what is free where they go.
pub(super) struct Room {
    /// Bytes of a checkpoint.
    each: f64,
    /// How many more of them the disk has to hold at a time.
    more: usize,
    /// Bytes that are free; none where the file system does not say.
    free: Option<f64>,
}

impl Room {
    /// Of a run whose folder is there.
    pub(super) fn of(plan: &Plan, trainer: &Trainer) -> Room {
        let config = &plan.config;
        // The one that is being written comes before one of the others goes.
        let most = config.keep_checkpoints + 1 + usize::from(config.validation.is_some());
        let there = checkpoint::list(&plan.run_dir.checkpoints()).map_or(0, |all| all.len());
        Room {
            each: checkpoint_bytes(trainer, config.optimizer.ema_decay.is_some()),
            more: most.saturating_sub(there),
            free: free(plan.run_dir.path()),
        }
    }

    pub(super) fn in_words(&self) -> String {
        let need = self.need();
        match self.free {
            Some(free) => format!("{need} at a time, {} free", bytes(free)),
            None => format!("{need} at a time"),
        }
    }

    /// What to do where there is too little of it.
    pub(super) fn warning(&self, run_dir: &Path) -> Option<String> {
        let short = |free: &f64| self.each * self.more as f64 > *free;
        let free = self.free.filter(short)?;
        Some(format!(
            "{} has {} free, too little for {}; make room, lower keep_checkpoints, or take a --run-dir on \
             another disk",
            run_dir.display(),
            bytes(free),
            self.need()
        ))
    }

    fn need(&self) -> String {
        let many = counted(self.more as u64, "checkpoint", "checkpoints");
        format!("{many} of {}", bytes(self.each))
    }
}

/// All weights, and the optimiser's moments of those that are trained.
fn checkpoint_bytes(trainer: &Trainer, has_averages: bool) -> f64 {
    const F32: usize = 4;
    let params = trainer.model.params();
    let size = |tensor: &tch::Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let weights: usize = params
        .named_parameters()
        .iter()
        .map(|p| size(&p.tensor))
        .sum();
    let trained: usize = params.trainable().map(|p| p.tensor.numel()).sum();
    let moments = 2 + usize::from(has_averages);
    (weights + moments * F32 * trained) as f64
}

/// What a user may still write there. A file system of unknown size does not say.
fn free(folder: &Path) -> Option<f64> {
    let told = rustix::fs::statvfs(folder).ok()?;
    (told.f_blocks > 0).then_some(told.f_bavail as f64 * told.f_frsize as f64)
}

/// A size as people read it.
pub(super) fn bytes(count: f64) -> String {
    match count {
        _ if count < 1e6 => format!("{:.0} kB", count / 1e3),
        _ if count < 1e9 => format!("{:.0} MB", count / 1e6),
        _ => format!("{:.1} GB", count / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_said_before_training() {
        let room = |free| Room {
            each: 2.1e7,
            more: 3,
            free,
        };
        let folder = Path::new("runs/a");
        assert_eq!(room(None).warning(folder), None);
        assert_eq!(room(Some(6.4e7)).warning(folder), None);
        let warning = room(Some(6.2e7)).warning(folder).unwrap();
        assert!(
            warning.starts_with("runs/a has 62 MB free, too little for 3 checkpoints of 21 MB;"),
            "{warning}"
        );
        let words = room(Some(4e9)).in_words();
        assert_eq!(words, "3 checkpoints of 21 MB at a time, 4.0 GB free");
    }

    #[test]
    fn sizes_are_readable() {
        for (count, text) in [(999.0, "1 kB"), (2.4e7, "24 MB"), (2.14e10, "21.4 GB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
