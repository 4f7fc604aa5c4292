//! Finds out that a rank has died while this one computes or waits.
//!
//! A collective fails at once when the process at the other end of its connection dies. That does not
//! help a rank that is busy otherwise (rank 0 while it validates), nor one whose peer's machine has
//! vanished or whose process hangs. So every rank sends a heartbeat to the store each second; rank
//! 0, which hosts the store, looks for those that have stopped, and all look for the reason that
//! somebody has put there. A store that does not answer is a rank 0 that has died.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rank::RankConfig;
use super::store::{first_line, Board};

/// Time between two heartbeats.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// Time in which the host of the store lets others read why the run ends.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(3);

/// Called once, from another thread, with the reason why the run cannot go on.
pub(super) type OnLost = Box<dyn FnOnce(String) + Send>;

/// The threads that watch.
pub(super) struct Watch {
    shared: Arc<Shared>,
    stop: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    on_lost: Mutex<Option<OnLost>>,
    answered: Mutex<Instant>,
    is_over: AtomicBool,
}

impl Shared {
    fn report(&self, cause: String) {
        let on_lost = self
            .on_lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match on_lost {
            Some(on_lost) if !self.is_over.load(Ordering::SeqCst) => on_lost(cause),
            _ => {}
        }
    }
}

impl Watch {
    /// Watches over a connection of its own; a rank that is silent for `silence` is dead.
    pub(super) fn start(
        board: Board,
        config: &RankConfig,
        silence: Duration,
        on_lost: OnLost,
    ) -> std::io::Result<Watch> {
        let shared = Arc::new(Shared {
            on_lost: Mutex::new(Some(on_lost)),
            answered: Mutex::new(Instant::now()),
            is_over: AtomicBool::new(false),
        });
        let (stop_beats, beats_stopped) = channel();
        let (stop_clock, clock_stopped) = channel();
        let beats = {
            let shared = Arc::clone(&shared);
            let (rank, world_size, is_host) = (config.rank, config.world_size, config.hosts_store);
            let watched = if rank == 0 { world_size } else { 0 };
            let mut peers: Vec<(i64, Instant)> = vec![(0, Instant::now()); watched as usize];
            std::thread::Builder::new()
                .name("ranks".into())
                .spawn(move || loop {
                    match look(&board, rank, &mut peers, silence) {
                        Ok(None) => {
                            *shared
                                .answered
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner) = Instant::now();
                        }
                        Ok(Some(cause)) => {
                            board.part(world_size, is_host, LAST_WORDS);
                            return shared.report(cause);
                        }
                        Err(said) => {
                            return shared.report(format!(
                                "rank 0 is gone: its store does not answer ({})",
                                first_line(&said)
                            ))
                        }
                    }
                    match beats_stopped.recv_timeout(BEAT) {
                        Err(RecvTimeoutError::Timeout) => {}
                        _ => return,
                    }
                })?
        };
        let clock = {
            let shared = Arc::clone(&shared);
            // A connection to a machine that has vanished neither answers nor fails.
            std::thread::Builder::new()
                .name("ranks-clock".into())
                .spawn(move || loop {
                    let answered = *shared
                        .answered
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    if answered.elapsed() > silence + BEAT {
                        return shared.report(format!(
                            "rank 0 is gone: its store has not answered for {} s",
                            silence.as_secs()
                        ));
                    }
                    match clock_stopped.recv_timeout(BEAT) {
                        Err(RecvTimeoutError::Timeout) => {}
                        _ => return,
                    }
                })?
        };
        Ok(Watch {
            shared,
            stop: vec![stop_beats, stop_clock],
            threads: vec![beats, clock],
        })
    }

    /// From now on nothing is reported: the run is over, or somebody else reports.
    pub(super) fn silence(&self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.silence();
        self.stop.clear();
        for thread in self.threads.drain(..) {
            // A panic there has been printed, and there is nothing to clean up.
            let _ = thread.join();
        }
    }
}

/// One look: the reason why the run ends, if there is one.
fn look(
    board: &Board,
    rank: i64,
    peers: &mut [(i64, Instant)],
    silence: Duration,
) -> Result<Option<String>, String> {
    board.beat(rank)?;
    if let Some(cause) = board.failure()? {
        return Ok(Some(cause));
    }
    for (peer, (beats, since)) in (0i64..).zip(peers.iter_mut()) {
        let now = board.beats(peer)?;
        if now != *beats {
            (*beats, *since) = (now, Instant::now());
        } else if since.elapsed() > silence {
            let cause = format!(
                "rank {peer} has sent no heartbeat for {} s",
                silence.as_secs()
            );
            board.put_failure(&cause)?;
            return Ok(Some(cause));
        }
    }
    Ok(None)
}
