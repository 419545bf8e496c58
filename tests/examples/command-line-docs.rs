//! `command-line-docs DIR`: writes the man pages of all tools and their commands, and the completions for bash, zsh and
//! fish, below DIR, which has the layout of /usr/share. `cargo xtask dist` runs it.
//!
//! All of it comes from the `cli::Cli` of each tool. This is an example and not a binary, because an example may use
//! development dependencies: the binaries of this package are built without the AWS SDK.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// The tools whose first argument is a cache: completions offer `$NIX_S3_CACHE`.
const TOOLS_WITH_A_CACHE: [&str; 3] = ["s3-push", "s3-pull", "cache-policy"];

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let [dir] = args.as_slice() else {
        eprintln!("usage: command-line-docs DIR");
        return ExitCode::from(2);
    };
    match write_all(Path::new(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("command-line-docs: cannot write below {}: {error}", dir.display());
            ExitCode::from(2)
        }
    }
}

fn tools() -> [Command; 6] {
    [
        nar_pack::cli::Cli::command(),
        narinfo_gen::cli::Cli::command(),
        cache_sign::cli::Cli::command(),
        s3_push::cli::Cli::command(),
        s3_pull::cli::Cli::command(),
        cache_policy::cli::Cli::command(),
    ]
}

fn write_all(dir: &Path) -> io::Result<()> {
    let man = dir.join("man/man1");
    fs::create_dir_all(&man)?;
    for mut tool in tools() {
        tool = tool.disable_help_subcommand(true);
        tool.build();
        write_man_pages(&tool, &man)?;
        for (shell, path) in [
            (Shell::Bash, format!("bash-completion/completions/{}", tool.get_name())),
            (Shell::Zsh, format!("zsh/site-functions/_{}", tool.get_name())),
            (Shell::Fish, format!("fish/vendor_completions.d/{}.fish", tool.get_name())),
        ] {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir))?;
            fs::write(path, completion(&tool, shell))?;
        }
    }
    Ok(())
}

/// Writes the page of a command and the pages of its subcommands, such as `s3-pull-pins.1`.
fn write_man_pages(command: &Command, dir: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_man_pages(subcommand, dir)?;
    }
    fs::write(dir.join(format!("{}.1", page_name(command))), man_page(command)?)
}

fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn man_page(command: &Command) -> io::Result<Vec<u8>> {
    // A page shows what -h leaves out, too.
    let shown = command.clone().mut_args(|arg| arg.hide_short_help(false));
    let man = Man::new(shown).source(concat!("nix-s3-cache ", env!("CARGO_PKG_VERSION")));
    let man = man.manual("Nix binary caches in S3 buckets");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;

    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    let usage = command.clone().render_usage().to_string();
    for (index, line) in usage.trim_start_matches("Usage:").lines().enumerate() {
        if index > 0 {
            roff.control("br", []);
        }
        let (name, rest) = line.trim().split_at(command.get_bin_name().map_or(0, str::len).min(line.trim().len()));
        roff.text([bold(name), roman(rest)]);
    }
    let about = command.get_long_about().or_else(|| command.get_about());
    let after = command.get_after_long_help().or_else(|| command.get_after_help());
    let after = sections(&after.map(ToString::to_string).unwrap_or_default());
    roff.control("SH", ["DESCRIPTION"]);
    add_text(&mut roff, &about.map(ToString::to_string).unwrap_or_default());
    for section in after.iter().filter(|section| section.heading.is_empty()) {
        roff.control("PP", []);
        add_text(&mut roff, &section.text);
    }
    roff.to_writer(&mut page)?;

    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    for section in after.iter().filter(|section| !section.heading.is_empty()) {
        let heading = section.heading.to_uppercase();
        // INPUT and OUTPUT are groups of options.
        let stream = if ["INPUT", "OUTPUT"].contains(&heading.as_str()) { "STANDARD " } else { "" };
        roff.control("SH", [format!("{stream}{heading}").as_str()]);
        add_text(&mut roff, &section.text);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(see_also(page_name(command)))]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// Returns the other pages: all tools, and the commands of the same tool.
fn see_also(page: &str) -> String {
    let mut names = Vec::new();
    for mut tool in tools() {
        tool.build();
        names.push(tool.get_name().to_owned());
        if page.starts_with(tool.get_name()) {
            names.extend(tool.get_subcommands().map(|subcommand| page_name(subcommand).to_owned()));
        }
    }
    names.retain(|name| name != page && !name.ends_with("-help"));
    names.iter().map(|name| format!("{name}(1)")).collect::<Vec<_>>().join(", ")
}

/// A part of the text after the options.
struct Section {
    /// Empty for the text before the first heading.
    heading: String,
    text: String,
}

/// Splits the text after the options at its headings: a heading begins a paragraph, has at most three words, and ends in
/// a colon. A paragraph after the examples that is not indented is a note.
fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for paragraph in text.split("\n\n") {
        let (heading, rest) = match paragraph.split_once(':') {
            Some((heading, rest)) if is_heading(heading) && rest.starts_with([' ', '\n']) => (heading, rest),
            _ => ("", paragraph),
        };
        let text = rest.trim_start_matches('\n').trim_end();
        let is_note = |section: &Section| section.heading.starts_with("Example") && !text.starts_with(' ');
        match sections.last_mut() {
            Some(last) if heading.is_empty() && !is_note(last) => last.text.extend(["\n\n", text]),
            Some(_) if heading.is_empty() => sections.push(Section { heading: "Notes".into(), text: text.into() }),
            // The rest of a heading's own line is text, not an indented line.
            _ => sections.push(Section {
                heading: heading.into(),
                text: if rest.starts_with(' ') { capitalize(text.trim_start()) } else { text.into() },
            }),
        }
    }
    sections
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + chars.as_str())
}

fn is_heading(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase()) && text.split(' ').count() <= 3 && !text.contains('\n')
}

/// Adds paragraphs; indented lines are shown as they are.
fn add_text(roff: &mut Roff, text: &str) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        let mut is_literal = false;
        for line in paragraph.lines() {
            if line.starts_with(' ') != is_literal {
                is_literal = !is_literal;
                roff.control(if is_literal { "EX" } else { "EE" }, []);
            }
            roff.text([roman(line)]);
        }
        if is_literal {
            roff.control("EE", []);
        }
    }
}

/// Returns the completions of a tool. Arguments without a hint complete file names; the cache in `$NIX_S3_CACHE` is added.
fn completion(tool: &Command, shell: Shell) -> String {
    let name = tool.get_name();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tool.clone(), name, &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    // clap_complete 4.6 writes the hyphen of a tool in two ways, so that options of its commands are not found.
    let function = name.replace('-', "__");
    if shell == Shell::Bash {
        let other = name.replace('-', "__subcmd__");
        script = script.replace(&format!("{other}__subcmd__"), &format!("{function}__subcmd__"));
    }
    if !TOOLS_WITH_A_CACHE.contains(&name) {
        return script;
    }
    match shell {
        Shell::Bash => {
            let wrapper = BASH_WRAPPER.replace("TOOL", &function);
            let script = script.replace(&format!("-F _{function} "), &format!("-F _{function}_or_cache "));
            format!("{wrapper}\n{script}")
        }
        Shell::Zsh => {
            // Arguments begin with a colon, options with their name.
            let lines = script.lines().map(|line| {
                let is_argument = line.trim_start_matches(['\'', '*']).starts_with(':');
                let line = if is_argument { line.replace(":_default' ", ":_nix_s3_cache' ") } else { line.to_owned() };
                line + "\n"
            });
            lines.collect::<String>().replacen("\n\n", &format!("\n\n{ZSH_FUNCTION}\n"), 1)
        }
        _ => script + &format!("complete -c {name} -n 'set -q NIX_S3_CACHE' -a '$NIX_S3_CACHE' -d 'Cache'\n"),
    }
}

/// `%q` quotes `?` and `&`, which are special to the shell.
const BASH_WRAPPER: &str = r#"_TOOL_or_cache() {
    local word=${COMP_WORDS[COMP_CWORD]}
    _TOOL "$@"
    if [[ -n ${NIX_S3_CACHE:-} && $word != -* && $NIX_S3_CACHE == "$word"* ]]; then
        COMPREPLY+=("$(printf %q "$NIX_S3_CACHE")")
    fi
}
"#;

const ZSH_FUNCTION: &str = r#"(( $+functions[_nix_s3_cache] )) ||
_nix_s3_cache() {
    [[ -n ${NIX_S3_CACHE:-} ]] && compadd -- "$NIX_S3_CACHE"
    _files
}
"#;
