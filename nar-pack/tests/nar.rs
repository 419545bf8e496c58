//! NARs: packing and unpacking preserves any tree, any accepted NAR is canonical, and other input is refused without a
//! panic.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nar_pack::nar::{self, Listing, ListingEntry, Skip, dump, list, parse, push_string, remove_tree, restore};
use nar_pack::root_dir::OpenDir;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(std::collections::BTreeMap<Vec<u8>, Tree>),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let bytes = vec(any::<u8>().prop_filter("forbidden in a name", |byte| !matches!(byte, 0 | b'/')), 1..20);
    let text = "[^/\0]{1,12}".prop_map(String::into_bytes);
    prop_oneof![1 => bytes, 9 => text].prop_filter("dot segments", |name| !matches!(name.as_slice(), b"." | b".."))
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..200))
            .prop_map(|(executable, contents)| Tree::File { executable, contents }),
        vec(1_u8..=255, 1..50).prop_map(Tree::Symlink),
        "\\PC{1,20}".prop_map(|target| Tree::Symlink(target.into_bytes())),
    ];
    leaf.prop_recursive(4, 30, 6, |inner| btree_map(names(), inner, 0..6).prop_map(Tree::Directory))
}

fn create(tree: &Tree, path: &Path) {
    match tree {
        Tree::File { executable, contents } => {
            fs::write(path, contents).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).unwrap();
        }
        Tree::Symlink(target) => symlink(OsString::from_vec(target.clone()), path).unwrap(),
        Tree::Directory(entries) => {
            fs::create_dir(path).unwrap();
            for (name, entry) in entries {
                create(entry, &path.join(std::ffi::OsStr::from_bytes(name)));
            }
        }
    }
}

/// Encodes a tree as a NAR, independently of the code under test.
fn expected(tree: &Tree) -> Vec<u8> {
    fn node(tree: &Tree, out: &mut Vec<u8>) {
        push_string(out, b"(");
        push_string(out, b"type");
        match tree {
            Tree::File { executable, contents } => {
                push_string(out, b"regular");
                if *executable {
                    push_string(out, b"executable");
                    push_string(out, b"");
                }
                push_string(out, b"contents");
                push_string(out, contents);
            }
            Tree::Symlink(target) => {
                push_string(out, b"symlink");
                push_string(out, b"target");
                push_string(out, target);
            }
            Tree::Directory(entries) => {
                push_string(out, b"directory");
                for (name, entry) in entries {
                    for field in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
                        push_string(out, field);
                    }
                    node(entry, out);
                    push_string(out, b")");
                }
            }
        }
        push_string(out, b")");
    }
    let mut out = Vec::new();
    push_string(&mut out, nar::MAGIC);
    node(tree, &mut out);
    out
}

fn pack(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    dump(path, &mut out, &mut |_| {}).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packing_and_unpacking_preserves_any_tree(tree in trees()) {
        let dir = tempfile::tempdir().unwrap();
        create(&tree, &dir.path().join("a"));
        let packed = pack(&dir.path().join("a"));
        prop_assert_eq!(&packed, &expected(&tree));
        let restored = dir.path().join("b");
        prop_assert_eq!(restore(&mut Cursor::new(&packed), &restored).unwrap(), packed.len() as u64);
        prop_assert_eq!(&pack(&restored), &packed);
        remove_tree(&restored).unwrap();
        prop_assert!(restored.symlink_metadata().is_err());
    }

    /// A NAR with one modified byte is refused, or is the canonical NAR of another tree.
    #[test]
    fn a_modified_nar_is_refused_or_canonical(tree in trees(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut packed = expected(&tree);
        let at = at.index(packed.len());
        packed[at] = byte;
        let dir = tempfile::tempdir().unwrap();
        let restored = dir.path().join("b");
        match restore(&mut Cursor::new(&packed), &restored) {
            Ok(size) => prop_assert_eq!(&pack(&restored), &packed[..usize::try_from(size).unwrap()]),
            Err(error) => prop_assert!(restored.symlink_metadata().is_err(), "left behind after {}", error),
        }
        drop(remove_tree(&restored));
    }

    #[test]
    fn a_truncated_nar_is_refused(tree in trees(), at in any::<prop::sample::Index>()) {
        let packed = expected(&tree);
        let truncated = &packed[..at.index(packed.len())];
        prop_assert!(parse(&mut Cursor::new(truncated), &mut Skip).unwrap_err().is_refusal());
    }

    #[test]
    fn random_bytes_are_refused(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(parse(&mut Cursor::new(&bytes), &mut Skip).unwrap_err().is_refusal());
        let nar = [nar::FIRST_BYTES.as_slice(), &bytes].concat();
        prop_assert!(parse(&mut Cursor::new(&nar), &mut Skip).unwrap_err().is_refusal());
    }

    /// A tree whose names are all UTF-8 has a listing, which agrees with the tree.
    #[test]
    fn a_listing_agrees_with_the_tree(tree in trees()) {
        let (packed, mut out) = (expected(&tree), Vec::new());
        if list(&mut Cursor::new(&packed), &mut out).is_err() {
            return Ok(());
        }
        let listing = Listing::parse(&out, out.len()).unwrap();
        prop_assert_eq!(listing.find(b"/no/such/name/as/this").unwrap(), None);
        let mut nodes = vec![(Vec::new(), &tree)];
        while let Some((path, node)) = nodes.pop() {
            let found = listing.find(&path).unwrap().unwrap();
            match (node, found) {
                (Tree::Directory(entries), ListingEntry::Directory) => {
                    nodes.extend(entries.iter().map(|(name, entry)| ([&path[..], b"/", name].concat(), entry)));
                }
                (Tree::Symlink(expected), ListingEntry::Symlink { target }) => {
                    prop_assert_eq!(target.as_bytes(), &expected[..]);
                }
                (Tree::File { executable, contents }, ListingEntry::File { executable: found, size, nar_offset }) => {
                    prop_assert_eq!((found, size), (*executable, contents.len() as u64));
                    let start = usize::try_from(nar_offset.unwrap()).unwrap();
                    prop_assert_eq!(&packed[start..start + contents.len()], &contents[..]);
                }
                (_, found) => prop_assert!(false, "{:?}: {:?}", path, found),
            }
        }
    }
}

/// Encodes these strings as a NAR.
fn nar_of(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    push_string(&mut out, nar::MAGIC);
    for string in strings {
        push_string(&mut out, string);
    }
    out
}

fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut fields: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for name in names {
        fields.extend([
            b"entry".as_slice(),
            b"(",
            b"name",
            name,
            b"node",
            b"(",
            b"type",
            b"symlink",
            b"target",
            b"x",
            b")",
            b")",
        ]);
    }
    fields.push(b")");
    nar_of(&fields)
}

#[test]
fn unsafe_names_are_refused_and_nothing_is_created() {
    let long = [b'x'; 256];
    for names in [
        &[b"".as_slice()][..],
        &[b"."],
        &[b".."],
        &[b"a/b"],
        &[b"/etc"],
        &[b"a\0b"],
        &[&long[..]],
        &[b"b", b"a"],
        &[b"a", b"a"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t");
        let error = restore(&mut Cursor::new(directory(names)), &target).unwrap_err();
        assert!(error.is_refusal() && error.message().contains("malformed NAR at byte"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{names:?}");
    }
    assert!(parse(&mut Cursor::new(directory(&[b"a", b"b", &long[..255]])), &mut Skip).is_ok());
}

#[test]
fn symbolic_links_are_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = dir.path().join("t");
    symlink(&outside, &target).unwrap();
    let file = nar_of(&[b"(", b"type", b"regular", b"contents", b"x", b")"]);
    assert_eq!(restore(&mut Cursor::new(file), &target).unwrap_err().exit_status(), 2);
    assert_eq!(restore(&mut Cursor::new(directory(&[b"a"])), &target).unwrap_err().exit_status(), 2);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(target.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn nesting_is_limited() {
    let directory: &[&[u8]] = &[b"(", b"type", b"directory", b")"];
    let file: &[&[u8]] = &[b"(", b"type", b"regular", b"contents", b"", b")"];
    let nested = |depth: usize, innermost: &[&'static [u8]]| {
        let mut fields: Vec<&[u8]> = Vec::new();
        for _ in 0..depth {
            fields.extend([b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
        }
        fields.extend(innermost);
        for _ in 0..depth {
            fields.extend([b")".as_slice(), b")"]);
        }
        parse(&mut Cursor::new(nar_of(&fields)), &mut Skip)
    };
    for innermost in [directory, file] {
        assert!(nested(nar::MAX_DEPTH - 1, innermost).is_ok());
        assert!(nested(nar::MAX_DEPTH, innermost).unwrap_err().message().contains("deeper"));
    }
    assert!(nested(100_000, directory).unwrap_err().is_refusal());
}

#[test]
fn a_false_size_is_refused_without_allocating_it() {
    for size in [u64::MAX, u64::MAX - 7, 1 << 62, 1 << 40] {
        let mut nar = nar_of(&[b"(", b"type", b"regular", b"contents"]);
        nar.extend_from_slice(&size.to_le_bytes());
        nar.extend_from_slice(&[0; 100]);
        assert!(parse(&mut Cursor::new(&nar), &mut Skip).unwrap_err().message().contains("truncated"));
        let mut tag = nar_of(&[b"("]);
        tag.extend_from_slice(&size.to_le_bytes());
        assert!(parse(&mut Cursor::new(&tag), &mut Skip).unwrap_err().is_refusal());
    }
}

#[test]
fn a_file_that_a_nar_cannot_contain_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let error = dump(dir.path(), &mut Vec::new(), &mut |_| {}).unwrap_err();
    assert!(error.exit_status() == 2 && error.message().ends_with("fifo: a NAR cannot contain a FIFO"), "{error}");
}

#[test]
fn names_that_lix_refuses_cause_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a~nix~case~hack~1"), "").unwrap();
    let mut warnings = Vec::new();
    dump(dir.path(), &mut Vec::new(), &mut |warning| warnings.push(warning.to_owned())).unwrap();
    assert_eq!(warnings.len(), 1);
}

/// A tree of many batches of small files, in more directories than are open at once, with one file larger than a batch.
fn large_tree() -> Tree {
    let file = |size: usize, executable| Tree::File { executable, contents: vec![b'x'; size] };
    let directory = |index: usize| {
        let mut entries = std::collections::BTreeMap::new();
        for name in 0..=(index % 9) {
            entries.insert(format!("f{name}").into_bytes(), file((index * 37 + name * 4001) % 20_000, name % 3 == 0));
        }
        entries.insert(b"link".to_vec(), Tree::Symlink(b"f0".to_vec()));
        entries.insert(b"sub".to_vec(), Tree::Directory([(b"f".to_vec(), file(index, false))].into()));
        Tree::Directory(entries)
    };
    let mut entries: std::collections::BTreeMap<_, _> =
        (0..300).map(|index| (format!("d{index:03}").into_bytes(), directory(index))).collect();
    entries.insert(b"d150-large".to_vec(), file(3_000_000, true));
    Tree::Directory(entries)
}

#[test]
fn a_large_tree_is_restored_completely_or_not_at_all() {
    let packed = expected(&large_tree());
    let dir = tempfile::tempdir().unwrap();
    let restored = dir.path().join("t");
    restore(&mut Cursor::new(&packed), &restored).unwrap();
    assert!(pack(&restored) == packed);
    assert_store_object(&restored);
    remove_tree(&restored).unwrap();
    for length in [packed.len() - 1, packed.len() / 2, packed.len() / 3] {
        let error = restore(&mut Cursor::new(&packed[..length]), &restored).unwrap_err();
        assert!(error.is_refusal() && error.message().contains("truncated"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "left behind after {length} bytes");
    }
}

fn assert_store_object(path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1, 0), "{}", path.display());
    assert!(metadata.is_symlink() || matches!(metadata.mode() & 0o7777, 0o444 | 0o555), "{}", path.display());
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            assert_store_object(&entry.unwrap().path());
        }
    }
}

/// Each attempt detects the change only if it falls between two system calls, so there are many attempts.
#[test]
fn a_small_file_that_changes_while_it_is_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let done = AtomicBool::new(false);
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().write(true).open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                file.write_all_at(b"x", 50_000).unwrap();
            }
        });
        let error = (0..200_000).find_map(|_| dump(&path, &mut io::sink(), &mut |_| {}).err());
        done.store(true, Ordering::Relaxed);
        error
    });
    let error = error.unwrap();
    assert!(error.message().contains("changed while it was read") && error.exit_status() == 2, "{error}");
}

/// The reader calls this once, before it returns the rest of the NAR.
struct ActBeforeTheRest<'a, F: FnMut()> {
    first: Cursor<&'a [u8]>,
    act: Option<F>,
    rest: Cursor<&'a [u8]>,
}

impl<F: FnMut()> Read for ActBeforeTheRest<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.first.read(buf)?;
        if read > 0 || buf.is_empty() {
            return Ok(read);
        }
        if let Some(mut act) = self.act.take() {
            act();
        }
        self.rest.read(buf)
    }
}

/// Restores a NAR as `d/t`, calls `act` when half of it has been read, and returns the result. `victim/t/a/f` exists.
fn restore_with(packed: &[u8], act: impl FnMut(&Path)) -> (tempfile::TempDir, nar_pack::error::Result<u64>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::create_dir_all(dir.path().join("victim/t/a")).unwrap();
    fs::write(dir.path().join("victim/t/a/f"), "precious").unwrap();
    let (first, rest) = packed.split_at(packed.len() / 2);
    let (path, mut act) = (dir.path().to_owned(), act);
    let act = Some(|| act(&path));
    let input = ActBeforeTheRest { first: Cursor::new(first), act, rest: Cursor::new(rest) };
    let result = restore(&mut BufReader::with_capacity(1, input), &dir.path().join("d/t"));
    let contents = fs::read_to_string(dir.path().join("victim/t/a/f"));
    assert_eq!(contents.unwrap(), "precious", "a file elsewhere was changed: {result:?}");
    assert_eq!(fs::read_dir(dir.path().join("victim/t/a")).unwrap().count(), 1, "files were written elsewhere");
    (dir, result)
}

fn nested_tree() -> Vec<u8> {
    let file = || Tree::File { executable: false, contents: vec![b'x'; 1000] };
    let inner = Tree::Directory((0..20).map(|index| (format!("f{index}").into_bytes(), file())).collect());
    expected(&Tree::Directory([(b"a".to_vec(), inner)].into()))
}

#[test]
fn a_directory_that_a_link_replaces_while_a_nar_is_restored_leads_nowhere_else() {
    let packed = nested_tree();
    let replace = |name: &'static str| {
        move |dir: &Path| {
            fs::rename(dir.join(name), dir.join("moved")).unwrap();
            let victim = dir.join("victim").join(name.strip_prefix("d/").unwrap_or_default());
            symlink(victim, dir.join(name)).unwrap();
        }
    };
    let truncated = &packed[..packed.len() - 8];
    // The parent of the tree: the tree is completed, or removed, in the directory that was moved.
    let (dir, result) = restore_with(&packed, replace("d"));
    result.unwrap();
    assert!(pack(&dir.path().join("moved/t")) == packed);
    remove_tree(&dir.path().join("moved/t")).unwrap();
    let (dir, result) = restore_with(truncated, replace("d"));
    assert!(result.unwrap_err().is_refusal());
    assert_eq!(fs::read_dir(dir.path().join("moved")).unwrap().count(), 0);
    // The tree itself: it is not in its place at the end.
    for packed in [&packed, truncated] {
        let (dir, result) = restore_with(packed, replace("d/t"));
        let error = result.unwrap_err();
        assert!(error.message().contains("d/t was moved or replaced while it was unpacked"), "{error}");
        assert!(dir.path().join("d/t").symlink_metadata().unwrap().is_symlink());
        remove_tree(&dir.path().join("moved")).unwrap();
    }
    // A directory in it.
    let (dir, result) = restore_with(&packed, replace("d/t/a"));
    result.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("moved")).unwrap().count(), 20);
    remove_tree(&dir.path().join("moved")).unwrap();
    remove_tree(&dir.path().join("d/t")).unwrap();
}

#[test]
fn packing_can_undo_the_case_hack() {
    let file = |contents: &[u8]| Tree::File { executable: false, contents: contents.to_vec() };
    // Once renamed, the names sort differently.
    let names = [b"Foo".as_slice(), b"a", b"foo", b"foo-b", b"foo~"];
    let inner = Tree::Directory(names.map(|name| (name.to_vec(), file(name))).into());
    let packed = expected(&Tree::Directory([(b"A".to_vec(), inner.clone()), (b"a".to_vec(), inner)].into()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let mut restorer = nar::Restorer::new(&path).unwrap();
    parse(&mut Cursor::new(&packed), &mut nar::CaseHack::new(&mut restorer)).unwrap();
    assert!(path.join("a~nix~case~hack~1/foo~nix~case~hack~1").exists());
    let mut undone = Vec::new();
    let parent = Arc::new(OpenDir::open(dir.path()).unwrap());
    nar::dump_undoing_case_hack_in(&parent, "t", &mut undone).unwrap();
    assert!(undone == packed && pack(&path) != packed);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path.join("a~nix~case~hack~2"), "").unwrap();
    let error = nar::dump_undoing_case_hack_in(&parent, "t", &mut Vec::new()).unwrap_err();
    assert!(error.message().contains("had the same name before the case hack"), "{error}");
    remove_tree(&path).unwrap();
}
