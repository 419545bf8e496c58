//! Progress is drawn on a terminal only, by one stage of a pipe only, and fits the terminal. `script` of util-linux is
//! the terminal.

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};
use cache_tests::CommandOutput;

const MISSING: &str = "s3-push --missing";

/// Runs a script on a terminal with this many columns; returns all that the terminal receives.
fn on_terminal(fixture: &Fixture, columns: u16, script: &str) -> String {
    fixture.scratch.write("on-terminal.sh", format!("stty cols {columns} rows 24\n{script}\n"));
    let output = fixture.scratch.sh("TERM=xterm script -qec 'sh on-terminal.sh' typescript < /dev/null");
    assert_eq!(output.status, 0, "{output:?}");
    output.text()
}

/// Returns the lines that the terminal showed at any time, without escape sequences.
fn shown_lines(received: &str) -> Vec<String> {
    let mut text = String::new();
    let mut characters = received.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // A control sequence ends with a letter: m sets a color, others move the cursor or clear the line.
            let last = characters.by_ref().skip_while(|character| *character == '[').find(char::is_ascii_alphabetic);
            if last != Some('m') {
                text.push('\r');
            }
        } else {
            text.push(character);
        }
    }
    text.split(['\r', '\n']).map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn a_bar_is_drawn_on_a_terminal_below_the_output() {
    let (fixture, _, _) = Fixture::embedded();
    let received = on_terminal(&fixture, 80, &format!("{MISSING} \"$C\" < paths"));
    assert!(received.contains(" of 3 paths, "), "{received:?}");
    for path in fixture.closure.paths() {
        assert!(shown_lines(&received).iter().any(|line| line == path), "{path} has no line of its own: {received:?}");
    }
    let last = received.rfind(" of 3 paths, ").unwrap();
    assert!(
        received[last..].contains("\u{1b}[2K") || received[last..].contains("\u{1b}[K"),
        "not removed: {received:?}"
    );
}

#[test]
fn a_bar_fits_a_narrow_terminal() {
    let (fixture, _, _) = Fixture::embedded();
    for columns in [80, 40] {
        let received = on_terminal(&fixture, columns, &format!("{MISSING} \"$C\" < paths > missing"));
        let lines = shown_lines(&received);
        let bars: Vec<&String> = lines.iter().filter(|line| line.contains(" of 3 paths")).collect();
        assert!(!bars.is_empty(), "{columns} columns: {received:?}");
        assert!(bars.iter().all(|line| line.chars().count() <= columns.into()), "{columns} columns: {bars:?}");
        assert_eq!(bars.iter().any(|line| line.contains('[')), columns == 80, "{bars:?}");
    }
}

#[test]
fn only_the_last_stage_of_a_pipe_draws_a_bar() {
    let (fixture, _, _) = Fixture::embedded();
    let received = on_terminal(&fixture, 80, PUBLISH);
    assert!(received.contains(" paths sent, "), "the last stage draws: {received:?}");
    assert!(!received.contains(" of 3 paths, "), "the first stage does not: {received:?}");
    let received = on_terminal(&fixture, 80, "s3-pull -r --export \"$C\" \"$TOP\" | cat > export");
    let lines = shown_lines(&received);
    assert!(lines.len() == 1 && lines[0].contains("3 paths written; received "), "one line: {received:?}");
    let received = on_terminal(&fixture, 80, "s3-pull -r --export \"$C\" \"$TOP\" > export");
    assert!(shown_lines(&received).len() > 1, "standard output is a file: {received:?}");
    let received = on_terminal(&fixture, 80, &format!("{MISSING} --progress bar \"$C\" < paths | cat"));
    assert!(received.contains(" of 3 paths, "), "--progress bar: {received:?}");
}

#[test]
fn progress_is_not_drawn_on_request_or_without_a_terminal() {
    let (fixture, _, _) = Fixture::embedded();
    for without in ["--progress never", "--progress plain", "--quiet", "--quiet --progress bar"] {
        let received = on_terminal(&fixture, 80, &format!("{MISSING} {without} \"$C\" < paths > missing"));
        assert_eq!(received, "", "{without}");
    }
    let received = on_terminal(&fixture, 80, &format!("TERM=dumb {MISSING} \"$C\" < paths > missing"));
    assert_eq!(received, "", "a terminal that cannot move its cursor");
    for mode in ["auto", "bar", "plain", "never"] {
        let output: CommandOutput = fixture.scratch.sh(&format!("{MISSING} --progress {mode} \"$C\" < paths"));
        output.ok();
        assert_eq!(output.stderr, "", "--progress {mode} without a terminal");
    }
}

#[test]
fn a_job_in_the_background_draws_nothing() {
    let (fixture, _, _) = Fixture::embedded();
    // `set -m` gives the job a process group of its own, as an interactive shell does.
    let job = format!("set -m\n{MISSING} \"$C\" < paths > missing &\nwait $!");
    let received = on_terminal(&fixture, 80, &job);
    assert!(!received.contains(" of 3 paths"), "{received:?}");
    assert_eq!(fixture.scratch.sh("wc -l < missing").ok().trim(), "3");
}

#[test]
fn plain_progress_is_a_line_every_ten_seconds() {
    let (fixture, _, _) = Fixture::embedded();
    // The pipe stays open until the line has appeared.
    let script = "mkfifo input
        s3-push --progress plain --key log/x \"$C\" < input 2> messages &
        push=$!
        exec 3> input
        grep -m 1 -q '^s3-push: 0 B, ' <(exec 3>&-; timeout 120 tail -n +1 -f --pid=$push messages)
        exec 3>&-
        wait $push";
    fixture.scratch.sh(script).ok();
}

#[test]
fn no_color_turns_colors_off() {
    let (fixture, _, _) = Fixture::embedded();
    let draw =
        |environment: &str| on_terminal(&fixture, 80, &format!("{environment} {MISSING} \"$C\" < paths > missing"));
    let is_colored = |received: &str| received.contains("\u{1b}[32m");
    let (colored, plain) = (draw(""), draw("NO_COLOR=1"));
    assert!(is_colored(&colored), "{colored:?}");
    assert!(plain.contains(" of 3 paths, ") && !is_colored(&plain), "{plain:?}");
}

#[test]
fn a_summary_tells_what_was_moved() {
    let (fixture, _, _) = Fixture::embedded();
    let pushed = fixture.scratch.sh(&format!("{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive"));
    pushed.ok();
    assert_summary(&pushed.stderr, "3 sent (", "already present; uploaded ");
    let again = fixture.scratch.sh("s3-push --no-nix \"$C\" < archive");
    assert_summary(&again.stderr, "0 sent (0 B), 3 already present; uploaded ", " in ");
    let pulled = fixture.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"");
    assert_summary(&pulled.stderr, "3 fetched (", "0 already present; received ");
    let streamed = fixture.scratch.sh("s3-pull -r --archive \"$C\" \"$TOP\" > copy");
    assert_summary(&streamed.stderr, "3 paths written; received ", " in ");
    let key = fixture.scratch.sh("s3-push --key log/x \"$C\" < archive");
    assert_summary(&key.stderr, "/log/x: ", " in ");
    for command in ["s3-push -q --no-nix \"$C\" < archive", "s3-pull -q -r --archive \"$C\" \"$TOP\" > copy"] {
        assert_eq!(fixture.scratch.sh(command).stderr, "", "{command}");
    }
}

/// Asserts that the last line contains both texts, and a rate.
#[track_caller]
fn assert_summary(stderr: &str, first: &str, second: &str) {
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains(first) && last.contains(second) && last.contains("/s)"), "{stderr}");
}
