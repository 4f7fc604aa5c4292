//! Lengths of functions and files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::root;
use crate::tokens::{group, tokens, Token};

/// Lines that a function may have, from `fn` to its closing brace. (What fits a screen is 80.)
const MAX_LINES: usize = 100;

/// A function, or a file, and how many lines it has.
struct Long {
    lines: usize,
    /// `path:line name`, or a path.
    name: String,
}

/// All Rust sources of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = (["pipeline", "model", "tools", "tests"].iter())
        .map(|folder| root().join(folder))
        .collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The functions of a source, inner ones too.
fn functions(name: &str, source: &str) -> Vec<Long> {
    let tokens = tokens(source);
    let body = |at: usize| {
        let mut at = at;
        while !tokens.get(at)?.is('{') {
            match tokens[at].is('(') || tokens[at].is('[') {
                true => at = group(&tokens, at) + 1,
                false if tokens[at].is(';') => return None,
                false => at += 1,
            }
        }
        Some(group(&tokens, at))
    };
    let mut found = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        let [keyword, named] = pair else { continue };
        let (true, Some(function)) = (keyword.is_word("fn"), named.word()) else {
            continue;
        };
        if let Some(end) = body(at) {
            found.push(Long {
                lines: tokens[end].line - keyword.line + 1,
                name: format!("{name}:{} {function}", keyword.line),
            });
        }
    }
    found
}

/// Lines of code of a source: those with a token, up to a module of tests within the file.
fn code_lines(source: &str) -> usize {
    let tokens = crate::tokens::without_tests(source);
    let mut lines: Vec<usize> = tokens.iter().map(|token: &Token| token.line).collect();
    lines.dedup();
    lines.len()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn functions_fit_a_screen() {
    let (mut all, mut files) = (Vec::new(), Vec::new());
    for path in sources() {
        let source = fs::read_to_string(&path).unwrap();
        let name = relative(&path);
        all.extend(functions(&name, &source));
        files.push(Long {
            lines: code_lines(&source),
            name,
        });
    }
    // `cargo test -p qf-tests --test house -- --nocapture` shows them.
    for (what, list) in [
        ("functions", &mut all),
        ("files, in lines of code", &mut files),
    ] {
        list.sort_by_key(|long| std::cmp::Reverse(long.lines));
        println!("the longest {what}:");
        for long in list.iter().take(12) {
            println!("{:6} {}", long.lines, long.name);
        }
    }
    let over: Vec<String> = (all.iter().filter(|long| long.lines > MAX_LINES))
        .map(|long| format!("{} has {} lines", long.name, long.lines))
        .collect();
    assert!(
        over.is_empty(),
        "functions of more than {MAX_LINES} lines; take them apart:\n{}",
        over.join("\n")
    );
}

#[test]
fn lines_are_counted() {
    let source = "fn one() {\n}\n\nfn two(x: [u8; 2]) -> u8 {\n    fn inner() { }\n    0\n}\n\
                  trait T { fn none(&self); }\n#[cfg(test)]\nmod tests {\n    fn a() {\n    }\n}\n";
    let found: Vec<(usize, String)> = (functions("f.rs", source).into_iter())
        .map(|long| (long.lines, long.name))
        .collect();
    let expected = [
        (2, "f.rs:1 one".to_owned()),
        (4, "f.rs:4 two".to_owned()),
        (1, "f.rs:5 inner".to_owned()),
        (2, "f.rs:11 a".to_owned()),
    ];
    assert_eq!(found, expected);
    assert_eq!(code_lines(source), 7);
}
