use std::time::{Duration, Instant};

use qf_pipeline::index::{Found, ShardIndex};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;

use crate::custom::{collect_warnings, warnings, Custom, Head, Pace, Reply};
use crate::loader::{config, run, write_shards};
use crate::{bytes, one, options, PART};

const INDEX: &str = ".qfidx";

/// What servers say of a file that is not there; whether that is worth a warning.
fn answers(head: &Head, which: usize) -> (Reply, bool) {
    let page = "<!doctype html><title>Home</title>";
    match which {
        0 => (Reply::new(404, ""), false),
        1 => (Reply::new(410, ""), false),
        // S3 for callers that may not list.
        2 => (
            Reply::new(403, "<Error><Code>AccessDenied</Code></Error>"),
            false,
        ),
        3 => (Reply::new(401, ""), false),
        4 => (Reply::new(200, page), true),
        5 => (Reply::file(head, page.as_bytes()), true),
        6 => (Reply::new(200, page).pace(Pace::Chunked), true),
        7 => (Reply::new(500, ""), true),
        8 => (Reply::new(501, ""), true),
        9 => (Reply::new(405, ""), true),
        10 => (Reply::new(200, ""), true),
        11 => (Reply::file(head, &bytes(5000)), true),
        _ => panic!("no more answers"),
    }
}

#[test]
fn no_index_is_no_index_whatever_the_server_says() {
    collect_warnings();
    let folder = tempfile::tempdir().unwrap();
    let local = write_shards(folder.path(), ShardFormat::Tar);
    let expected = run(config(ShuffleMode::Buffer), &local, None);
    for which in 0..=11 {
        let root = folder.path().to_path_buf();
        let server = Custom::start(move |head| {
            let name = head.target.trim_start_matches('/');
            if name.ends_with(INDEX) {
                return answers(head, which).0;
            }
            Reply::file(head, &std::fs::read(root.join(name)).unwrap())
        });
        let remote: Vec<_> = local
            .iter()
            .map(|shard| {
                let url = format!("{}/{}", server.url, shard.base_name());
                one(&url, &options())
            })
            .collect();
        let start = Instant::now();
        assert!(
            run(config(ShuffleMode::Buffer), &remote, None) == expected,
            "{which}"
        );
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{which}: {took:?}");
        let asked = server.count(INDEX);
        assert!(asked <= 3 * 3 + 1, "{which}: {asked} requests for an index");
        let head = server.requests().remove(0);
        let lines = warnings(&server.url);
        let expected = usize::from(answers(&head, which).1);
        assert_eq!(lines.len(), expected, "{which}: {lines:#?}");
    }
}

#[test]
fn an_index_that_cannot_be_reached_is_waited_for() {
    let content = bytes(PART);
    let server = Custom::start(move |head| match head.target.ends_with(INDEX) {
        true => Reply::new(503, ""),
        false => Reply::file(head, &content),
    });
    let options = RemoteOptions {
        outage: Duration::from_millis(300),
        ..options()
    };
    let shard = one(&format!("{}/a.tar", server.url), &options);
    let error = ShardIndex::find(&shard, &Stop::default()).unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert!(server.count(INDEX) > 3);
}

#[test]
fn an_index_is_of_no_use_where_the_length_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let local = write_shards(folder.path(), ShardFormat::Tar);
    let root = folder.path().to_path_buf();
    let server = Custom::start(move |head| {
        let content = std::fs::read(root.join(head.target.trim_start_matches('/')));
        Reply::new(200, content.unwrap()).pace(Pace::Chunked)
    });
    let url = format!("{}/{}", server.url, local[0].base_name());
    let shard = one(&url, &options());
    match ShardIndex::find(&shard, &Stop::default()).unwrap() {
        Found::Unusable(why) => assert!(why.contains("how long"), "{why}"),
        other => panic!("{other:?}"),
    }
    // And is one where it is known.
    let root = folder.path().to_path_buf();
    let server = Custom::start(move |head| {
        let content = std::fs::read(root.join(head.target.trim_start_matches('/')));
        Reply::file(head, &content.unwrap())
    });
    let shard = one(
        &format!("{}/{}", server.url, local[0].base_name()),
        &options(),
    );
    let found = ShardIndex::find(&shard, &Stop::default()).unwrap();
    assert!(
        matches!(&found, Found::Index(index) if index.len() == 20),
        "{found:?}"
    );
    assert_eq!(server.count(INDEX), 1);
}
