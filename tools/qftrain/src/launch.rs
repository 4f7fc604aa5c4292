//! `--nproc N`: starts N ranks of this program on this machine and stays with them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use rustix::process::{kill_process, Pid, Signal};

use crate::signals;
use qf_cli::output::remark;

/// Holds the number of the process that started this rank.
const LAUNCHER: &str = "QFTRAIN_LAUNCHER";

/// Time in which the other ranks find out themselves that one has ended, and rank 0 saves.
const GRACE: Duration = Duration::from_secs(20);

/// Between two looks at the ranks.
const POLL: Duration = Duration::from_millis(20);

/// Between two looks at the launcher.
const LAUNCHER_POLL: Duration = Duration::from_secs(1);

struct Rank {
    child: Child,
    /// Copies its stderr, and returns its last error.
    stderr: Option<JoinHandle<()>>,
    error: Arc<Mutex<Option<String>>>,
    status: Option<ExitStatus>,
}

/// Runs `nproc` ranks to their end: Ok if all succeed.
pub(crate) fn run(nproc: u32) -> anyhow::Result<()> {
    let interrupts = [
        (signal_hook::consts::SIGINT, Signal::INT),
        (signal_hook::consts::SIGTERM, Signal::TERM),
    ];
    let hang_up = (signal_hook::consts::SIGHUP, Signal::HUP);
    let hang_up = (!signals::ignores_hang_up()).then_some(hang_up);
    let mut caught = Vec::new();
    for (number, signal) in interrupts.into_iter().chain(hang_up) {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(number, flag.clone())
            .with_context(|| format!("cannot catch signal {number}"))?;
        caught.push((flag, signal));
    }
    let port = free_port().context("cannot find a free port for the ranks to meet at")?;
    let mut ranks = Vec::new();
    for rank in 0..nproc {
        match start(rank, nproc, port) {
            Ok(started) => ranks.push(started),
            Err(error) => {
                end(&mut ranks);
                return Err(error.context(format!("cannot start rank {rank}")));
            }
        }
    }
    let mut first: Option<(usize, ExitStatus, Instant)> = None;
    while ranks.iter().any(|rank| rank.status.is_none()) {
        for (flag, signal) in &caught {
            if flag.swap(false, Ordering::SeqCst) {
                send(&ranks, *signal);
            }
        }
        for (number, rank) in ranks.iter_mut().enumerate() {
            if rank.status.is_some() {
                continue;
            }
            rank.status = rank.child.try_wait().context("cannot wait for a rank")?;
            if let Some(status) = rank.status.filter(|status| !status.success()) {
                first.get_or_insert((number, status, Instant::now()));
            }
        }
        if first.is_some_and(|(_, _, since)| since.elapsed() > GRACE) {
            end(&mut ranks);
        }
        std::thread::sleep(POLL);
    }
    for rank in &mut ranks {
        if let Some(stderr) = rank.stderr.take() {
            // A panic there has been printed.
            let _ = stderr.join();
        }
    }
    match first {
        None => Ok(()),
        Some((number, status, _)) => bail!("{}", cause(number, status, &ranks)),
    }
}

fn start(rank: u32, nproc: u32, port: u16) -> anyhow::Result<Rank> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .args(own_arguments(std::env::args_os().skip(1)))
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("LOCAL_WORLD_SIZE", nproc.to_string())
        .env("WORLD_SIZE", nproc.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env(LAUNCHER, std::process::id().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C reaches the launcher alone, which passes it on: once.
        .process_group(0);
    if is_unset("OMP_NUM_THREADS") {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = (cores / nproc as usize).max(1);
        command.env("OMP_NUM_THREADS", threads.to_string());
    }
    let mut child = command.spawn()?;
    let error = Arc::new(Mutex::new(None));
    let stderr = child.stderr.take().map(|stderr| {
        let error = Arc::clone(&error);
        std::thread::Builder::new().spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                remark(format_args!("[rank {rank}] {line}"));
                if let Some(cause) = line.strip_prefix("error: ") {
                    *error.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause.to_string());
                }
            }
        })
    });
    let stderr = stderr.transpose().inspect_err(|_| {
        // Without its messages nobody would know why it fails.
        let _ = child.kill();
    })?;
    Ok(Rank {
        child,
        stderr,
        error,
        status: None,
    })
}

#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
fn is_unset(name: &str) -> bool {
    std::env::var_os(name).is_none()
}

/// The arguments of a rank: all but `--nproc N`.
fn own_arguments(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut own = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--nproc") => drop(arguments.next()),
            Some(text) if text.starts_with("--nproc=") => {}
            _ => own.push(argument),
        }
    }
    own
}

/// A port that nobody has just now.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn send(ranks: &[Rank], signal: Signal) {
    for rank in ranks.iter().filter(|rank| rank.status.is_none()) {
        let pid = i32::try_from(rank.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // One that has just ended needs no signal.
            let _ = kill_process(pid, signal);
        }
    }
}

fn end(ranks: &mut [Rank]) {
    for rank in ranks.iter_mut().filter(|rank| rank.status.is_none()) {
        // As above.
        let _ = rank.child.kill();
        rank.status = rank.child.wait().ok().or(rank.status);
    }
}

/// Why the run ended: the words of the rank that ended first, or how it was killed.
fn cause(first: usize, status: ExitStatus, ranks: &[Rank]) -> String {
    if let Some(signal) = status.signal() {
        return format!("rank {first} was killed by signal {signal}, and the others were ended");
    }
    let error = ranks.get(first).and_then(|rank| {
        let error = rank.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.clone()
    });
    match error {
        // It passes on what another rank said.
        Some(error) if error.starts_with("rank ") => error,
        Some(error) => format!("rank {first}: {error}"),
        None => format!("rank {first} ended with {status} and without a word"),
    }
}

/// Makes this process end like one that is interrupted when the launcher that started it has died.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub(crate) fn end_with_launcher() -> anyhow::Result<()> {
    let Some(launcher) = std::env::var_os(LAUNCHER) else {
        return Ok(());
    };
    let launcher: u32 = launcher
        .to_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("{LAUNCHER} is no process number; unset it"))?;
    std::thread::Builder::new()
        .name("launcher".into())
        .spawn(move || {
            while std::os::unix::process::parent_id() == launcher {
                std::thread::sleep(LAUNCHER_POLL);
            }
            if let Err(error) = signal_hook::low_level::raise(signal_hook::consts::SIGTERM) {
                log::error!("the launcher is gone, and this rank cannot end itself: {error}");
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_all_options_but_their_number() {
        let own = |arguments: &[&str]| {
            let own = own_arguments(arguments.iter().map(OsString::from));
            own.into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(own(&["--nproc", "2", "--steps", "3"]), ["--steps", "3"]);
        assert_eq!(own(&["--steps", "3", "--nproc=2"]), ["--steps", "3"]);
        assert_eq!(own(&["--nprocs"]), ["--nprocs"]);
    }
}
