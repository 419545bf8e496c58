//! Lies about references and about the cache.

use super::{Case, HTML_PAGE, PullFixture, correct, find_problems, table_cell, with_response};
use crate::fixtures::malicious_cache::{CachedPath, objects, small_nar, store_dir, visible_names};
use cache_tests::lying_server::{BUCKET, LyingServer, Response};
use cache_tests::store_path;
use narinfo_gen::compression::Compression;

#[test]
fn every_lie_about_references_or_the_cache_is_refused() {
    let fixture = PullFixture::new();
    let attacker = &fixture.attacker;
    let victim = attacker.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let user = attacker.path("user", small_nar(b'u'), Compression::Zstd, &[&victim]);
    let alone = attacker.path("alone", small_nar(b'a'), Compression::Zstd, &[]);
    let back = attacker.signed(victim.clone().with(|narinfo| narinfo.references.push(user.narinfo.path.clone())));
    let many: Vec<CachedPath> =
        (0..3).map(|i| attacker.path(&format!("ring-{i}"), small_nar(b'r'), Compression::None, &[])).collect();
    let ring: Vec<CachedPath> = (0..3)
        .map(|i| {
            let next = many[(i + 1) % 3].narinfo.path.clone();
            attacker.signed(many[i].clone().with(|narinfo| narinfo.references.push(next)))
        })
        .collect();
    let absent = |name: String| store_dir().parse(&store_path(&name, 9)).unwrap();
    let many_references = attacker.signed(victim.clone().with(|narinfo| {
        narinfo.references = (0..300).map(|i| absent(format!("absent-{i}"))).collect();
        narinfo.references.sort_unstable();
    }));
    let info = |response: Response| with_response(objects([&victim]), "nix-cache-info", response);
    let recursive = |name, codes, requested: &[&CachedPath], respond, expected: &[&CachedPath]| Case {
        args: &["-r"],
        expected: expected.iter().map(|&cached| cached.clone()).collect(),
        ..Case::of(name, codes, requested, respond)
    };
    let mut bad = objects([&victim, &user, &alone]);
    bad.insert(victim.narinfo.url.clone(), b"x".to_vec());
    let mut unsigned = objects([&victim, &user, &alone]);
    unsigned
        .insert(victim.narinfo.key(), victim.clone().with(|n| n.signatures.clear()).narinfo.to_string().into_bytes());
    let refused = |name, respond| Case::of(name, &[1], &[&victim], respond);
    let failed = |name, respond| Case::of(name, &[1, 2], &[&victim], respond);
    let cycle = recursive(
        "cyclic references; another path is valid",
        &[1],
        &[&user, &back, &alone],
        correct(objects([&user, &back, &alone])),
        &[],
    );
    let cases = vec![
        Case { allowed: vec![alone.clone()], ..cycle },
        recursive("two paths with cyclic references", &[1], &[&user, &back], correct(objects([&user, &back])), &[]),
        recursive(
            "three paths with cyclic references",
            &[1],
            &[&ring[0], &ring[1], &ring[2]],
            correct(objects(&ring)),
            &[],
        ),
        recursive("300 missing references", &[1], &[&many_references], correct(objects([&many_references])), &[]),
        recursive(
            "the NAR of a reference is damaged; another path is valid",
            &[1],
            &[&user, &alone],
            correct(bad),
            &[&alone],
        ),
        recursive(
            "a reference is not signed; another path is valid",
            &[1],
            &[&user, &alone],
            correct(unsigned),
            &[&alone],
        ),
        recursive(
            "a reference is missing; another path is valid",
            &[1],
            &[&user, &alone],
            correct(objects([&user, &alone])),
            &[&alone],
        ),
        refused("a cache of another store directory", info(Response::object("StoreDir: /gnu/store\n"))),
        refused("an HTML page instead of nix-cache-info", info(Response::object(HTML_PAGE))),
        refused(
            "a nix-cache-info without an end",
            info(Response::endless("StoreDir: /nix/store\n", vec![b'x'; 65536])),
        ),
        refused("a nix-cache-info that is not UTF-8", info(Response::object(b"StoreDir: \xff\n".to_vec()))),
        failed(
            "a nix-cache-info that redirects to itself",
            info(Response::redirect(format!("/{BUCKET}/nix-cache-info"))),
        ),
        failed("no response for nix-cache-info", info(Response::silent())),
    ];
    fixture.run_cases(cases);
}

/// A chain of ten thousand references is accepted, and refused completely if its end is missing.
#[test]
fn a_long_chain_of_references_is_followed() {
    const DEEP: usize = 2_000;
    let fixture = PullFixture::new();
    let mut chain: Vec<CachedPath> = Vec::with_capacity(DEEP);
    for i in 0..DEEP {
        let next: Vec<&CachedPath> = chain.last().into_iter().collect();
        chain.push(fixture.attacker.path(&format!("link-{i}"), small_nar(b'x'), Compression::None, &next));
    }
    let top = [chain.last().unwrap().full_path()];
    let mut all = objects(&chain);
    let whole = LyingServer::start(correct(all.clone()));
    let output = fixture.pull(&whole.http_url(), &["-r", "--list", "--jobs", "64"], &top);
    assert_eq!(output.status, 0, "{}", output.stderr);
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().next(), Some(chain[0].full_path().as_str()));
    all.remove(&chain[0].narinfo.key());
    let cut = LyingServer::start(correct(all));
    let root = fixture.root();
    let output = fixture.pull_to(&cut.http_url(), &root, &["-r", "--jobs", "64"], &top);
    println!(
        "| a chain of {DEEP} references without its end | http | {} | {} |",
        output.status,
        table_cell(output.stderr.trim_end())
    );
    assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()));
    assert_eq!(visible_names(&root), Vec::<String>::new());
}

/// A path that depends on a cycle is not part of it, and a reference that was not requested is not missing.
#[test]
fn a_cycle_is_reported_with_one_of_its_paths() {
    let fixture = PullFixture::new();
    let attacker = &fixture.attacker;
    let outside = attacker.path("outside", small_nar(b'o'), Compression::None, &[]);
    let first = attacker.path("cycle-a", small_nar(b'a'), Compression::None, &[&outside]);
    let second = attacker.path("cycle-b", small_nar(b'b'), Compression::None, &[&first]);
    let first = attacker.signed(first.with(|narinfo| {
        narinfo.references.push(second.narinfo.path.clone());
        narinfo.references.sort_unstable();
    }));
    let user = |i| attacker.path(&format!("user-{i}"), small_nar(b'u'), Compression::None, &[&first]);
    let mut paths: Vec<CachedPath> = (0..8).map(user).collect();
    paths.extend([first, second]);
    let server = LyingServer::start(correct(objects(paths.iter().chain([&outside]))));
    let requested: Vec<String> = paths.iter().map(CachedPath::full_path).collect();
    for flags in [&["-r"][..], &[]] {
        let root = fixture.root();
        let output = fixture.pull_to(&server.http_url(), &root, flags, &requested);
        let (path, rest) = output.stderr.split_once(": its references form a cycle").unwrap_or_default();
        assert!(path.contains("-cycle-") && !path.contains('\n'), "{flags:?}: {}", output.stderr);
        assert!(rest.contains("9 paths depend on it") && output.status == 1, "{flags:?}: {}", output.stderr);
        assert!(visible_names(&root).iter().all(|name| name.ends_with("-outside")));
    }
}
