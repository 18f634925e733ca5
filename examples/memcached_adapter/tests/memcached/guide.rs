//! The guide, word for word.

use std::{fs, path::Path};

/// What is the adapter: of these files the guide leaves nothing out but their first lines and the imports of the harness.
const WHOLE: [&str; 4] = ["src/lib.rs", "src/book.rs", "src/session.rs", "tests/memcached/harness.rs"];

const OTHERS: [&str; 2] = ["Cargo.toml", "tests/memcached.rs"];

/// Each block of code in the guide is in a file of this crate as it stands, so that it is compiled and run; and nothing of the adapter
/// is missing in the guide, or in another order there.
pub(crate) async fn its_snippets_are_this_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let guide = read("../../docs/adapter-guide.md");
    let snippets: Vec<_> = guide
        .split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.split_once('\n'))
        .filter(|(language, _)| ["rust", "toml"].contains(language))
        .map(|(_, code)| code)
        .collect();
    let sources: Vec<_> = WHOLE.iter().chain(&OTHERS).map(|path| read(path)).collect();
    for snippet in &snippets {
        assert!(sources.iter().any(|source| source.contains(snippet)), "this is nowhere in the crate:\n{snippet}");
    }
    for path in WHOLE {
        let source = read(path);
        let places = snippets.iter().filter_map(|snippet| source.find(snippet));
        assert!(places.is_sorted(), "the guide has the blocks of {path} in another order");
        let left = snippets.iter().fold(source, |source, snippet| source.replace(snippet, ""));
        // Documentation of the file, and imports.
        let left = left.split(";\n").filter(|item| !item.trim_start().starts_with("use ")).collect::<String>();
        let left: Vec<_> = left.lines().filter(|line| !line.is_empty() && !line.starts_with("//!")).collect();
        assert!(left.is_empty(), "the guide leaves this out of {path}: {left:#?}");
    }
}
