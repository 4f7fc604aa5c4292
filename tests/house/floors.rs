//! The floors of ARCHITECTURE.md: a module imports only from floors below its own, and no files import
//! each other in a ring.
//!
//! A block of ARCHITECTURE.md that opens with ```` ```floors FOLDER ```` lists the modules of a crate, one
//! floor a line, from the top. `a/b` is the module `b` of the folder `a`, the rest of `a` stands under
//! `a`. Modules on one floor do not import each other. What only tests have (`#[cfg(test)]`) is exempt, and
//! so is `lib.rs`, which re-exports.

use std::collections::BTreeMap;
use std::fs;

use crate::imports::Imports;
use crate::root;

/// The crates of the workspace, by the file that they begin with.
const CRATES: [&str; 8] = [
    "pipeline/codecs/src/lib.rs",
    "pipeline/src/lib.rs",
    "model/config/src/lib.rs",
    "model/src/lib.rs",
    "tools/cli/src/lib.rs",
    "tools/qfdata/src/main.rs",
    "tools/qftrain/front/lib.rs",
    "tools/qftrain/src/main.rs",
];

/// Modules of a crate, by name: their floors, counted from the top.
type Floors = BTreeMap<String, usize>;

/// The floors of each crate that the page lists, by its folder.
fn listed(page: &str) -> BTreeMap<String, Floors> {
    let mut crates = BTreeMap::new();
    let mut open: Option<(String, Floors, usize)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```floors ")) {
            (None, Some(folder)) => open = Some((folder.to_owned(), Floors::new(), 0)),
            (Some(_), _) if line == "```" => {
                let (folder, floors, _) = open.take().unwrap();
                crates.insert(folder, floors);
            }
            (Some((folder, floors, number)), _) => {
                for module in line.split_whitespace() {
                    let before = floors.insert(module.to_owned(), *number);
                    assert!(before.is_none(), "{folder}: `{module}` is listed twice");
                }
                *number += 1;
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of floors is not closed");
    crates
}

/// The listed module that a file belongs to, of several the innermost.
fn module_of<'a>(floors: &'a Floors, folder: &str, file: &str) -> Option<(&'a str, usize)> {
    let path = file.strip_prefix(folder)?.strip_prefix('/')?;
    let path = path.strip_suffix(".rs")?;
    let mut path = path.strip_suffix("/mod").unwrap_or(path);
    loop {
        if let Some((module, floor)) = floors.get_key_value(path) {
            return Some((module, *floor));
        }
        path = path.rsplit_once('/')?.0;
    }
}

/// Imports that do not lead downwards, one a line.
fn upward(imports: &Imports, folder: &str, floors: &Floors) -> Vec<String> {
    let mut wrong = Vec::new();
    for ((from, to), named) in &imports.edges {
        let (from, to) = (&imports.files[*from], &imports.files[*to]);
        let (Some(a), Some(b)) = (
            module_of(floors, folder, from),
            module_of(floors, folder, to),
        ) else {
            continue;
        };
        if a.0 != b.0 && b.1 <= a.1 {
            let (line, path) = &named[0];
            wrong.push(format!(
                "{from}:{line} imports `{path}` of {to}, which is not below it"
            ));
        }
    }
    wrong
}

/// Each ring of files, with the imports that make it.
fn rings(imports: &Imports) -> Vec<String> {
    let describe = |ring: Vec<usize>| {
        let mut text = String::from("files that import each other in a ring:");
        for ((from, to), named) in &imports.edges {
            if ring.contains(from) && ring.contains(to) {
                let (line, path) = &named[0];
                let (from, to) = (&imports.files[*from], &imports.files[*to]);
                text += &format!("\n    {from}:{line} imports `{path}` of {to}");
            }
        }
        text
    };
    imports.rings().into_iter().map(describe).collect()
}

#[test]
fn imports_lead_downwards_and_in_no_ring() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let listed = listed(&page);
    let mut wrong = Vec::new();
    for entry in CRATES {
        let imports = Imports::of_crate(&root(), &root().join(entry));
        wrong.extend(rings(&imports));
        let (folder, _) = entry.rsplit_once('/').unwrap();
        let Some(floors) = listed.get(folder) else {
            continue;
        };
        for file in imports.files.iter().filter(|file| *file != entry) {
            if module_of(floors, folder, file).is_none() {
                wrong.push(format!("{file} is on no floor of ARCHITECTURE.md"));
            }
        }
        for module in floors.keys() {
            let is_there = |file: &String| {
                module_of(floors, folder, file).is_some_and(|(name, _)| name == module)
            };
            if !imports.files.iter().any(is_there) {
                wrong.push(format!(
                    "ARCHITECTURE.md lists `{module}` of {folder}, which is gone"
                ));
            }
        }
        wrong.extend(upward(&imports, folder, floors));
    }
    for folder in listed.keys() {
        let is_known = CRATES
            .iter()
            .any(|entry| entry.starts_with(&format!("{folder}/")));
        assert!(
            is_known,
            "ARCHITECTURE.md lists floors of {folder}, which is no crate"
        );
    }
    assert!(
        ["pipeline/src", "pipeline/codecs/src", "model/src"]
            .iter()
            .all(|c| listed.contains_key(*c)),
        "ARCHITECTURE.md lists the floors of pipeline, codecs and model"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A crate of these files.
fn made(files: &[(&str, &str)]) -> Imports {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("qf-house-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    for (name, text) in files {
        let path = folder.join("c/src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let imports = Imports::of_crate(&folder, &folder.join("c/src/lib.rs"));
    fs::remove_dir_all(folder).unwrap();
    imports
}

#[test]
fn upward_imports_and_rings_are_found() {
    let floors = listed("```floors c/src\ntop\nlow low2\n```\n");
    let find = |files: &[(&str, &str)]| {
        let imports = made(files);
        let mut found = upward(&imports, "c/src", &floors["c/src"]);
        found.extend(rings(&imports));
        found.join("\n")
    };
    let lib = ("lib.rs", "mod top; mod low; mod low2; pub use top::Top;");
    let top = (
        "top.rs",
        "use crate::low::Low;\npub struct Top(Low);\npub fn g() {}",
    );
    let low = ("low.rs", "pub struct Low;");
    let low2 = ("low2.rs", "pub struct Low2;");
    assert_eq!(find(&[lib, top, low, low2]), "");
    // By a path in the code, by a name that lib.rs re-exports, by a neighbour, by a glob.
    for text in [
        "pub struct Low;\n\nfn f(_: crate::top::Top) {}",
        "use\n    crate::{\n  Top};\npub struct Low(Top);",
        "use super::low2::{self as other};\npub struct Low(other::Low2);",
        "pub struct Low;\nmod inner { use super::super::low2::*; fn f(_: Low2) {} }",
        // Behind generics, and in a match.
        "pub struct Low;\nfn f<A, B: From<A>>(a: [u8; 2]) where A: Copy { crate::top::g::<A, B>() }",
        "pub struct Low;\nimpl<'a, T> From<(T, &'a u8)> for Low { fn from(_: (T, &u8)) -> Low { \
         match 1 { 1 => crate::top::g(), _ => Low } } }",
    ] {
        let found = find(&[lib, top, ("low.rs", text), low2]);
        assert!(found.starts_with("c/src/low.rs:"), "{text}: {found:?}");
        assert!(found.contains("which is not below it"), "{text}: {found}");
    }
    let ring = find(&[
        lib,
        top,
        ("low.rs", "use crate::top::Top; pub struct Low(Top);"),
        low2,
    ]);
    assert!(
        ring.contains("c/src/low.rs:1 imports `crate::top::Top` of c/src/top.rs"),
        "{ring}"
    );
    assert!(
        ring.contains("c/src/top.rs:1 imports `crate::low::Low` of c/src/low.rs"),
        "{ring}"
    );
    // A comment, a string, a lifetime and what only tests have are no imports.
    let harmless = "/* use crate::top::Top; */ pub struct Low; // crate::top::Top\n\
                    const S: &str = r#\"crate::top::Top \"quoted\" \"#;\nfn f<'a>(x: &'a u8) {}\n\
                    #[cfg(test)]\nmod tests { use crate::top::Top; }\n#[cfg(test)]\nuse crate::top::Top;\n\
                    #[cfg(test)]\nfn t<A, B>() { crate::top::g() }\n\
                    struct S { #[cfg(test)] top: crate::top::Top, low: u8 }";
    assert_eq!(find(&[lib, top, ("low.rs", harmless), low2]), "");
    // A folder's mod.rs and what it re-exports.
    let files = [
        ("lib.rs", "mod top; mod low; mod low2;"),
        ("top/mod.rs", "mod a; mod b; pub use a::A; pub struct Own;"),
        ("top/a.rs", "pub struct A;"),
        ("top/b.rs", "use super::A; struct B(A);"),
        low,
        low2,
    ];
    assert_eq!(find(&files), "");
    let mut files = files;
    files[1].1 = "mod a; mod b; pub use a::A; pub struct Own; fn f() { b::g() }";
    files[3].1 = "use super::{A, Own}; pub fn g() {}";
    assert!(find(&files).contains("top/mod.rs:1 imports `b::g` of c/src/top/b.rs"));
}
