//! The links between pages.

use std::fs;
use std::path::{Path, PathBuf};

use cache_tests::repository;
use walkdir::WalkDir;

/// Returns the pages: those at the top level and below `docs`.
pub fn pages() -> Vec<PathBuf> {
    let is_page = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
    let top = fs::read_dir(repository()).unwrap().map(|entry| entry.unwrap().path());
    let docs = WalkDir::new(repository().join("docs")).into_iter().map(|entry| entry.unwrap().into_path());
    let mut pages: Vec<_> = top.chain(docs).filter(|path| is_page(path)).collect();
    pages.sort_unstable();
    pages
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let file = target.split('#').next().unwrap();
            if !page.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_index_names_every_page() {
    let index = fs::read_to_string(repository().join("docs/README.md")).unwrap();
    let docs = repository().join("docs");
    for page in pages().iter().filter(|page| page.parent() == Some(&docs)) {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || index.contains(&format!("({name})")), "docs/README.md does not name {name}");
    }
}
