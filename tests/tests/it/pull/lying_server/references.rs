//! Lies about references and about the cache.

use super::{Lie, PAGE, Scene, at, honest, shown, unclear};
use crate::fixtures::forgery::{Forged, objects, small_nar, store_dir, visible};
use cache_tests::lying_server::{Answer, BUCKET, LyingServer};
use cache_tests::store_path;
use narinfo_gen::compression::Compression;

#[test]
fn lies_about_references_and_the_cache() {
    let scene = Scene::new();
    let forger = &scene.forger;
    let victim = forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let user = forger.path("user", small_nar(b'u'), Compression::Zstd, &[&victim]);
    let alone = forger.path("alone", small_nar(b'a'), Compression::Zstd, &[]);
    let back = forger.signed(victim.clone().but(|narinfo| narinfo.references.push(user.narinfo.path.clone())));
    let many: Vec<Forged> =
        (0..3).map(|i| forger.path(&format!("ring-{i}"), small_nar(b'r'), Compression::None, &[])).collect();
    let ring: Vec<Forged> = (0..3)
        .map(|i| {
            let next = many[(i + 1) % 3].narinfo.path.clone();
            forger.signed(many[i].clone().but(|narinfo| narinfo.references.push(next)))
        })
        .collect();
    let absent = |name: String| store_dir().parse(&store_path(&name, 9)).unwrap();
    let crowd = forger.signed(victim.clone().but(|narinfo| {
        narinfo.references = (0..300).map(|i| absent(format!("absent-{i}"))).collect();
        narinfo.references.sort_unstable();
    }));
    let info = |answer: Answer| at(objects([&victim]), "nix-cache-info", answer);
    let recursive = |name, codes, wanted: &[&Forged], plan, there: &[&Forged]| Lie {
        args: &["-r"],
        there: there.iter().map(|&forged| forged.clone()).collect(),
        ..Lie::of(name, codes, wanted, plan)
    };
    let mut bad = objects([&victim, &user, &alone]);
    bad.insert(victim.narinfo.url.clone(), b"x".to_vec());
    let mut unsigned = objects([&victim, &user, &alone]);
    unsigned
        .insert(victim.narinfo.key(), victim.clone().but(|n| n.signatures.clear()).narinfo.to_string().into_bytes());
    let lie = |name, plan| Lie::of(name, &[1], &[&victim], plan);
    let broken = |name, plan| Lie::of(name, &[1, 2], &[&victim], plan);
    let circle = recursive(
        "references in a circle; another path is good",
        &[1],
        &[&user, &back, &alone],
        honest(objects([&user, &back, &alone])),
        &[],
    );
    let lies = vec![
        Lie { maybe: vec![alone.clone()], ..circle },
        recursive("references in a circle of two", &[1], &[&user, &back], honest(objects([&user, &back])), &[]),
        recursive(
            "references in a circle of three",
            &[1],
            &[&ring[0], &ring[1], &ring[2]],
            honest(objects(&ring)),
            &[],
        ),
        recursive("300 references that are not there", &[1], &[&crowd], honest(objects([&crowd])), &[]),
        recursive("a reference's NAR is bad; another path is good", &[1], &[&user, &alone], honest(bad), &[&alone]),
        recursive(
            "a reference is not signed; another path is good",
            &[1],
            &[&user, &alone],
            honest(unsigned),
            &[&alone],
        ),
        recursive(
            "a reference is not there; another path is good",
            &[1],
            &[&user, &alone],
            honest(objects([&user, &alone])),
            &[&alone],
        ),
        lie("a cache of another store directory", info(Answer::object("StoreDir: /gnu/store\n"))),
        lie("a page in place of nix-cache-info", info(Answer::object(PAGE))),
        lie("a nix-cache-info without an end", info(Answer::endless("StoreDir: /nix/store\n", vec![b'x'; 65536]))),
        lie("a nix-cache-info that is not UTF-8", info(Answer::object(b"StoreDir: \xff\n".to_vec()))),
        broken(
            "a nix-cache-info that redirects to itself",
            info(Answer::redirect(format!("/{BUCKET}/nix-cache-info"))),
        ),
        broken("a nix-cache-info that never comes", info(Answer::silent())),
    ];
    scene.tell_all(lies);
}

/// A chain of references, ten thousand deep: taken where it is whole, refused to the last where its end is missing.
#[test]
fn references_ten_thousand_deep() {
    const DEEP: usize = 10_000;
    let scene = Scene::new();
    let mut chain: Vec<Forged> = Vec::with_capacity(DEEP);
    for i in 0..DEEP {
        let next: Vec<&Forged> = chain.last().into_iter().collect();
        chain.push(scene.forger.path(&format!("link-{i}"), small_nar(b'x'), Compression::None, &next));
    }
    let top = [chain.last().unwrap().full_path()];
    let mut all = objects(&chain);
    let whole = LyingServer::start(honest(all.clone()));
    let said = scene.pull(&whole.http_url(), &["-r", "--list", "--jobs", "64"], &top);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert_eq!(String::from_utf8(said.stdout).unwrap().lines().next(), Some(chain[0].full_path().as_str()));
    all.remove(&chain[0].narinfo.key());
    let cut = LyingServer::start(honest(all));
    let root = scene.root();
    let said = scene.pull_to(&cut.http_url(), &root, &["-r", "--jobs", "64"], &top);
    println!(
        "| a chain of {DEEP} references without its end | http | {} | {} |",
        said.status,
        shown(said.stderr.trim_end())
    );
    assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
    assert_eq!(visible(&root), Vec::<String>::new());
}
