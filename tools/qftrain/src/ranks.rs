//! The other processes of a data-parallel run, as the environment names them: torchrun's variables
//! (also those of our own launcher), or SLURM's.

use std::time::Duration;

use anyhow::{bail, Context};
use qf_model::device::{open_device, DeviceChoice};
use qf_model::{RankConfig, RankTimeouts};
use qftrain::args::TimeoutArgs;
use tch::Device;

/// Port of a SLURM job's rank 0, plus the job's number: jobs that share a machine differ in it.
const SLURM_PORT: u64 = 20_000;
const SLURM_PORTS: u64 = 10_000;

/// What the environment says of the ranks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ranks {
    pub(crate) config: RankConfig,
    /// This process among those of its machine.
    local_rank: usize,
    /// Ranks on this machine.
    local_world: usize,
    /// Whether the job has been started before, so that a run is to be continued where there is one.
    pub(crate) is_restart: bool,
}

/// How long ranks wait.
pub(crate) fn timeouts(args: &TimeoutArgs) -> RankTimeouts {
    let default = RankTimeouts::default();
    let secs = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
    RankTimeouts {
        join: secs(args.join_timeout, default.join),
        silence: secs(args.rank_timeout, default.silence),
        ..default
    }
}

/// This process among the ranks; `None` where it is alone, unless `is_forced` and the environment names
/// it as the one rank of a group.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub(crate) fn from_environment(is_forced: bool) -> anyhow::Result<Option<Ranks>> {
    let smallest = if is_forced { 1 } else { 2 };
    find(smallest, &|name| {
        let value = std::env::var_os(name)?;
        Some(value.to_string_lossy().into_owned())
    })
}

/// The ranks of a group of `smallest` or more.
fn find(smallest: i64, get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Ranks>> {
    let is_torchrun = ["RANK", "WORLD_SIZE", "LOCAL_RANK"]
        .iter()
        .any(|name| get(name).is_some());
    let ranks = if is_torchrun {
        torchrun(get)?
    } else if get("SLURM_STEP_ID").is_some() && get("SLURM_PROCID").is_some() {
        slurm(get)?
    } else {
        return Ok(None);
    };
    ranks.config.validate()?;
    // One rank is a single process, whoever started it.
    Ok(Some(ranks).filter(|ranks| ranks.config.world_size >= smallest))
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> anyhow::Result<T> {
    let parsed = text.trim().parse();
    parsed.map_err(|_| anyhow::anyhow!("{name}={text} is not a number that it can be"))
}

fn torchrun(get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Ranks> {
    const ALL: [&str; 4] = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];
    let missing: Vec<&str> = ALL.into_iter().filter(|name| get(name).is_none()).collect();
    if !missing.is_empty() {
        bail!(
            "a rank needs all of {}; {} not set (torchrun and --nproc set them; unset RANK, \
             WORLD_SIZE and LOCAL_RANK for a single process)",
            ALL.join(", "),
            match missing[..] {
                [one] => format!("{one} is"),
                _ => format!("{} are", missing.join(", ")),
            }
        );
    }
    let value = |name: &str| get(name).unwrap_or_default();
    let rank: i64 = number("RANK", &value("RANK"))?;
    let local_rank = match get("LOCAL_RANK") {
        Some(text) => number("LOCAL_RANK", &text)?,
        None => usize::try_from(rank).unwrap_or(0),
    };
    let local_world = match get("LOCAL_WORLD_SIZE") {
        Some(text) => number("LOCAL_WORLD_SIZE", &text)?,
        None => 1,
    };
    let attempt = get("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".into());
    let agent_has_store = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    Ok(Ranks {
        config: RankConfig {
            rank,
            world_size: number("WORLD_SIZE", &value("WORLD_SIZE"))?,
            host: value("MASTER_ADDR"),
            port: number("MASTER_PORT", &value("MASTER_PORT"))?,
            hosts_store: rank == 0 && !agent_has_store,
            attempt: format!("qftrain/{attempt}"),
            interface: get("GLOO_SOCKET_IFNAME").filter(|name| !name.is_empty()),
        },
        local_rank,
        local_world,
        is_restart: attempt != "0",
    })
}

fn slurm(get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Ranks> {
    let value = |name: &str| get(name).unwrap_or_default();
    let rank: i64 = number("SLURM_PROCID", &value("SLURM_PROCID"))?;
    let (name, size) = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]
        .into_iter()
        .find_map(|name| Some((name, get(name)?)))
        .context("SLURM_PROCID is set, but neither SLURM_STEP_NUM_TASKS nor SLURM_NTASKS")?;
    let local_rank = match get("SLURM_LOCALID") {
        Some(text) => number("SLURM_LOCALID", &text)?,
        None => 0,
    };
    // The node that srun was called on need not be one of the job's.
    let nodes = [
        "SLURM_STEP_NODELIST",
        "SLURM_NODELIST",
        "SLURM_JOB_NODELIST",
    ];
    let host = get("MASTER_ADDR")
        .or_else(|| nodes.into_iter().find_map(|name| first_host(&get(name)?)))
        .or_else(|| get("SLURM_LAUNCH_NODE_IPADDR"))
        .context(
            "SLURM names no node (SLURM_STEP_NODELIST); set MASTER_ADDR to the machine of rank 0",
        )?;
    let port = match get("MASTER_PORT") {
        Some(text) => number("MASTER_PORT", &text)?,
        None => {
            let job: u64 = match get("SLURM_JOB_ID") {
                Some(text) => number("SLURM_JOB_ID", &text)?,
                None => 0,
            };
            u16::try_from(SLURM_PORT + job % SLURM_PORTS)?
        }
    };
    let restarts = get("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".into());
    Ok(Ranks {
        config: RankConfig {
            rank,
            world_size: number(name, &size)?,
            host,
            port,
            hosts_store: rank == 0,
            attempt: format!("qftrain/{restarts}"),
            interface: get("GLOO_SOCKET_IFNAME").filter(|name| !name.is_empty()),
        },
        local_rank,
        // SLURM gives each of its tasks cores of its own.
        local_world: 1,
        is_restart: restarts != "0",
    })
}

/// The first of SLURM's host lists: `n[003-010,12]-ib,login` is `n003-ib`.
fn first_host(list: &str) -> Option<String> {
    let list = list.trim();
    let Some((prefix, rest)) = list.split_once('[').filter(|(p, _)| !p.contains(',')) else {
        let first = list.split(',').next()?;
        return (!first.is_empty()).then(|| first.to_string());
    };
    let (inside, after) = rest.split_once(']')?;
    let first = inside.split([',', '-']).next()?;
    let suffix = after.split(',').next()?;
    // A second range, of racks and nodes say.
    let suffix = match suffix.contains('[') {
        true => first_host(suffix)?,
        false => suffix.to_string(),
    };
    Some(format!("{prefix}{first}{suffix}"))
}

impl Ranks {
    /// Threads of this rank's loader where none are set: its share of the machine's cores.
    pub(crate) fn loader_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / self.local_world.max(1)).max(1)
    }

    /// The device of this rank: of several GPUs the one of its number on the machine, unless the user
    /// names another.
    pub(crate) fn open_device(&self, choice: DeviceChoice) -> anyhow::Result<Device> {
        let own = DeviceChoice::Cuda(self.local_rank);
        Ok(match choice {
            DeviceChoice::Auto if open_device(DeviceChoice::Auto)?.is_cuda() => open_device(own)?,
            DeviceChoice::Cuda(0) => open_device(own)?,
            choice => open_device(choice)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(variables: &[(&str, &str)]) -> anyhow::Result<Option<Ranks>> {
        find(2, &|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    const TORCHRUN: [(&str, &str); 5] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29500"),
    ];

    fn with(variables: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let mut all = variables.to_vec();
        all.extend(TORCHRUN);
        all
    }

    #[test]
    fn torchrun_configures_a_rank() {
        assert_eq!(find_in(&[]).unwrap(), None);
        let ranks = find_in(&TORCHRUN).unwrap().unwrap();
        let config = &ranks.config;
        assert_eq!(
            (config.rank, config.world_size, ranks.local_rank),
            (3, 4, 1)
        );
        assert_eq!((config.host.as_str(), config.port), ("node1", 29500));
        assert!(!config.hosts_store && !ranks.is_restart);
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(ranks.loader_threads(), cores);
        for (size, share) in [("2", (cores / 2).max(1)), ("100000", 1), ("0", cores)] {
            let ranks = find_in(&with(&[("LOCAL_WORLD_SIZE", size)])).unwrap();
            assert_eq!(ranks.unwrap().loader_threads(), share);
        }
        assert!(
            find_in(&with(&[("RANK", "0")]))
                .unwrap()
                .unwrap()
                .config
                .hosts_store
        );
        let agent = [
            ("RANK", "0"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let ranks = find_in(&with(&agent)).unwrap().unwrap();
        assert!(!ranks.config.hosts_store && ranks.is_restart);
        assert_eq!(ranks.config.attempt, "qftrain/2");
        let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(find_in(&with(&one)).unwrap(), None);
        let one = with(&one);
        let get = |name: &str| {
            let found = one.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        };
        let forced = find(1, &get).unwrap().unwrap();
        assert_eq!(forced.config.world_size, 1);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let fails = |variables: &[(&str, &str)], words: &[&str]| {
            let message = format!("{:#}", find_in(variables).unwrap_err());
            for word in words {
                assert!(message.contains(word), "{variables:?}: {message}");
            }
        };
        fails(
            &TORCHRUN[..1],
            &["WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"],
        );
        fails(&TORCHRUN[..4], &["MASTER_PORT is not set"]);
        fails(&TORCHRUN[2..3], &["RANK"]);
        for (name, value) in [
            ("RANK", "x"),
            ("RANK", "-1"),
            ("RANK", "4"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", "-2"),
            ("WORLD_SIZE", "99999999"),
            ("WORLD_SIZE", "18446744073709551616"),
            ("LOCAL_RANK", "a"),
            ("LOCAL_WORLD_SIZE", "b"),
            ("MASTER_PORT", "65536"),
            ("MASTER_ADDR", ""),
        ] {
            let mut variables = vec![(name, value)];
            variables.extend(TORCHRUN);
            fails(
                &variables,
                &[if name == "MASTER_ADDR" {
                    "empty"
                } else {
                    value
                }],
            );
        }
        fails(
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0")],
            &["SLURM_NTASKS"],
        );
    }

    #[test]
    fn slurm_configures_a_rank() {
        let step = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "5"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_NODELIST", "gpu[07-08]"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"),
        ];
        let ranks = find_in(&step).unwrap().unwrap();
        let config = &ranks.config;
        assert_eq!(
            (config.rank, config.world_size, ranks.local_rank),
            (5, 8, 1)
        );
        assert_eq!((config.host.as_str(), config.port), ("gpu07", 23_456));
        // A batch script is no step.
        assert_eq!(find_in(&step[1..]).unwrap(), None);
        let requeued = [&step[..], &[("SLURM_RESTART_COUNT", "1")]].concat();
        assert!(find_in(&requeued).unwrap().unwrap().is_restart);
    }

    #[test]
    fn host_lists() {
        for (list, first) in [
            ("a", "a"),
            ("a,b[1-2]", "a"),
            ("n[003-010,12]-ib,login", "n003-ib"),
            ("n[9,11],m", "n9"),
            ("rack[1-2]node[05-06]", "rack1node05"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host(""), None);
        assert_eq!(first_host("n[1"), None);
    }
}
