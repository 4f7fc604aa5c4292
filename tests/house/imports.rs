//! Which file of a crate uses an item of which other file, through `use` lines and paths in the code.
//!
//! A name that a module only re-exports leads to the file that defines it. Code that only tests have
//! (`#[cfg(test)]`) does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::tokens::{end_of_item, group, without_tests, Kind, Token};

/// The files of a crate and who imports whom.
#[derive(Debug)]
pub(crate) struct Imports {
    /// Paths from the root of the workspace.
    pub(crate) files: Vec<String>,
    /// From file to file (indices of `files`), with the lines and paths that make it so.
    pub(crate) edges: BTreeMap<(usize, usize), Vec<(usize, String)>>,
}

/// A module: a file, or an inline `mod name { … }` of one.
#[derive(Debug, Default)]
struct Module {
    file: usize,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// Items defined here.
    items: BTreeSet<String>,
    /// Names that `use` lines bring: the path, as written.
    names: BTreeMap<String, Vec<String>>,
    /// Modules and paths of `use …::*`.
    globs: Vec<Vec<String>>,
    /// Paths of `use` lines and of the code, with lines.
    paths: Vec<(usize, Vec<String>)>,
    /// What `pub use` lines bring: a facade, unless the module's own code uses it.
    offered: Vec<(usize, Vec<String>, String)>,
    /// All words of the code.
    words: BTreeSet<String>,
}

impl Imports {
    /// Reads the crate whose root file is `entry`; file names are told relative to `workspace`.
    pub(crate) fn of_crate(workspace: &Path, entry: &Path) -> Self {
        let mut reader = CrateReader::default();
        reader.file(workspace, entry, None, entry.parent().unwrap());
        reader.finish()
    }

    /// Files that import each other in a ring, one list a ring.
    pub(crate) fn rings(&self) -> Vec<Vec<usize>> {
        let mut next = vec![Vec::new(); self.files.len()];
        for (from, to) in self.edges.keys() {
            next[*from].push(*to);
        }
        rings(&next)
    }
}

/// Groups of more than one node that all reach each other.
pub(crate) fn rings(next: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let reach: Vec<BTreeSet<usize>> = (0..next.len())
        .map(|start| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(at) = open.pop() {
                open.extend(next[at].iter().filter(|to| seen.insert(**to)));
            }
            seen
        })
        .collect();
    let mut rings = Vec::new();
    let mut used = BTreeSet::new();
    for start in 0..next.len() {
        let ring: Vec<usize> = (reach[start].iter().copied())
            .filter(|other| reach[*other].contains(&start))
            .collect();
        if ring.len() > 1 && ring.iter().all(|at| used.insert(*at)) {
            rings.push(ring);
        }
    }
    rings
}

#[derive(Default)]
struct CrateReader {
    files: Vec<String>,
    modules: Vec<Module>,
}

impl CrateReader {
    /// Reads a file and those of its modules. `folder` is where files of child modules lie.
    fn file(
        &mut self,
        workspace: &Path,
        path: &Path,
        parent: Option<usize>,
        folder: &Path,
    ) -> usize {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.strip_prefix(workspace).unwrap_or(path);
        self.files.push(name.display().to_string());
        let module = self.module(self.files.len() - 1, parent);
        let declared = self.items(module, &without_tests(&text));
        for (name, in_module) in declared {
            let flat = folder.join(format!("{name}.rs"));
            let below: PathBuf = folder.join(&name);
            let child = match flat.is_file() {
                true => self.file(workspace, &flat, Some(in_module), &below),
                false => self.file(workspace, &below.join("mod.rs"), Some(in_module), &below),
            };
            self.modules[in_module].children.insert(name, child);
        }
        module
    }

    fn module(&mut self, file: usize, parent: Option<usize>) -> usize {
        self.modules.push(Module {
            file,
            parent,
            ..Module::default()
        });
        self.modules.len() - 1
    }

    /// Takes in the items among `tokens`; returns modules that have files of their own.
    fn items(&mut self, module: usize, tokens: &[Token]) -> Vec<(String, usize)> {
        let mut declared = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let word = tokens[at].word().unwrap_or_default();
            let name = tokens.get(at + 1).and_then(Token::word);
            match (word, name) {
                ("mod", Some(name)) if tokens[at + 2].is(';') => {
                    declared.push((name.to_owned(), module));
                    at += 3;
                }
                ("mod", Some(name)) => {
                    let end = group(tokens, at + 2);
                    let child = self.module(self.modules[module].file, Some(module));
                    self.modules[module].children.insert(name.to_owned(), child);
                    declared.extend(self.items(child, &tokens[at + 3..end]));
                    at = end + 1;
                }
                ("use", _) => {
                    let offered =
                        at > 0 && (tokens[at - 1].is_word("pub") || tokens[at - 1].is(')'));
                    at = self.use_line(module, tokens, at + 1, offered);
                }
                ("impl", _) | ("extern", _) => {
                    let end = end_of_item(tokens, at);
                    self.code(module, &tokens[at..end]);
                    at = end;
                }
                (
                    "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static",
                    Some(name),
                ) if name != "fn" && name != "unsafe" && name != "extern" => {
                    let name = if name == "mut" {
                        tokens[at + 2].word().unwrap()
                    } else {
                        name
                    };
                    self.modules[module].items.insert(name.to_owned());
                    let end = end_of_item(tokens, at);
                    self.code(module, &tokens[at..end]);
                    at = end;
                }
                ("macro_rules", _) => {
                    if let Some(name) = tokens[at + 2].word() {
                        self.modules[module].items.insert(name.to_owned());
                    }
                    let end = end_of_item(tokens, at);
                    self.code(module, &tokens[at..end]);
                    at = end;
                }
                _ => at += 1,
            }
        }
        declared
    }

    /// Reads a `use` line from behind the word on; returns the index behind its `;`.
    fn use_line(&mut self, module: usize, tokens: &[Token], start: usize, offered: bool) -> usize {
        let end = (start..tokens.len())
            .find(|at| tokens[*at].is(';'))
            .unwrap();
        let mut found = Vec::new();
        use_tree(&tokens[start..end], &[], &mut found);
        for (line, path, name) in found {
            let module = &mut self.modules[module];
            match path.last().map(String::as_str) {
                Some("*") => module.globs.push(path[..path.len() - 1].to_vec()),
                _ => {
                    module.names.insert(name.clone(), path.clone());
                }
            }
            match offered {
                true => module.offered.push((line, path, name)),
                false => module.paths.push((line, path)),
            }
        }
        end + 1
    }

    /// Collects the paths of two and more words in `tokens`, and `use` lines within functions.
    fn code(&mut self, module: usize, tokens: &[Token]) {
        let mut at = 0;
        while at < tokens.len() {
            let Some(word) = tokens[at].word() else {
                at += 1;
                continue;
            };
            if word == "use" {
                at = self.use_line(module, tokens, at + 1, false);
                continue;
            }
            self.modules[module].words.insert(word.to_owned());
            // A method or a field is none, and neither is what follows a closing `>`.
            let follows = at > 0 && (tokens[at - 1].is('.') || tokens[at - 1].kind == Kind::Colons);
            let (line, mut path) = (tokens[at].line, vec![word.to_owned()]);
            at += 1;
            while at + 1 < tokens.len() && tokens[at].kind == Kind::Colons {
                let Some(word) = tokens[at + 1].word() else {
                    break;
                };
                path.push(word.to_owned());
                at += 2;
            }
            if path.len() > 1 && !follows {
                self.modules[module].paths.push((line, path));
            }
        }
    }

    /// Follows every path to the file that defines what it names.
    fn finish(self) -> Imports {
        let mut edges = BTreeMap::new();
        for module in &self.modules {
            let from = module.file;
            let at = self
                .modules
                .iter()
                .position(|m| std::ptr::eq(m, module))
                .unwrap();
            let offered = (module.offered.iter())
                .filter(|(_, _, name)| module.words.contains(name))
                .map(|(line, path, _)| (line, path));
            let paths = module.paths.iter().map(|(line, path)| (line, path));
            for (line, path) in paths.chain(offered) {
                let Some(to) = self.defined_in(at, path) else {
                    continue;
                };
                if to != from {
                    let named: &mut Vec<_> = edges.entry((from, to)).or_default();
                    named.push((*line, path.join("::")));
                }
            }
        }
        Imports {
            files: self.files,
            edges,
        }
    }

    /// The file that defines what `path` names in `module`; nothing for other crates and for paths
    /// that lead to a module itself, whose uses tell more.
    fn defined_in(&self, module: usize, path: &[String]) -> Option<usize> {
        match self.resolve(module, path, 0)? {
            Found::Item(file) => Some(file),
            // All that a module has.
            Found::Module(of) if path.last().is_some_and(|word| word == "*") => {
                Some(self.modules[of].file)
            }
            Found::Module(_) => None,
        }
    }

    fn resolve(&self, module: usize, path: &[String], depth: usize) -> Option<Found> {
        // Re-exports in a ring: none compiles, but this must end.
        if depth > 20 {
            return None;
        }
        let (mut at, rest) = match path.first()?.as_str() {
            "crate" => (0, &path[1..]),
            "self" => (module, &path[1..]),
            "super" => (self.modules[module].parent?, &path[1..]),
            first => match self.name(module, first, depth)? {
                Found::Item(file) => return Some(Found::Item(file)),
                Found::Module(child) => (child, &path[1..]),
            },
        };
        for word in rest {
            at = match word.as_str() {
                "super" => self.modules[at].parent?,
                "self" | "*" => at,
                word => match self.name(at, word, depth)? {
                    Found::Item(file) => return Some(Found::Item(file)),
                    Found::Module(child) => child,
                },
            };
        }
        Some(Found::Module(at))
    }

    /// What `name` is in `module`.
    fn name(&self, module: usize, name: &str, depth: usize) -> Option<Found> {
        let here = &self.modules[module];
        if let Some(child) = here.children.get(name) {
            return Some(Found::Module(*child));
        }
        if here.items.contains(name) {
            return Some(Found::Item(here.file));
        }
        if let Some(path) = here.names.get(name) {
            // `use other_crate::name`, and `use name::…` of a crate of that name.
            return match path.first().map(String::as_str) == Some(name) && path.len() > 1 {
                true => None,
                false => self.resolve(module, path, depth + 1),
            };
        }
        (here.globs.iter()).find_map(|path| match self.resolve(module, path, depth + 1)? {
            Found::Module(other) if other != module => self.name(other, name, depth + 1),
            _ => None,
        })
    }
}

enum Found {
    Item(usize),
    Module(usize),
}

/// The paths of a `use` tree, each with its line and the name that it brings.
fn use_tree(tokens: &[Token], before: &[String], found: &mut Vec<(usize, Vec<String>, String)>) {
    let mut path = before.to_vec();
    let mut name = None;
    let mut line = tokens.first().map_or(0, |token| token.line);
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at].kind {
            Kind::Mark('{') => {
                let end = group(tokens, at);
                for branch in branches(&tokens[at + 1..end]) {
                    use_tree(branch, &path, found);
                }
                return;
            }
            Kind::Mark('*') => path.push("*".to_owned()),
            Kind::Word(word) if word == "as" => {
                name = tokens[at + 1].word().map(str::to_owned);
                at += 1;
            }
            Kind::Word(word) if word == "self" && !path.is_empty() => {}
            Kind::Word(word) => {
                path.push(word.clone());
                line = tokens[at].line;
            }
            _ => {}
        }
        at += 1;
    }
    if let Some(last) = path.last().cloned() {
        found.push((line, path, name.unwrap_or(last)));
    }
}

/// The parts of a list between commas that stand in no group of their own.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Mark('{') => at = group(tokens, at),
            Kind::Mark(',') => {
                parts.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    if start < tokens.len() {
        parts.push(&tokens[start..]);
    }
    parts
}
