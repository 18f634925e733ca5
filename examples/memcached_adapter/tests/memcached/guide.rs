//! The guide, word for word.

use std::{fs, path::Path};

/// Each block of Rust in the guide is in a file of this crate, as it is there: so all of it is compiled and run.
pub(crate) async fn every_snippet_is_code_of_this_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("../../docs/adapter-guide.md")).unwrap();
    let mut sources = Vec::new();
    for folder in ["", "src", "tests", "tests/memcached"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
                sources.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    let blocks: Vec<_> = guide.split("\n```").skip(1).step_by(2).collect();
    let mut checked = 0;
    for block in blocks {
        let (language, code) = block.split_once('\n').unwrap();
        if ["rust", "toml"].contains(&language) {
            assert!(sources.iter().any(|source| source.contains(code)), "this is nowhere in the crate:\n{code}");
            checked += 1;
        }
    }
    assert!(checked >= 8, "the guide has only {checked} snippets");
}
