//! One process among the ranks, and how it meets the others.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::Device;

use super::c10d::{C10dError, Store};
use super::store::{first_line, Board};
use crate::error::ModelError;

/// Largest port-independent world: beyond it something else is wrong.
pub(super) const MAX_WORLD_SIZE: i64 = 65_536;

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankTimeouts {
    /// For all ranks to come, from the start of this one. Default 300 s.
    pub join: Duration,
    /// For a heartbeat, which every rank sends each second. Default 15 s.
    pub silence: Duration,
    /// For the others to make the same call, while they are alive: rank 0 validates alone, say.
    /// Default 2 h.
    pub collective: Duration,
}

impl Default for RankTimeouts {
    fn default() -> Self {
        RankTimeouts {
            join: Duration::from_secs(300),
            silence: Duration::from_secs(15),
            collective: Duration::from_secs(2 * 3600),
        }
    }
}

/// Where this process stands among the ranks, and where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankConfig {
    /// This process, from 0.
    pub rank: i64,
    /// Number of ranks, 1 or more.
    pub world_size: i64,
    /// Name or address of the machine of rank 0.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// Whether this process opens that port. Rank 0 does, unless a launcher has done so already.
    pub hosts_store: bool,
    /// Keeps attempts of one job apart where the store outlives them.
    pub attempt: String,
    /// The network interface that Gloo uses; none for that of the machine's name, or the loopback
    /// where `host` is one.
    pub interface: Option<String>,
}

/// What ranks tell each other before anything else.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hello {
    world_size: i64,
    is_cuda: bool,
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.starts_with("127.") || host == "::1"
}

impl RankConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the one that is out of range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let error = |setting, message| Err(ModelError::Config { setting, message });
        if !(1..=MAX_WORLD_SIZE).contains(&self.world_size) {
            let message = format!("{} is out of range; take 1 or more", self.world_size);
            return error("world_size", message);
        }
        if !(0..self.world_size).contains(&self.rank) {
            let (rank, size) = (self.rank, self.world_size);
            let message = format!("{rank} is not below the number of ranks, {size}");
            return error("rank", message);
        }
        if self.host.is_empty() {
            return error("master address", "is empty".into());
        }
        Ok(())
    }

    pub(super) fn open(&self, hosts: bool, timeout: Duration) -> Result<Store, C10dError> {
        let store = Store::open((&self.host, self.port), hosts, &self.attempt, timeout);
        store.map_err(|said| {
            let said = first_line(&said);
            if hosts && said.contains("EADDRINUSE") {
                return format!(
                    "port {} is in use on this machine; end the process that has it, or take \
                     another MASTER_PORT on all ranks",
                    self.port
                );
            }
            match hosts {
                true => format!("cannot open the port ({said})"),
                false => format!(
                    "rank 0 cannot be reached within {} s; check that it runs, and that \
                     MASTER_ADDR and MASTER_PORT name its machine and a port open to this one \
                     ({said})",
                    timeout.as_secs()
                ),
            }
        })
    }

    /// Waits for all ranks and checks that they mean the same run.
    pub(super) fn meet(
        &self,
        board: &Board,
        device: Device,
        deadline: Instant,
    ) -> Result<(), C10dError> {
        let claims = board.store.add(&format!("claim/{}", self.rank), 1)?;
        if claims != 1 {
            return Err(format!(
                "another process is rank {} already; give each its own RANK",
                self.rank
            ));
        }
        let own = Hello {
            world_size: self.world_size,
            is_cuda: device.is_cuda(),
        };
        let json = serde_json::to_vec(&own).map_err(|error| error.to_string())?;
        board.store.set(&format!("hello/{}", self.rank), &json)?;
        for rank in 0..self.world_size {
            let key = format!("hello/{rank}");
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(json) = board.store.get(&key, left.max(Duration::from_millis(1))) else {
                return Err(self.missing(board));
            };
            let other: Hello = serde_json::from_slice(&json)
                .map_err(|error| format!("rank {rank} is another program ({error})"))?;
            if other.world_size != own.world_size {
                return Err(format!(
                    "rank {rank} was started for {} ranks, this one for {}; give all the same \
                     WORLD_SIZE",
                    other.world_size, own.world_size
                ));
            }
            if other.is_cuda != own.is_cuda {
                let name = |is_cuda| if is_cuda { "a GPU" } else { "the CPU" };
                return Err(format!(
                    "rank {rank} computes on {}, this one on {}; give all the same --device",
                    name(other.is_cuda),
                    name(own.is_cuda)
                ));
            }
        }
        Ok(())
    }

    pub(super) fn missing(&self, board: &Board) -> C10dError {
        let is_missing = |rank: &i64| !board.store.has(&format!("hello/{rank}")).unwrap_or(false);
        const SHOWN: usize = 8;
        let missing: Vec<i64> = (0..self.world_size).filter(is_missing).collect();
        let mut names: Vec<String> = missing.iter().take(SHOWN).map(i64::to_string).collect();
        if missing.len() > SHOWN {
            names.push("…".into());
        }
        format!(
            "{} of {} ranks did not come in time: {}; look at their logs, or at WORLD_SIZE",
            missing.len(),
            self.world_size,
            names.join(", ")
        )
    }
}
