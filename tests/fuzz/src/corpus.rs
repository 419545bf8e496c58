//! The corpus as text, so that it can be reviewed: one file for each input, in a directory for each target.
//!
//! Each line describes some bytes. The argument of a line may contain the escapes of Rust byte strings.
//!
//! | line | bytes |
//! | --- | --- |
//! | `# …` | none: a comment |
//! | `s TEXT` | a string of a NAR: its length, its bytes, zeros up to a multiple of 8 |
//! | `n NUMBER` | a number of 64 bits, little-endian |
//! | `t TEXT` | the text and a line feed |
//! | `b TEXT` | the text |
//! | `x HEX` | bytes in hexadecimal |
//! | `z COUNT` | zeros |
//! | `p SIZE` | zeros up to a multiple of SIZE |
//! | `m KEY SIZE [TYPE]` | the header of a tar member; TYPE is a letter, default `0` |
//! | `r COUNT` … `.` | the lines in between, COUNT times |

use std::fs;
use std::path::Path;

/// Returns the bytes that a text describes.
///
/// # Errors
/// The message names the invalid line.
pub fn expand(text: &str) -> Result<Vec<u8>, String> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let mut bytes = Vec::new();
    expand_until(&mut lines, None, &mut bytes)?;
    Ok(bytes)
}

/// Returns the name and the bytes of every file in a directory, sorted by name.
///
/// # Errors
/// The message names the file and the invalid line.
pub fn entries(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let bytes = expand(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        found.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), bytes));
    }
    found.sort();
    Ok(found)
}

fn expand_until<'a>(
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
    repeat_line: Option<usize>,
    bytes: &mut Vec<u8>,
) -> Result<(), String> {
    while let Some((number, line)) = lines.next() {
        if line == "." && repeat_line.is_some() {
            return Ok(());
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {number}: {line:?} is invalid");
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let count = || rest.trim().parse::<usize>().map_err(|_| wrong());
        match word {
            "s" => string(bytes, &unescape(rest).ok_or_else(wrong)?),
            "n" => bytes.extend(rest.trim().parse::<u64>().map_err(|_| wrong())?.to_le_bytes()),
            "t" => {
                bytes.extend(unescape(rest).ok_or_else(wrong)?);
                bytes.push(b'\n');
            }
            "b" => bytes.extend(unescape(rest).ok_or_else(wrong)?),
            "x" => bytes.extend(hexadecimal(rest).ok_or_else(wrong)?),
            "z" => bytes.resize(bytes.len() + count()?, 0),
            "p" => bytes.resize(bytes.len().next_multiple_of(count()?.max(1)), 0),
            "m" => bytes.extend(tar_head(rest).ok_or_else(wrong)?),
            "r" => {
                let mut repeated = Vec::new();
                let times = count()?;
                expand_until(lines, Some(number), &mut repeated)?;
                bytes.extend(repeated.repeat(times));
            }
            _ => return Err(wrong()),
        }
    }
    repeat_line.map_or(Ok(()), |number| Err(format!("line {number}: the repetition has no end")))
}

fn string(bytes: &mut Vec<u8>, string: &[u8]) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string);
    bytes.resize(bytes.len() + (8 - string.len() % 8) % 8, 0);
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok().filter(|_| pair.len() == 2);
    digits.chunks(2).map(byte).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'0' => 0,
                b'x' => hexadecimal(str::from_utf8(&[rest.next()?, rest.next()?]).ok()?)?[0],
                other @ (b'\\' | b'"' | b'\'') => other,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(bytes)
}

/// Returns the header of a tar member in the ustar format.
fn tar_head(text: &str) -> Option<Vec<u8>> {
    let mut words = text.split(' ');
    let (key, size, kind) = (unescape(words.next()?)?, words.next()?.parse::<u64>().ok()?, words.next().unwrap_or("0"));
    let mut head = vec![0; 512];
    let mut put =
        |at: usize, field: &[u8]| head.get_mut(at..at + field.len()).map(|place| place.copy_from_slice(field));
    put(0, key.get(..key.len().min(100))?)?;
    put(100, b"0000444\0")?;
    put(108, b"0000000\0")?;
    put(116, b"0000000\0")?;
    put(124, format!("{size:011o}\0").as_bytes())?;
    put(136, b"00000000001\0")?;
    put(148, b"        ")?;
    put(156, kind.as_bytes().get(..1)?)?;
    put(257, b"ustar\x0000")?;
    let sum: u32 = head.iter().map(|&byte| u32::from(byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(head)
}
