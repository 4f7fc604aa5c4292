//! `qftrain` with several ranks.

use super::*;

/// `qftrain` as one of the ranks that torchrun would start.
fn rank_command(rank: usize, world: usize, port: u16, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command
        .args(["--join-timeout", "20"])
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The one `error:` line of a rank that must fail.
fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let mut lines = stderr.lines().filter(|line| line.starts_with("error:"));
    let line = lines.next().unwrap_or_else(|| panic!("{stderr}"));
    assert_eq!(lines.next(), None, "{stderr}");
    line.to_string()
}

/// Runs ranks with arguments of their own that must all fail, and returns their errors.
fn errors(port: u16, arguments: &[Vec<&str>]) -> Vec<String> {
    let ranks: Vec<Child> = arguments
        .iter()
        .enumerate()
        .map(|(rank, own)| {
            let mut command = rank_command(rank, arguments.len(), port, own);
            command.spawn().unwrap()
        })
        .collect();
    let outputs = ranks
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    outputs.map(|output| error_line(&output)).collect()
}

#[test]
fn nproc_trains_repeatably_and_resumes_with_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let held = glob("arrow");
    let more = [
        "--nproc",
        "2",
        "--steps",
        "6",
        "--val-shards",
        &held,
        "--val-every",
        "3",
        "--set",
        "validation.rerank=2",
        "--set",
        "accumulate_steps=2",
        "--set",
        "optimizer.max_grad_norm=1.0",
        "--set",
        "optimizer.ema_decay=0.9",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "schedule.init_lr=1e-3",
    ];
    let (one, other) = (path(&folder, "one"), path(&folder, "other"));
    for run_dir in [&one, &other] {
        let stdout = succeeds(&small_run(run_dir, &shards, &more));
        assert!(stdout.contains("done: step 6 of 6"), "{stdout}");
    }
    let (one, other) = (Path::new(&one), Path::new(&other));
    assert_eq!(exact_metrics(one), exact_metrics(other));
    assert!(weights(one, 6) == weights(other, 6));
    let records = metrics(one);
    let losses: Vec<f64> = records
        .iter()
        .filter(|record| record["kind"] == "train")
        .map(|record| record["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 6);
    assert!(losses.iter().all(|loss| loss.is_finite()));
    assert!(losses[5] < losses[0], "{losses:?}");
    let validations = records.iter().filter(|r| r["kind"] == "validation");
    assert_eq!(validations.count(), 2);
    // 2 ranks, 2 batches each, of 4 images.
    assert_eq!(records.last().unwrap()["step"], 6);

    // The same state goes on with two ranks, and with another number of them.
    let again = other.display().to_string();
    let resume = [
        "--run-dir",
        &again,
        "--resume",
        "--allow-changes",
        "--steps",
    ];
    let resume = |more: &[&'static str]| succeeds(&[&resume[..], more].concat());
    resume(&["8", "--nproc", "2"]);
    resume(&["10"]);
    resume(&["12", "--nproc", "4"]);
    assert!(checkpoint(other, 12).is_dir());
    let unbroken = path(&folder, "unbroken");
    let steps = |text: &'static str| {
        let mut more = more;
        more[3] = text;
        more
    };
    succeeds(&small_run(&unbroken, &shards, &steps("8")));
    let (all, resumed) = (exact_metrics(Path::new(&unbroken)), exact_metrics(other));
    // Only the rate depends on the length of the run.
    assert_eq!(all[0], resumed[0]);
    assert_eq!(resumed.len(), 12);
    let message = succeeds(&["--run-dir", &again, "--resume", "--nproc", "2"]);
    assert!(message.contains("all 12 steps are done"), "{message}");
}

/// Runs what must succeed with the lines of the ranks on standard error.
fn says(arguments: &[&str]) -> String {
    let output = qftrain(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// With one rank everything that several do is done: the store, gathers, the reducer's buckets.
#[test]
fn a_group_of_one_trains_as_a_single_process() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    for (name, more) in [
        ("plain", &["--steps", "5"][..]),
        (
            "more",
            &[
                "--steps",
                "4",
                "--set",
                "accumulate_steps=2",
                "--set",
                "optimizer.max_grad_norm=1.0",
            ],
        ),
    ] {
        let alone = path(&folder, name);
        succeeds(&small_run(&alone, &shards, more));
        for group in [&["--force-group"][..], &["--force-group", "--nproc", "1"]] {
            let run_dir = path(&folder, &format!("{name}-{}", group.len()));
            let said = says(&small_run(&run_dir, &shards, &[more, group].concat()));
            assert!(said.contains("[rank 0] training on the CPU"), "{said}");
            let (one, other) = (Path::new(&alone), Path::new(&run_dir));
            same_run(one, other, more[1].parse().unwrap());
        }
    }
}

/// What sharding may not change: a rate that does not depend on the length of the run.
const STEADY: [&str; 6] = [
    "--set",
    "schedule.warmup_steps=0",
    "--set",
    "schedule.init_lr=1e-3",
    "--set",
    "schedule.min_lr=1e-3",
];

const SHARD: [&str; 2] = ["--set", "optimizer.shard_state=true"];
const NO_SHARD: [&str; 2] = ["--set", "optimizer.shard_state=false"];

#[test]
fn sharded_state_changes_no_number_and_resumes_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, held) = (glob("tar"), glob("arrow"));
    let more = [
        "--nproc",
        "2",
        "--val-shards",
        &held,
        "--val-every",
        "3",
        "--set",
        "validation.rerank=2",
        "--set",
        "checkpoint_every_steps=2",
        "--set",
        "accumulate_steps=2",
        "--set",
        "optimizer.max_grad_norm=1.0",
        "--set",
        "optimizer.ema_decay=0.9",
        "--set",
        "optimizer.layer_decay=0.8",
        "--set",
        "freeze=[\"Qformer.bert.embeddings.*\"]",
        "--steps",
    ];
    let run = |run_dir: &str, more: &[&[&str]]| says(&small_run(run_dir, &shards, &more.concat()));
    let (whole, spread) = (path(&folder, "whole"), path(&folder, "spread"));
    let said = run(&whole, &[&more, &["6"], &STEADY]);
    assert!(!said.contains("optimiser state"), "{said}");
    let said = run(&spread, &[&more, &["4"], &STEADY, &SHARD]);
    assert!(
        said.contains("MB of optimiser state on this rank"),
        "{said}"
    );

    // From the same checkpoint, with the state spread over other ranks, or over none.
    let resumed = |name: &str, more: &[&str]| {
        let run_dir = path(&folder, name);
        let copied = Command::new("cp").args(["-r", &spread, &run_dir]).status();
        assert!(copied.unwrap().success());
        let resume = ["--run-dir", &run_dir, "--resume", "--steps", "6"];
        (says(&[&resume[..], more].concat()), run_dir)
    };
    let same = |one: &str, other: &str| same_run(Path::new(one), Path::new(other), 6);
    let (said, again) = resumed("again", &["--nproc", "2"]);
    assert!(said.contains("MB of optimiser state"), "{said}");
    same(&whole, &again);
    let (said, whole_again) = resumed("whole-again", &[&["--nproc", "2"], &NO_SHARD[..]].concat());
    assert!(!said.contains("optimiser state"), "{said}");
    same(&whole, &whole_again);
    let (_, four) = resumed("four", &["--nproc", "4"]);
    let (_, whole_four) = resumed("whole-four", &[&["--nproc", "4"], &NO_SHARD[..]].concat());
    same(&four, &whole_four);
    let (said, one) = resumed("one", &[]);
    assert!(!said.contains("optimiser state"), "{said}");
    assert!(checkpoint(Path::new(&one), 6).is_dir());
    // What was not sharded may become so.
    let resume = [
        "--run-dir",
        &whole,
        "--resume",
        "--steps",
        "8",
        "--nproc",
        "2",
    ];
    says(&[&resume[..], &SHARD].concat());
    let resume = [
        "--run-dir",
        &again,
        "--resume",
        "--steps",
        "8",
        "--nproc",
        "2",
    ];
    says(&resume);
    same_run(Path::new(&whole), Path::new(&again), 8);
}

#[test]
fn sharded_state_with_a_loss_scale_and_with_fewer_parameters_than_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let f16 = [
        "--nproc",
        "2",
        "--set",
        "precision=f16",
        "--set",
        "optimizer.max_grad_norm=0.5",
    ];
    // The temperature and the matching head stay: three tensors.
    let few = [
        "--nproc",
        "4",
        "--set",
        "optimizer.ema_decay=0.5",
        "--set",
        "freeze=[\"Qformer.*\", \"visual_encoder.*\", \"ln_vision.*\", \"*_proj.*\", \"query_tokens\"]",
    ];
    for (name, more) in [("f16", f16), ("few", few)] {
        let [whole, spread] =
            ["whole", "spread"].map(|kind| path(&folder, &format!("{name}-{kind}")));
        for (run_dir, shard) in [(&whole, &[][..]), (&spread, &SHARD[..])] {
            let more = [&more[..], &["--steps", "3"], &STEADY, shard].concat();
            says(&small_run(run_dir, &shards, &more));
        }
        same_run(Path::new(&whole), Path::new(&spread), 3);
    }
}

/// A run of `ranks` processes without end, once it has made a step.
fn endless(
    run_dir: &str,
    nproc: &str,
    more: &[&str],
) -> (Child, BufReader<std::process::ChildStderr>) {
    let shards = glob("tar");
    let more = [&["--nproc", nproc, "--steps", "1000000"], more].concat();
    let mut child = command(&small_run(run_dir, &shards, &more))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let started = Instant::now();
    let has_step = || {
        let text = fs::read_to_string(Path::new(run_dir).join("metrics.jsonl"));
        text.unwrap_or_default().lines().count() > 1
    };
    while !has_step() {
        assert!(started.elapsed() < Duration::from_secs(60), "no step");
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    (child, stderr)
}

/// The processes that `parent` has started, by their rank.
pub(crate) fn ranks_of(parent: &Child) -> Vec<(usize, u32)> {
    let id = parent.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let mut ranks: Vec<(usize, u32)> = children
        .filter_map(|pid: u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let text = String::from_utf8_lossy(&environment).into_owned();
            let rank = text
                .split('\0')
                .find_map(|entry| entry.strip_prefix("RANK="))?;
            Some((rank.parse().unwrap(), pid))
        })
        .collect();
    ranks.sort_unstable();
    ranks
}

pub(crate) fn kill(signal: &str, pid: u32) {
    let script = format!("kill {signal} {pid}");
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.unwrap().success(), "{script}");
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_killed_rank_ends_the_job_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    // A save every step, so that ranks meet in all that they do together.
    let saves = ["--set", "checkpoint_every_steps=1"];
    let sharded = [&saves, &SHARD[..]].concat();
    for (victim, more) in [(1usize, &[][..]), (0, &[]), (2, &sharded), (0, &sharded)] {
        let run_dir = path(&folder, &format!("run-{victim}-{}", more.len()));
        let (mut child, mut stderr) = endless(&run_dir, "3", more);
        let ranks = ranks_of(&child);
        assert_eq!(
            ranks.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        let killed = Instant::now();
        kill("-KILL", ranks[victim].1);
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert!(killed.elapsed() < Duration::from_secs(30), "{text}");
        assert_eq!(status.code(), Some(1), "{text}");
        let word = format!("error: rank {victim} was killed by signal 9");
        assert!(text.contains(&word), "{text}");
        for (rank, pid) in ranks.iter().filter(|(rank, _)| *rank != victim) {
            let word = format!("[rank {rank}] error: rank {victim} is gone");
            assert!(text.contains(&word), "{word}: {text}");
            assert!(is_gone(*pid));
        }
    }
}

#[test]
fn a_signal_saves_and_ends_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    for (signal, to_launcher) in [("-TERM", true), ("-INT", true), ("-TERM", false)] {
        let _ = fs::remove_dir_all(&run_dir);
        let (child, mut stderr) = endless(&run_dir, "2", &[]);
        match to_launcher {
            true => kill(signal, child.id()),
            // Of the ranks only the second is told.
            false => kill(signal, ranks_of(&child)[1].1),
        }
        let told = Instant::now();
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(told.elapsed() < Duration::from_secs(30));
        assert_eq!(output.status.code(), Some(0), "{text}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("interrupted at step"), "{stdout}{text}");
        let steps = metrics(Path::new(&run_dir)).len() as u64;
        assert!(checkpoint(Path::new(&run_dir), steps).is_dir());
    }
    // A launcher that is killed leaves no rank behind.
    let _ = fs::remove_dir_all(&run_dir);
    let (mut child, stderr) = endless(&run_dir, "2", &[]);
    let ranks = ranks_of(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while !ranks.iter().all(|(_, pid)| is_gone(*pid)) {
        assert!(started.elapsed() < Duration::from_secs(30), "orphans");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stderr.lines());
}

fn all_say(errors: &[String], words: &[&str]) {
    for error in errors {
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn ranks_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let arrow = glob("arrow");
    let run = |shards, more: &[&'static str]| -> Vec<&str> {
        let steps = ["--steps", "2"];
        small_run(&run_dir, shards, &[&steps, more].concat())
    };
    // Another setting, other shards: said by all ranks.
    let all = errors(
        free_port(),
        &[run(&tar, &[]), run(&tar, &["--seed", "7"]), run(&tar, &[])],
    );
    all_say(
        &all,
        &["rank 1 differs from rank 0 in", "seed = 7 against 42"],
    );
    let all = errors(free_port(), &[run(&tar, &[]), run(&arrow, &[])]);
    all_say(&all, &["rank 1 differs from rank 0", "shards = ", ".arrow"]);
    // A rank's own mistake is told to the others.
    let all = errors(free_port(), &[run(&tar, &[]), run("/no/such.tar", &[])]);
    all_say(&all, &["/no/such.tar", "does not exist"]);
    all_say(&all[..1], &["rank 1: "]);
    assert!(!Path::new(&run_dir).join("checkpoints").exists());
}

#[test]
fn ranks_that_cannot_meet_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let own = small_run(&run_dir, &tar, &["--steps", "2"]);
    // A port that somebody has.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let output = rank_command(0, 2, port, &own).output().unwrap();
    let port_text = port.to_string();
    all_say(
        &[error_line(&output)],
        &["rank 0", &port_text, "is in use", "MASTER_PORT"],
    );
    drop(listener);

    // Nobody there, a rank that does not come, a rank too many, another number of ranks.
    let impatient = |rank, world, port: u16| {
        let mut command = command(&own);
        command.args(["--join-timeout", "2"]);
        for (name, value) in [("RANK", rank), ("WORLD_SIZE", world)] {
            command.env(name, value);
        }
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let alone = [
        impatient("1", "2", free_port()),
        impatient("0", "2", free_port()),
    ];
    let alone = alone.map(|child| error_line(&child.wait_with_output().unwrap()));
    all_say(
        &alone[..1],
        &["rank 1", "rank 0 cannot be reached", "MASTER_ADDR"],
    );
    all_say(
        &alone[1..],
        &["rank 0", "1 of 2 ranks did not come in time: 1"],
    );
    let port = free_port();
    let sizes = [impatient("0", "2", port), impatient("1", "3", port)];
    let sizes = sizes.map(|child| error_line(&child.wait_with_output().unwrap()));
    all_say(&sizes, &["WORLD_SIZE"]);
    let port = free_port();
    let twice = [("0", "3"), ("1", "3"), ("1", "3")].map(|(r, w)| impatient(r, w, port));
    let twice = twice.map(|child| error_line(&child.wait_with_output().unwrap()));
    let taken = twice.iter().filter(|e| e.contains("is rank 1 already"));
    assert_eq!(taken.count(), 1, "{twice:?}");
}

#[test]
fn variables_of_ranks_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let own = small_run(&run_dir, &tar, &["--steps", "2"]);
    // Variables that make no sense.
    for (variables, word) in [
        (
            &[("RANK", "0")][..],
            "WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set",
        ),
        (
            &[
                ("RANK", "2"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "1234"),
            ],
            "2 is not below the number of ranks, 2",
        ),
        (
            &[
                ("RANK", "one"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "1234"),
            ],
            "RANK=one",
        ),
    ] {
        let output = command(&own).envs(variables.iter().copied()).output();
        all_say(&[error_line(&output.unwrap())], &[word]);
    }
}

#[test]
fn a_loss_that_is_no_number_on_one_rank_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let tar = glob("tar");
    let exploding = [
        "--steps",
        "40",
        "--set",
        "schedule.init_lr=1e30",
        "--set",
        "schedule.min_lr=1e30",
        "--set",
        "schedule.warmup_steps=0",
    ];
    let own = small_run(&run_dir, &tar, &exploding);
    let all = errors(free_port(), &[own.clone(), own.clone()]);
    for error in &all {
        assert!(error.contains("step 2: "), "{error}");
        assert!(error.contains(" on rank 0 is not finite"), "{error}");
    }
    let skip = [
        "--set",
        "on_non_finite=skip",
        "--set",
        "max_skips_in_a_row=2",
    ];
    let run_dir = path(&folder, "skip");
    let own = small_run(&run_dir, &tar, &[&exploding[..], &skip].concat());
    let all = errors(free_port(), &[own.clone(), own]);
    for error in &all {
        assert!(
            error.contains("the 2 updates before it were skipped"),
            "{error}"
        );
    }
    let skipped = metrics(Path::new(&run_dir));
    let skipped = skipped.iter().filter(|record| record["kind"] == "skipped");
    assert_eq!(skipped.count(), 2);
}
