//! What depends on what: no circle among the files of a crate, and crates in layers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The crates, each above those that it may depend on.
const LAYERS: [&str; 8] = ["io", "text", "kernels", "quant", "adapter", "llama", "train", "cli"];

/// A module is named by its path: `["gguf", "header"]` of `gguf/header.rs`, none of `lib.rs`.
type Module = Vec<String>;

/// The files of a crate with what they say, comments, texts and unit tests left out.
fn modules(source: &Path) -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(source.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let mut module: Module =
                path.with_extension("").iter().map(|part| part.to_str().unwrap().into()).collect();
            if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
                module.pop();
            }
            found.insert(module, code(&fs::read_to_string(source.join(&path)).unwrap()));
        }
    }
    // Tests of a module in a file of their own are not what it is made of.
    let names: Vec<_> = found.keys().cloned().collect();
    for module in names.iter().filter(|module| module.last().is_some_and(|last| last == "tests")) {
        found.remove(module);
    }
    found
}

/// Code without comments, texts and `mod tests { .. }`.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut code = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some(start) = rest.find(['"', '/']) {
            let comment = rest[start..].starts_with("//");
            code += &rest[..start];
            if comment {
                rest = "";
            } else if rest[start..].starts_with('/') {
                rest = &rest[start + 1..];
            } else {
                let inside = &rest[start + 1..];
                let end = inside
                    .char_indices()
                    .find(|(at, c)| *c == '"' && !inside[..*at].ends_with('\\'));
                rest = end.map_or("", |(at, _)| &inside[at + 1..]);
            }
        }
        code += rest;
        code.push('\n');
    }
    code
}

/// The paths that a `use` names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let (path, group) = match part.split_once('{') {
            Some((path, group)) => (path, Some(group.trim_end().trim_end_matches('}'))),
            None => (part.split(" as ").next().unwrap(), None),
        };
        let names = path.split("::").map(str::trim).filter(|name| !name.is_empty());
        let path: Vec<String> = prefix.iter().cloned().chain(names.map(str::to_owned)).collect();
        match group {
            Some(group) => expand(group, &path, found),
            None => found.push(path),
        }
    }
}

/// What a module names.
struct Paths {
    used: Vec<Vec<String>>,
    exported: Vec<Vec<String>>,
}

/// Every path that a module names, from `crate`, `self` or `super` on or of a child, as one from the crate's
/// root; and those that it hands on by `pub use`.
fn paths(module: &Module, code: &str) -> Paths {
    let (mut used, mut exported) = (vec![], vec![]);
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let before = &rest[..at];
        let starts = before.ends_with(['\n', ' ', ')']) || before.is_empty();
        let Some(end) = rest[at..].find(';').filter(|_| starts) else {
            rest = &rest[at + 4..];
            continue;
        };
        let mut found = vec![];
        expand(&rest[at + 4..at + end], &[], &mut found);
        let public =
            before.rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with("pub"));
        // What is only handed on is not needed.
        if public {
            exported.extend(found);
        } else {
            used.extend(found);
        }
        rest = &rest[at + end..];
    }
    // Paths in the code itself.
    for word in code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
        let word = word.trim_end_matches(':');
        if word.starts_with("crate::") || word.starts_with("super::") {
            used.push(word.split("::").map(str::to_owned).collect());
        }
    }
    let absolute = |path: Vec<String>| -> Option<Vec<String>> {
        let mut place = module.clone();
        let mut names = path.into_iter().peekable();
        match names.peek().map(String::as_str) {
            Some("crate") => {
                place.clear();
                names.next();
            }
            Some("self") => _ = names.next(),
            Some("super") => {}
            // A child, or another crate.
            _ => {}
        }
        while names.peek().is_some_and(|name| name == "super") {
            place.pop()?;
            names.next();
        }
        place.extend(names);
        Some(place)
    };
    let all = |paths: Vec<Vec<String>>| paths.into_iter().filter_map(absolute).collect();
    Paths { used: all(used), exported: all(exported) }
}

/// Which files each file needs.
fn needs(files: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let all: BTreeMap<_, _> = files.iter().map(|(m, code)| (m, paths(m, code))).collect();
    // The file in which a path ends; what a file hands on is found where it comes from.
    fn file(
        path: &[String],
        files: &BTreeMap<Module, String>,
        all: &BTreeMap<&Module, Paths>,
        depth: usize,
    ) -> Option<Module> {
        let length = (0..=path.len()).rev().find(|length| files.contains_key(&path[..*length]))?;
        let module = path[..length].to_vec();
        if let Some(name) = path.get(length)
            && depth < 8
        {
            let from = all[&module].exported.iter().find(|export| export.last() == Some(name));
            if let Some(found) = from.and_then(|export| file(export, files, all, depth + 1)) {
                return Some(found);
            }
        }
        Some(module)
    }
    // A path of another crate ends in the file that names it.
    let of = |module: &Module| {
        let found = all[module].used.iter().filter_map(|path| file(path, files, &all, 0));
        found.filter(|other| other != module).collect()
    };
    files.keys().map(|module| (module.clone(), of(module))).collect()
}

/// A circle, if there is one.
fn circle(needs: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    fn walk(
        module: &Module,
        needs: &BTreeMap<Module, BTreeSet<Module>>,
        path: &mut Vec<Module>,
        done: &mut BTreeSet<Module>,
    ) -> Option<Vec<Module>> {
        if let Some(at) = path.iter().position(|other| other == module) {
            return Some(path[at..].to_vec());
        }
        if done.contains(module) {
            return None;
        }
        path.push(module.clone());
        let found = needs[module].iter().find_map(|next| walk(next, needs, path, done));
        path.pop();
        done.insert(module.clone());
        found
    }
    let mut done = BTreeSet::new();
    needs.keys().find_map(|module| walk(module, needs, &mut vec![], &mut done))
}

#[test]
fn no_circle_of_files() {
    for name in LAYERS {
        let source = Path::new("crates").join(name).join("src");
        if !source.is_dir() {
            continue;
        }
        let files = modules(&source);
        let needs = needs(&files);
        assert!(
            needs.values().map(BTreeSet::len).sum::<usize>() + 1 >= files.len(),
            "{name}: read wrongly"
        );
        if let Some(circle) = circle(&needs) {
            let names: Vec<_> = circle.iter().map(|module| module.join("/")).collect();
            panic!("crates/{name}/src: {} -> and again", names.join(" -> "));
        }
    }
}

#[test]
fn crates_are_layers() {
    for (layer, name) in LAYERS.iter().enumerate() {
        let Ok(manifest) = fs::read_to_string(format!("crates/{name}/Cargo.toml")) else {
            continue;
        };
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
        for (other_layer, other) in LAYERS.iter().enumerate() {
            let depends = dependencies.contains(&format!("burn-lora-{other} = "));
            assert!(
                !depends || other_layer < layer,
                "{name} depends on {other}, which is not below it"
            );
        }
    }
    let text = fs::read_to_string("crates/text/Cargo.toml");
    assert!(text.is_err() || !text.unwrap().lines().any(|line| line.starts_with("burn ")));
}

#[test]
fn circles_would_be_found() {
    fn found(list: &[(&str, &str)]) -> Option<usize> {
        let module =
            |name: &str| name.split('/').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        let files = list.iter().map(|(name, text)| (module(name), code(text))).collect();
        circle(&needs(&files)).map(|circle| circle.len())
    }
    let root = ("", "mod a;\nmod b;\npub use a::A;\n");
    assert_eq!(found(&[root, ("a", "use crate::b::B;\n"), ("b", "")]), None);
    assert_eq!(
        found(&[root, ("a", "use crate::{b::{B, C}};\n"), ("b", "use crate::A;\n")]),
        Some(2)
    );
    assert_eq!(
        found(&[root, ("a", "// use crate::b::B;\n"), ("b", "fn f() { super::A::new() }\n")]),
        None
    );
    let child =
        [root, ("a", "mod c;\nuse c::C;\npub struct A;\n"), ("b", ""), ("a/c", "use super::A;\n")];
    assert_eq!(found(&child), Some(2));
}
