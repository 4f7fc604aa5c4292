//! Any text as a specification of shards: globs, braces, `::` lists. What is secret in a URL is never shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_pipeline::source::{resolve_shards, scheme, DisplayUrl, ShardSpec};

const SECRETS: [&str; 3] = ["Us3rN4me", "P4ssW0rd", "S1gn4ture"];

fn hides(text: &str) {
    let shown = DisplayUrl::of(text).to_string();
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{text:?} shows {shown:?}");
    }
    let spec = ShardSpec::from(text.to_string());
    let shown = format!(
        "{spec} {spec:?} {}",
        serde_json::to_string(&spec).expect("a string")
    );
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{text:?} shows {shown:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = DisplayUrl::of(text);
    // Characters that may stand in a path. Others end a URL, and what follows is text.
    let is_path = |c: &char| {
        c.is_ascii_alphanumeric()
            || matches!(
                c,
                '/' | '.' | '-' | '_' | '*' | '{' | '}' | ',' | '%' | '~' | '+' | '='
            )
    };
    let path: String = text.chars().filter(is_path).collect();
    // The fuzzer finds the words to look for by itself; in a path they are no secrets.
    if SECRETS.iter().any(|secret| path.contains(secret)) {
        return;
    }
    let [user, password, signature] = SECRETS;
    hides(&format!(
        "https://{user}:{password}@host/{path}?sig={signature}"
    ));
    hides(&format!(
        "https://host/{path}?X-Amz-Signature={signature}&{path}"
    ));
    hides(&format!("s3://key:{password}@bucket/{path}"));
    let spec = ShardSpec::from(text.to_string());
    let is_remote = spec
        .elements()
        .iter()
        .any(|element| scheme(element).is_some() || element.contains("://"));
    // Nothing outside of an empty folder is looked at.
    if is_remote || text.contains("..") || text.contains('/') || text.contains('\0') {
        return;
    }
    static FOLDER: std::sync::Once = std::sync::Once::new();
    FOLDER.call_once(|| {
        let shard = qf_fuzz::write("photos-000000.tar", b"");
        std::env::set_current_dir(
            shard
                .path()
                .and_then(|path| path.parent())
                .expect("a folder"),
        )
        .expect("enters");
    });
    if let Ok(shards) = resolve_shards(&[text]) {
        assert!(shards
            .iter()
            .all(|shard| shard.path().is_some_and(|path| path.exists())));
    }
});
