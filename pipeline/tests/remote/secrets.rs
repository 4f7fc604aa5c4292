use std::time::{Duration, Instant};

use qf_pipeline::remote::RemoteOptions;

use crate::custom::{Custom, Pace, Reply};
use crate::{bytes, one, options, read, resolve, PART};

const SIZE: usize = 3 * PART + 5;
const SECRETS: [&str; 5] = ["hunter2", "TOKENTOKEN", "AKSECRET", "sig=", "c2VjcmV0"];

fn with(env: &[(&str, &str)]) -> RemoteOptions {
    let pair = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    RemoteOptions {
        env: env.iter().map(pair).collect(),
        outage: Duration::from_secs(5),
        ..options()
    }
}

fn check_hidden(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{text}");
    }
}

/// One that serves everything, and should not be asked.
fn bystander() -> Custom {
    Custom::start(|head| Reply::file(head, &bytes(SIZE)))
}

#[test]
fn no_request_of_a_store_follows_a_redirect_elsewhere() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = bystander();
        // The same port under another name is another origin, too.
        let target = elsewhere.url.replace("127.0.0.1", "localhost");
        for target in [elsewhere.url.clone(), target] {
            let location = format!("Location: {target}/evil.tar");
            let store = Custom::start(move |_| Reply::new(status, "").header(location.clone()));
            let s3 = with(&[
                ("AWS_ENDPOINT_URL", &store.url),
                ("AWS_ALLOW_HTTP", "true"),
                ("AWS_ACCESS_KEY_ID", "key"),
                ("AWS_SECRET_ACCESS_KEY", "AKSECRET"),
                ("AWS_SESSION_TOKEN", "TOKENTOKEN"),
            ]);
            let google = with(&[
                ("GOOGLE_BASE_URL", &store.url),
                ("GOOGLE_SKIP_SIGNATURE", "true"),
                ("GOOGLE_ALLOW_HTTP", "true"),
            ]);
            let azure = with(&[
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
                ("AZURE_STORAGE_ENDPOINT", &store.url),
                ("AZURE_ALLOW_HTTP", "true"),
            ]);
            for (spec, options) in [
                ("s3://b/p/a.tar", &s3),
                ("s3://b/p/*.tar", &s3),
                ("gs://b/a.tar", &google),
                ("az://b/a.tar", &azure),
                ("az://b/*.tar", &azure),
            ] {
                let start = Instant::now();
                let message = resolve(spec, options).unwrap_err();
                assert!(
                    message.contains("redirects to") && message.contains(&target),
                    "{message}"
                );
                check_hidden(&message);
                assert!(start.elapsed() < Duration::from_secs(2), "{spec} {status}");
            }
        }
        assert_eq!(elsewhere.requests().len(), 0, "{status}");
    }
}

#[test]
fn a_store_may_redirect_within_itself() {
    let store = Custom::start(|head| match head.target.strip_prefix("/b/") {
        Some(key) => Reply::new(307, "").header(format!("Location: /moved/{key}")),
        None => Reply::file(head, &bytes(SIZE)),
    });
    let options = with(&[
        ("AWS_ENDPOINT_URL", &store.url),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_SKIP_SIGNATURE", "true"),
    ]);
    assert!(read(&one("s3://b/a.tar", &options)).is_ok_and(|found| found == bytes(SIZE)));
}

#[test]
fn a_web_server_may_redirect_anywhere_and_takes_nothing_along() {
    let elsewhere = bystander();
    let target = format!(
        "{}/x.tar?sig=1",
        elsewhere.url.replace("127.0.0.1", "localhost")
    );
    let server = Custom::start(move |_| Reply::new(302, "").header(format!("Location: {target}")));
    let options = RemoteOptions {
        http_bearer_token: Some("TOKENTOKEN".into()),
        ..options()
    };
    let shard = one(&format!("{}/a.tar?sig=2", server.url), &options);
    assert!(read(&shard).unwrap() == bytes(SIZE));
    let first = server.requests();
    assert!(first
        .iter()
        .all(|head| head.header("authorization") == Some("Bearer TOKENTOKEN")));
    let second = elsewhere.requests();
    assert!(!second.is_empty());
    for head in second {
        assert_eq!(
            (head.header("authorization"), head.header("referer")),
            (None, None)
        );
    }
}

#[test]
fn loops_end_at_once() {
    for step in ["/a.tar", "/b.tar", "/a.tar?n="] {
        let server = Custom::start(move |head| {
            let to = match step {
                "/b.tar" if head.target == "/b.tar" => "/a.tar".to_string(),
                // Never the same, and never an end.
                "/a.tar?n=" => {
                    format!("/a.tar?n={}", head.target.len()) + &"1".repeat(head.target.len())
                }
                step => step.to_string(),
            };
            Reply::new(302, "").header(format!("Location: {to}"))
        });
        let start = Instant::now();
        let message = resolve(&format!("{}/a.tar", server.url), &options()).unwrap_err();
        assert!(message.contains("the server redirects"), "{message}");
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(server.requests().len() <= 24, "{}", server.requests().len());
    }
}

#[test]
fn signed_urls_are_asked_for_as_they_are_and_never_shown() {
    // As a presigned GET of S3: HEAD is another method, and another signature.
    let query = "X-Amz-Credential=a%2Fb&X-Amz-Signature=hunter2%3D";
    let server = Custom::start(move |head| {
        let is_signed = head.target == format!("/p//a%20b.tar?{query}");
        match head.method.as_str() {
            "GET" if is_signed => Reply::file(head, &bytes(SIZE)),
            _ => Reply::new(403, ""),
        }
    });
    let url = format!("{}/p//a%20b.tar?{query}", server.url);
    let shard = one(&url, &options());
    assert!(read(&shard).unwrap() == bytes(SIZE));
    check_hidden(&shard.name);
    check_hidden(&format!("{shard:?}"));
    assert_eq!(shard.base_name(), "a%20b.tar");
    // Where it has expired.
    let message = resolve(&url.replace("Signature=", "Signature=x"), &options()).unwrap_err();
    assert!(
        message.contains("403") && message.contains("expired"),
        "{message}"
    );
    check_hidden(&message);
    let twice = format!("{url}::{url}");
    let message = resolve(&twice, &options()).unwrap_err();
    assert!(message.contains("more than once"), "{message}");
    check_hidden(&message);
    // A connection that breaks.
    let server = Custom::start(|_| Reply::new(200, "").pace(Pace::Reset));
    let quick = RemoteOptions {
        outage: Duration::from_millis(200),
        ..options()
    };
    let message = resolve(&format!("{}/a.tar?{query}", server.url), &quick).unwrap_err();
    check_hidden(&message);
}

#[test]
fn passwords_are_refused_and_not_repeated() {
    for spec in [
        "http://user:hunter2@127.0.0.1:1/a.tar",
        "http://hunter2@127.0.0.1:1/a.tar",
        "http://user:hunter2@127.0.0.1:1/{a,b}.tar",
        "https://user:hunter2@127.0.0.1:1/",
        "s3://key:hunter2@bucket/a.tar",
        "ftp://user:hunter2@host/a.tar",
        "http://user:hun/ter2hunter2@127.0.0.1/a.tar",
    ] {
        let message = resolve(spec, &options()).unwrap_err();
        check_hidden(&message);
        assert!(
            message.contains("user or password") || message.contains("unknown"),
            "{message}"
        );
    }
}

#[test]
fn a_bearer_token_opens_private_servers() {
    let server = Custom::start(|head| match head.header("authorization") {
        Some("Bearer TOKENTOKEN") => Reply::file(head, &bytes(SIZE)),
        _ => Reply::new(401, "").header("WWW-Authenticate: Bearer"),
    });
    let url = format!("{}/a.tar", server.url);
    let message = resolve(&url, &options()).unwrap_err();
    assert!(message.contains("QF_HTTP_BEARER_TOKEN"), "{message}");
    let with_token = |token: &str| RemoteOptions {
        http_bearer_token: Some(token.into()),
        ..options()
    };
    assert!(read(&one(&url, &with_token("TOKENTOKEN"))).unwrap() == bytes(SIZE));
    let message = resolve(&url, &with_token("TOKENTOKENx")).unwrap_err();
    assert!(message.contains("not accepted"), "{message}");
    check_hidden(&message);
}

/// Lengths that are not told, and totals that are unknown.
#[test]
fn what_has_no_length_is_read_in_one_stream() {
    let content = bytes(SIZE);
    for (pace, with_head) in [
        (Pace::Chunked, true),
        (Pace::Chunked, false),
        (Pace::UntilClosed, true),
        (Pace::UntilClosed, false),
    ] {
        let server = Custom::start(move |head| match head.method.as_str() {
            "HEAD" if !with_head => Reply::new(405, ""),
            _ => Reply::new(200, bytes(SIZE)).pace(pace),
        });
        let shard = one(&format!("{}/a.tar", server.url), &options());
        assert_eq!(shard.size(&Default::default()).unwrap(), None, "{pace:?}");
        let before = server.count("a.tar");
        assert!(read(&shard).unwrap() == content, "{pace:?}");
        assert_eq!(server.count("a.tar") - before, 1, "{pace:?}");
        let mut range = Vec::new();
        let mut reader = shard
            .open_range(PART as u64..2 * PART as u64, &Default::default())
            .unwrap();
        std::io::Read::read_to_end(&mut reader, &mut range).unwrap();
        assert!(range == content[PART..2 * PART], "{pace:?}");
    }
    // `Content-Range: bytes a-b/*`, with and without a length from HEAD.
    for with_length in [true, false] {
        let server = Custom::start(move |head| {
            let Some((start, end)) = head.range() else {
                let reply = Reply::new(200, bytes(SIZE));
                return match with_length {
                    true => reply,
                    false => reply.pace(Pace::Chunked),
                };
            };
            let end = end.min(SIZE);
            let line = format!("Content-Range: bytes {start}-{}/*", end - 1);
            Reply::new(206, &bytes(SIZE)[start..end]).header(line)
        });
        let shard = one(&format!("{}/a.tar", server.url), &options());
        assert!(read(&shard).unwrap() == content);
    }
}
