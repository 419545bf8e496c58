//! What was found, as Markdown, JSON and HTML.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::known::{KNOWN, Known};
use crate::outcome::{Outcome, Verdict};
use crate::rows::Row;
use crate::servers::{SERVERS, Server};

/// The outcomes of the rows that were asked of a server.
pub struct Column {
    /// The server.
    pub server: &'static Server,
    /// Its version.
    pub version: String,
    /// An outcome per row of the report, in its order.
    pub outcomes: Vec<Outcome>,
}

/// The outcomes of all servers.
pub struct Report {
    /// The day, `2026-01-31`.
    pub date: String,
    /// The version of Nix, if it was asked.
    pub nix: Option<String>,
    /// The version of the Nix of Debian's testing release, if it was asked.
    pub nix_testing: Option<String>,
    /// Size in bytes of the large object.
    pub large_size: u64,
    /// The rows.
    pub rows: Vec<&'static Row>,
    /// The servers.
    pub columns: Vec<Column>,
    /// The servers that could not be installed or started, with the cause.
    pub missing: Vec<(&'static Server, String)>,
}

/// Notes with their numbers: one for each row and text.
#[derive(Default)]
struct Notes(Vec<(&'static str, String, Vec<&'static str>)>);

impl Notes {
    /// Returns the number of a note.
    fn number(&mut self, row: &'static Row, column: &Column, note: &str) -> usize {
        let found = self.0.iter().position(|(title, text, _)| *title == row.title && text == note);
        let index = found.unwrap_or_else(|| {
            self.0.push((row.title, note.to_owned(), Vec::new()));
            self.0.len() - 1
        });
        self.0[index].2.push(column.server.title);
        index + 1
    }
}

impl Report {
    /// Returns how many outcomes have that verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.columns.iter().flat_map(|column| &column.outcomes).filter(|outcome| outcome.verdict == verdict).count()
    }

    /// Returns the page `docs/compatibility.md`.
    pub fn markdown(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        let [nix, newer] = [&self.nix, &self.nix_testing].map(|version| version.as_deref().unwrap_or("not asked"));
        let mebibytes = self.large_size >> 20;
        writeln!(
            text,
            "\nRun on {}. Nix: {nix}; newer Nix, of Debian testing: {newer}. The large object has {mebibytes} MiB.\n",
            self.date
        )
        .unwrap_or_default();
        text += "| server | version | from |\n| --- | --- | --- |\n";
        for column in &self.columns {
            let Column { server, version, .. } = column;
            writeln!(text, "| {} | {version} | {} |", server.title, server.source).unwrap_or_default();
        }
        text += &self.absent_servers();
        let mut notes = Notes::default();
        text += &self.table(&mut notes);
        text += "\n## Notes\n\n";
        for (number, (row, note, servers)) in notes.0.iter().enumerate() {
            writeln!(text, "{}. {} ({}): {note}.", number + 1, servers.join(", "), row).unwrap_or_default();
        }
        text + &known_markdown()
    }

    /// Returns the servers that were not run, if there are any: with the cause, or because others were selected.
    fn absent_servers(&self) -> String {
        let mut text = String::new();
        for (server, cause) in &self.missing {
            writeln!(text, "\nNot run: {}: {}.", server.title, cause.trim_end_matches('.')).unwrap_or_default();
        }
        let is_selected = |server: &Server| {
            let mut run =
                self.columns.iter().map(|column| column.server).chain(self.missing.iter().map(|(server, _)| *server));
            run.any(|found| found.name == server.name)
        };
        let others: Vec<_> = SERVERS.iter().filter(|server| !is_selected(server)).map(|server| server.title).collect();
        if !others.is_empty() {
            writeln!(text, "\nNot selected: {}.", others.join(", ")).unwrap_or_default();
        }
        text
    }

    fn table(&self, notes: &mut Notes) -> String {
        let titles: Vec<_> = self.columns.iter().map(|column| column.server.title).collect();
        let mut text =
            format!("\n## Results\n\n| | {} |\n| --- |{}\n", titles.join(" | "), " --- |".repeat(titles.len()));
        for (index, row) in self.rows.iter().enumerate() {
            let cells = self.columns.iter().map(|column| {
                let Outcome { verdict, note } = &column.outcomes[index];
                if note.is_empty() {
                    return verdict.word().to_owned();
                }
                format!("{} ({})", verdict.word(), notes.number(row, column, note))
            });
            let cells: Vec<_> = cells.collect();
            writeln!(text, "| {} | {} |", row.title, cells.join(" | ")).unwrap_or_default();
        }
        text
    }

    /// Returns the same as JSON, in an order that depends on nothing else.
    pub fn json(&self) -> String {
        let servers: Vec<Value> = self.columns.iter().map(|column| self.column_json(column)).collect();
        let known: Vec<Value> = KNOWN.iter().map(known_json).collect();
        let missing: Map<String, Value> =
            self.missing.iter().map(|(server, cause)| (server.name.to_owned(), cause.as_str().into())).collect();
        let value = json!({
            "date": self.date, "nix": self.nix, "nixTesting": self.nix_testing, "servers": servers,
            "notInstalled": missing, "notRun": known,
        });
        format!("{value:#}\n")
    }

    fn column_json(&self, column: &Column) -> Value {
        let outcome = |(row, outcome): (&&Row, &Outcome)| {
            let mut value = json!({ "verdict": outcome.verdict.name() });
            if !outcome.note.is_empty() {
                value["note"] = outcome.note.as_str().into();
            }
            (row.id.to_owned(), value)
        };
        let rows: Map<String, Value> = self.rows.iter().zip(&column.outcomes).map(outcome).collect();
        json!({ "name": column.server.name, "version": column.version, "rows": rows })
    }

    /// Returns the same as a web page, in which a note is the title of its cell.
    pub fn html(&self) -> String {
        let mut text = format!(
            "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Compatibility, {0}</title>\n<h1>Compatibility, {0}</h1>\n<table>\n<tr><th>",
            self.date
        );
        for column in &self.columns {
            write!(text, "<th>{} {}", column.server.title, escape(&column.version)).unwrap_or_default();
        }
        for (index, row) in self.rows.iter().enumerate() {
            write!(text, "\n<tr><th>{}", escape(row.title)).unwrap_or_default();
            for column in &self.columns {
                let Outcome { verdict, note } = &column.outcomes[index];
                write!(text, "<td title=\"{}\">{}", escape(note), verdict.name()).unwrap_or_default();
            }
        }
        text + "\n</table>\n"
    }
}

/// Returns the section about services that cannot run here.
fn known_markdown() -> String {
    let mut text = String::from(KNOWN_INTRODUCTION);
    for known in &KNOWN {
        let Known { service, differences, behavior, sources } = known;
        let tested = if known.is_emulated() { "not run (emulated)" } else { "not run" };
        writeln!(text, "| {service} | {tested} | {differences} | {behavior} | {sources} |").unwrap_or_default();
    }
    text
}

fn known_json(known: &Known) -> Value {
    json!({
        "service": known.service, "emulated": known.is_emulated(), "differences": known.differences,
        "behavior": known.behavior, "sources": known.sources,
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

const INTRODUCTION: &str = "\
# Compatibility

<!-- Generated by `cargo xtask matrix`. Change tests/src/bin/matrix instead of this file. -->

Each column is a server that `cargo xtask matrix` has installed from a package registry and started, each row a
question to it. [compatibility.json](compatibility.json) is the same for programs.

- **ok**: it works as with S3.
- **works around**: the server differs from S3, and our tools work all the same; the note says how.
- **not supported**: the server does not have this function; the note says what follows from that.
- **fails**: it does not work.

No option is needed for any of these servers, and no tool guesses a server from its host name.
";

const KNOWN_INTRODUCTION: &str = "
## Services and servers that were not run

`cargo xtask matrix` installs servers from package registries only. These rows come from published documentation and
issue reports. **emulated**: a proxy in the tests behaves as the service in these respects, and our tools run with it
(tests/src/service_profiles.rs).

| service | | differs from S3 | what our tools do | source |
| --- | --- | --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use super::{Column, Report, SERVERS};
    use crate::outcome::{Outcome, Verdict};
    use crate::rows::ROWS;

    fn report() -> Report {
        let column = |index: usize, note: &str| Column {
            server: &SERVERS[index],
            version: "1.0".to_owned(),
            outcomes: vec![Outcome::ok(), Outcome::not_supported(note)],
        };
        let columns = vec![column(0, "one <reason>"), column(1, "one <reason>"), column(2, "another")];
        let rows = ROWS.iter().take(2).collect();
        let missing = vec![(&SERVERS[3], "pip failed".to_owned())];
        Report {
            date: "2026-01-31".to_owned(),
            nix: None,
            nix_testing: None,
            large_size: 1 << 20,
            rows,
            columns,
            missing,
        }
    }

    #[test]
    fn a_server_that_was_not_run_is_named_with_the_cause() {
        let text = report().markdown();
        assert!(text.contains(&format!("Not run: {}: pip failed.\n", SERVERS[3].title)), "{text}");
        let selected = format!("Not selected: {}", SERVERS[4].title);
        assert!(text.contains(&selected), "{text}");
    }

    #[test]
    fn a_note_of_several_servers_has_one_number() {
        let text = report().markdown();
        assert!(text.contains("| not supported (1) | not supported (1) | not supported (2) |"), "{text}");
        assert!(text.contains(&format!("1. {}, {} (", SERVERS[0].title, SERVERS[1].title)), "{text}");
    }

    #[test]
    fn json_has_a_verdict_for_each_row() {
        let value: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(value["servers"][2]["rows"][ROWS[1].id]["note"], "another");
        assert_eq!(report().count(Verdict::NotSupported), 3);
    }

    #[test]
    fn notes_are_escaped_in_html() {
        assert!(report().html().contains("title=\"one &lt;reason>\""), "{}", report().html());
    }
}
