//! The book tells the truth: its links lead somewhere, and the lines of code that it quotes are in
//! the files that it names. (Its programs are doc tests.)

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every page, with its path.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path());
    let others = ["README.md", "CHANGELOG.md", "testdata/README.md"].map(PathBuf::from);
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.chain(others).map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The blocks of a page between fences that are opened with `language`.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<Vec<&'a str>> {
    let (mut found, mut open) = (vec![], None::<Vec<&str>>);
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(opened)) if opened == language => open = Some(vec![]),
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.push(line.trim()),
            _ => {}
        }
    }
    found
}

#[test]
fn quoted_code_is_in_its_file() {
    let mut quotes = 0;
    for (path, page) in pages() {
        for block in blocks(&page, "rs") {
            let (file, lines) = block.split_first().expect("a quotation names its file");
            let file = file.strip_prefix("// ").expect("a quotation begins with `// FILE`");
            let source = fs::read_to_string(file)
                .unwrap_or_else(|error| panic!("{}: {file}: {error}", path.display()));
            let mut rest = source.lines().map(str::trim);
            for line in lines {
                let found = rest.any(|found| found == *line);
                assert!(found, "{}: not in {file}, or not in this order: {line}", path.display());
            }
            quotes += 1;
        }
    }
    assert!(quotes > 10, "{quotes} quotations");
}

#[test]
fn links_lead_somewhere() {
    for (path, page) in pages() {
        let prose = page.split("```").step_by(2);
        for target in prose.flat_map(|text| text.split("](").skip(1)) {
            let target = target.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            assert!(file.exists(), "{}: {target} is not there", path.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&file).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#')).map(slug);
                let found = headings.any(|found| found == heading);
                assert!(found, "{}: {target} has no such heading", path.display());
            }
        }
    }
}

/// What a heading is called in a link on GitHub.
fn slug(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
