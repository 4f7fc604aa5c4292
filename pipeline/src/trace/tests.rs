//! What the recorder writes, read back.

use std::collections::BTreeSet;
use std::fs;

use super::*;

fn new(folder: &tempfile::TempDir) -> Trace {
    Trace::create(folder.path().join("trace.json"), TraceLimits::default()).unwrap()
}

fn finish(trace: &Trace) -> TraceFile {
    let summary = trace.finish().unwrap();
    assert_eq!(summary.dropped(), 0);
    let file = TraceFile::read(&summary.path).unwrap();
    let spans: usize = file.tracks.iter().map(|track| track.spans.len()).sum();
    assert_eq!((spans + file.counters.len()) as u64, summary.events);
    file
}

fn names(folder: &tempfile::TempDir) -> usize {
    fs::read_dir(folder.path()).unwrap().count()
}

#[test]
fn odd_texts_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let trace = new(&folder);
    let odd = [
        "",
        "a \"quoted\" \\ key",
        "line\nfeed\ttab\r\0\u{1}\u{7f}",
        "naïve – 日本 – 🦀 \u{2028}",
        "</script>{}[],:",
    ];
    for text in odd {
        let now = Instant::now();
        let args = [
            (text, text.into()),
            ("bytes of it", (text.len() as u64).into()),
        ];
        trace.record(text, now, Duration::from_nanos(1), &args);
        trace
            .track(&format!("x{text}"))
            .record("on", now, Duration::ZERO, &[]);
        trace.counter(text, -0.5);
    }
    let numbers = [
        ("huge", u64::MAX.into()),
        ("none", f64::NAN.into()),
        ("third", (1.0 / 3.0).into()),
        ("yes", true.into()),
    ];
    trace.span("numbers").end(&numbers);
    trace.name_process("rank \"1\"");
    let file = finish(&trace);
    for (text, counter) in odd.iter().zip(&file.counters) {
        let span = file.spans(text).next().unwrap();
        assert_eq!(span.args[*text], *text);
        assert_eq!(span.args["bytes of it"], text.len());
        assert_eq!(span.duration_ns, 1);
        assert_eq!((counter.name.as_str(), counter.value), (*text, -0.5));
        assert_eq!(file.named(&format!("x{text}")).count(), 1);
    }
    let args = &file.spans("numbers").next().unwrap().args;
    assert_eq!(args["huge"], u64::MAX);
    assert!(args["none"].is_null());
    assert_eq!(args["third"], 1.0 / 3.0);
    assert_eq!(args["yes"], true);
}

#[test]
fn threads_have_tracks_of_their_own_on_which_spans_nest() {
    let folder = tempfile::tempdir().unwrap();
    let trace = new(&folder);
    let (threads, spans) = (8, 500);
    std::thread::scope(|scope| {
        for number in 0..threads {
            let trace = &trace;
            let thread = std::thread::Builder::new().name(format!("qf-work-{number}"));
            let body = move || {
                for _ in 0..spans {
                    let outer = trace.span("outer");
                    drop(trace.span("first"));
                    trace.span("second").end(&[("thread", number.into())]);
                    drop(outer);
                }
            };
            thread.spawn_scoped(scope, body).unwrap();
        }
    });
    trace.name_this_thread("train");
    drop(trace.span("step"));
    let file = finish(&trace);
    let tracks: Vec<&str> = file
        .tracks
        .iter()
        .map(|track| track.name.as_str())
        .collect();
    let workers: Vec<String> = (0..threads).map(|n| format!("qf-work-{n}")).collect();
    assert_eq!(tracks[..8], workers);
    assert_eq!(tracks[8..], ["train"]);
    let ids: BTreeSet<_> = file.tracks.iter().map(|track| track.id).collect();
    assert_eq!(ids.len(), 9);
    for (number, track) in file.tracks[..8].iter().enumerate() {
        assert_eq!(track.spans.len(), 3 * spans);
        for group in track.spans.chunks(3) {
            let names = group.iter().map(|span| span.name.as_str());
            assert_eq!(names.collect::<Vec<_>>(), ["outer", "first", "second"]);
            assert_eq!(group[2].args["thread"], number);
            assert!(group[0].end_ns() >= group[2].end_ns());
        }
    }
}

#[test]
fn a_thread_in_two_traces_keeps_one_track_in_each() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let traces = [new(&folders[0]), new(&folders[1])];
    for _ in 0..10 {
        for trace in &traces {
            drop(trace.span("turn"));
        }
    }
    for trace in &traces {
        let file = finish(trace);
        assert_eq!((file.tracks.len(), file.spans("turn").count()), (1, 10));
    }
}

#[test]
fn what_the_limit_leaves_out_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/trace.json");
    let trace = Trace::create(&path, TraceLimits { max_events: 10 }).unwrap();
    trace.counter("not a number", f64::INFINITY);
    for _ in 0..25 {
        drop(trace.span("span"));
    }
    trace.set_recording(false);
    drop(trace.span("unseen"));
    let summary = trace.finish().unwrap();
    assert_eq!((summary.events, summary.over_limit), (9, 16));
    assert_eq!((summary.not_written, summary.dropped()), (1, 17));
    let file = TraceFile::read(&path).unwrap();
    assert_eq!(file.tracks[0].spans.len(), 9);
    assert_eq!(file.counters, []);
    let said: Vec<_> = file
        .other_data
        .iter()
        .map(|(name, n)| (name.as_str(), n.as_u64()))
        .collect();
    let expected = [
        ("events", Some(9)),
        ("left out over the limit", Some(16)),
        ("left out, not written", Some(1)),
    ];
    assert_eq!(said, expected);
}

#[test]
fn only_recorded_times_are_in_it_and_none_lies_before_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let before = Instant::now();
    std::thread::sleep(Duration::from_millis(2));
    let trace = new(&folder);
    trace.record("began before", before, before.elapsed(), &[]);
    trace.record("was before", before, Duration::from_millis(1), &[]);
    trace.set_recording(false);
    assert!(!trace.is_recording());
    drop(trace.span("off"));
    trace.counter("off", 1.0);
    let straddles = trace.span("straddles");
    trace.set_recording(true);
    drop(straddles);
    let clone = trace.clone();
    let file = finish(&trace);
    drop(clone.span("after the end"));
    let names = file.tracks[0].spans.iter().map(|span| span.name.as_str());
    let names: BTreeSet<_> = names.collect();
    assert_eq!(
        names,
        BTreeSet::from(["began before", "straddles", "was before"])
    );
    let whole = trace.0.origin.elapsed();
    for span in &file.tracks[0].spans {
        assert!(u128::from(span.end_ns()) <= whole.as_nanos());
    }
    assert_eq!(file.spans("was before").next().unwrap().duration_ns, 0);
}

#[test]
fn the_slow_ones_say_which_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let trace = new(&folder);
    let stage = trace.stage("decode");
    // One after another, as on a thread.
    let mut now = Instant::now();
    let mut record = |stage: &TraceStage, micros: u64, key: &str| {
        let took = Duration::from_micros(micros);
        stage.record(now, took, &[("n", micros.into())], &[("key", key.into())]);
        now += took;
    };
    let mut item = |millis: u64, key: &str| record(&stage, 1000 * millis, key);
    item(900, "first");
    for _ in 0..9 {
        item(100, "ordinary");
    }
    item(719, "below"); // The mean is 180.
    item(1000, "above");
    let short = trace.stage("tokenise");
    for micros in [1; 20].into_iter().chain([99, 101]) {
        record(&short, micros, "short");
    }
    let file = finish(&trace);
    let all: Vec<_> = file.spans("decode").chain(file.spans("tokenise")).collect();
    let slow: Vec<_> = all
        .iter()
        .filter(|span| span.args.contains_key("slow"))
        .collect();
    let said: Vec<_> = slow
        .iter()
        .map(|span| (span.duration_ns / 1000, &span.args["key"]))
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0], (1_000_000, &"above".into()));
    assert_eq!(said[1], (101, &"short".into()));
    assert_eq!(slow[0].args["n"], 1_000_000);
    assert!(all
        .iter()
        .all(|span| span.args.len() != 2 || span.args.contains_key("slow")));
}

#[test]
fn without_an_end_there_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let trace = new(&folder);
    assert_eq!(names(&folder), 1);
    let clone = trace.clone();
    trace.discard();
    assert_eq!(names(&folder), 0);
    drop(clone.span("late"));
    let error = clone.finish().unwrap_err().to_string();
    assert!(
        error.contains("trace.json") && error.contains("discarded"),
        "{error}"
    );
    drop(new(&folder));
    assert_eq!(names(&folder), 0);
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plain"), b"").unwrap();
    for path in [folder.path().join("plain/t.json"), folder.path().into()] {
        let error = Trace::create(&path, TraceLimits::default());
        let error = error.err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    // What goes wrong later comes out at the end, and stops nobody.
    let gone = folder.path().join("gone");
    let path = gone.join("trace.json");
    let trace = Trace::create(&path, TraceLimits::default()).unwrap();
    fs::remove_dir_all(&gone).unwrap();
    drop(trace.span("span"));
    let error = trace.finish().unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    let again = trace.finish().unwrap_err().to_string();
    assert!(again.contains("finished"), "{again}");
}

#[test]
fn a_file_cut_anywhere_opens_after_its_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let trace = new(&folder);
    for number in 0..20u64 {
        trace.span("span").end(&[("n", number.into())]);
    }
    finish(&trace);
    let whole = fs::read_to_string(trace.path()).unwrap();
    let first_event = whole.match_indices('\n').nth(1).unwrap().0;
    for cut in (first_event + 1..whole.len()).filter(|cut| whole.is_char_boundary(*cut)) {
        let lines = &whole[..whole[..cut].rfind('\n').unwrap()];
        let mended = format!("{lines}\n]}}\n");
        let spans = lines.matches("\"ph\":\"X\"").count();
        let file = TraceFile::parse(mended.as_bytes()).unwrap();
        assert_eq!(file.spans("span").count(), spans);
    }
}

#[test]
fn files_that_do_not_fit_the_format_are_refused() {
    let name = r#"{"ph":"M","pid":1,"tid":2,"name":"thread_name","args":{"name":"t"}}"#;
    let parse = |events: &str| {
        let file = format!(r#"{{"displayTimeUnit":"ms","traceEvents":[{name}{events}]}}"#);
        TraceFile::parse(file.as_bytes())
    };
    let span = |ts: &str, dur: &str| {
        format!(r#",{{"ph":"X","pid":1,"tid":2,"name":"s","ts":{ts},"dur":{dur}}}"#)
    };
    let nested = [span("5", "1.5"), span("0", "10"), span("6.5", "3.5")].concat();
    assert_eq!(parse(&nested).unwrap().tracks[0].spans.len(), 3);
    for (events, says) in [
        (span("0", "10") + &span("9.999", "1"), "in part"),
        (span("-1", "1"), "`ts`"),
        (span("\"0\"", "1"), "`ts`"),
        (span("1", "null"), "`dur`"),
        (span("1e999", "1"), "number out of range"),
        (span("1", "1").replace("\"tid\":2", "\"tid\":3"), "no name"),
        (span("1", "1").replace("\"tid\":2,", ""), "`tid`"),
        (
            span("1", "1").replace("\"pid\":1", "\"pid\":\"1\""),
            "`pid`",
        ),
        (
            span("1", "1").replace("\"name\":\"s\"", "\"name\":7"),
            "`name`",
        ),
        (span("1", "1").replace("\"X\"", "\"Q\""), "phase `Q`"),
        (
            span("1", "1").replace("\"X\"", "\"C\""),
            "exactly one number",
        ),
        (
            name.replace("{\"ph", ",{\"ph").replace("thread_name", "x"),
            "unknown",
        ),
        (
            name.replace("{\"ph", ",{\"ph").replace("{\"name", "{\"no"),
            "without",
        ),
        (",7".into(), "`pid`"),
    ] {
        let error = parse(&events).unwrap_err();
        assert!(error.contains(says), "{events}: {error}");
    }
    for (file, says) in [
        ("", "EOF"),
        ("[]", "traceEvents"),
        (r#"{"traceEvents":{}}"#, "traceEvents"),
        (r#"{"traceEvents":[]}"#, "displayTimeUnit"),
    ] {
        let error = TraceFile::parse(file.as_bytes()).unwrap_err();
        assert!(error.contains(says), "{file}: {error}");
    }
}
