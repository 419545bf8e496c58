//! The statistics as a web page in one file.

use std::time::SystemTime;

use indicatif::{HumanBytes, HumanCount};
use maud::{Markup, PreEscaped, html};
use nar_pack::error::Result;
use nar_pack::html_page::Page;

use super::chart::{self, Growth, draw_growth};
use super::closures::Sizes;
use super::month;
use super::months::month_number;
use super::report::Stats;

/// Number of rows of a table; the smaller ones of others are summed up.
const MAX_ROWS: usize = 20;
/// The sizes of the chart on wide and on narrow screens, in pixels.
const WIDE: (u32, u32) = (920, 300);
const NARROW: (u32, u32) = (370, 240);

const STYLE: &str = "
.figures { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); margin: 1.25rem 0; }
.figures div { background: var(--block); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; }
.figures dt { color: var(--muted); font-size: .85rem; }
.figures dd { font-size: 1.25rem; font-weight: 600; margin: 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
th:first-child, td:first-child { min-width: 10rem; overflow-wrap: anywhere; text-align: left; white-space: normal;
  width: 100%; }
th:last-child, td:last-child { padding-right: 0; }
.bar { background: var(--accent); border-radius: 2px; display: block; height: .3rem; margin-top: .2rem; min-width: 1px; }
.key span { border-radius: 2px; display: inline-block; height: .7rem; margin-right: .35rem; width: .7rem; }
.key .unpacked { background: var(--accent); }
.key .compressed { background: var(--second); margin-left: 1.25rem; }
summary { color: var(--muted); cursor: pointer; font-size: .9rem; }
.note { color: var(--muted); font-size: .875rem; }
@media (max-width: 40rem) { .optional { display: none; } }
";

/// Returns the page; `cache` is the URL of the cache, and ages are those at `now`.
///
/// # Errors
/// Fails if a chart cannot be drawn.
pub fn to_html(stats: &Stats, cache: &str, now: SystemTime) -> Result<String> {
    let title = format!("Statistics of {}", cache.trim_end_matches('/'));
    let body = html! {
        main {
            h1 { (title) }
            p.note { "As of " (date(now)) " (UTC). Sizes are those of NARs, unpacked and compressed." }
            (figures(stats))
            h2 { "Growth" }
            (growth_charts(stats)?)
            h2 { "Age" }
            (table("last written", &by_age(stats, now)))
            h2 { "Compression" }
            (table("method", &stats.by_compression))
            h2 { "Pins" }
            p { (kept_by_pins(stats)) }
            (table("kept by this pin alone", &largest_rows(&stats.pins)))
            h2 { "Signatures" }
            (table("key", &largest_rows(&stats.signers())))
            h2 { "Largest paths" }
            (table("path", &stats.largest_paths))
            h2 { "Largest closures" }
            (table("closure of", &stats.largest_closures))
            @if stats.closures_examined < stats.closures_total {
                p.note { (stats.closures_examined) " of " (stats.closures_total) " closures were examined." }
            }
        }
    };
    Ok(Page { title: &title, styles: &[STYLE, chart::STYLE], script: None, body }.into_text())
}

fn figures(stats: &Stats) -> Markup {
    let Sizes { paths, nar_size, file_size } = stats.total;
    let kept = percent(kept_sizes(stats).nar_size, all_sizes(stats).nar_size);
    html! {
        dl.figures {
            div { dt { "Store paths" } dd { (HumanCount(paths)) } }
            div { dt { "Unpacked" } dd { (HumanBytes(nar_size)) } }
            div { dt { "Compressed" } dd { (HumanBytes(file_size)) } }
            div { dt { "Kept by pins" } dd { (kept) } }
        }
    }
}

fn growth_charts(stats: &Stats) -> Result<Markup> {
    let growth = growth(stats);
    if growth.is_empty() {
        return Ok(html! { p { "The cache is empty." } });
    }
    let (wide, narrow) = (draw_growth(&growth, WIDE)?, draw_growth(&growth, NARROW)?);
    Ok(html! {
        p.key { span.unpacked {} "unpacked" span.compressed {} "compressed" }
        div.chart role="img" aria-label="Bytes in the cache by month" {
            div.wide { (PreEscaped(wide)) }
            div.narrow { (PreEscaped(narrow)) }
        }
        p.note {
            "Of what is in the cache now. A path counts for the month in which its narinfo was last written, and a NAR "
            "that several paths share counts for each."
        }
        details {
            summary { "Added by month" }
            (table("month", &stats.by_month))
        }
    })
}

/// Returns the bytes at the beginning of each month in which they change.
fn growth(stats: &Stats) -> Vec<Growth> {
    let mut growth: Vec<Growth> = Vec::new();
    for (text, sizes) in &stats.by_month {
        let Some(month) = month_number(text) else { continue };
        let before = growth.last().copied().unwrap_or(Growth { month, nar_size: 0, file_size: 0 });
        if growth.last().is_none_or(|last| last.month < month) {
            growth.push(Growth { month, ..before });
        }
        growth.push(Growth {
            month: month + 1,
            nar_size: before.nar_size.saturating_add(sizes.nar_size),
            file_size: before.file_size.saturating_add(sizes.file_size),
        });
    }
    growth
}

/// Sums the paths up by their age in calendar months.
fn by_age(stats: &Stats, now: SystemTime) -> Vec<(String, Sizes)> {
    // The least age of each group, in months.
    const AGES: [(u32, &str); 6] = [
        (24, "2 years ago or more"),
        (12, "1 year ago"),
        (6, "6 to 11 months ago"),
        (3, "3 to 5 months ago"),
        (1, "1 or 2 months ago"),
        (0, "this month"),
    ];
    let now = month_number(&month(now)).unwrap_or_default();
    let mut groups: Vec<(String, Sizes)> =
        AGES.iter().map(|(_, name)| ((*name).to_owned(), Sizes::default())).collect();
    for (text, sizes) in &stats.by_month {
        // A time in the future counts as this month.
        let age = now.saturating_sub(month_number(text).unwrap_or_default());
        if let Some(group) = AGES.iter().position(|(least, _)| age >= *least) {
            groups[group].1.add(*sizes);
        }
    }
    groups.retain(|(_, sizes)| sizes.paths > 0);
    groups.reverse();
    groups
}

fn kept_by_pins(stats: &Stats) -> String {
    if stats.pins.is_empty() {
        return "There are no pins.".to_owned();
    }
    let (all, kept) = (all_sizes(stats), kept_sizes(stats));
    format!(
        "Pins keep {} of {} paths: {} unpacked, {} of all.",
        HumanCount(kept.paths),
        HumanCount(all.paths),
        HumanBytes(kept.nar_size),
        percent(kept.nar_size, all.nar_size)
    )
}

/// Returns the sizes of all paths; a NAR that several share counts for each, as it does for pins.
fn all_sizes(stats: &Stats) -> Sizes {
    let mut all = Sizes::default();
    for (_, sizes) in &stats.by_month {
        all.add(*sizes);
    }
    all
}

fn kept_sizes(stats: &Stats) -> Sizes {
    let (all, unpinned) = (all_sizes(stats), stats.unpinned);
    Sizes {
        paths: all.paths.saturating_sub(unpinned.paths),
        nar_size: all.nar_size.saturating_sub(unpinned.nar_size),
        file_size: all.file_size.saturating_sub(unpinned.file_size),
    }
}

/// Returns the largest rows, and the sum of the others.
fn largest_rows(rows: &[(String, Sizes)]) -> Vec<(String, Sizes)> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|(_, sizes)| std::cmp::Reverse(*sizes));
    let mut others = Sizes::default();
    let rest = rows.split_off(rows.len().min(MAX_ROWS));
    for (_, sizes) in &rest {
        others.add(*sizes);
    }
    if !rest.is_empty() {
        rows.push((format!("({} others)", rest.len()), others));
    }
    rows
}

/// Returns a table with a bar for the unpacked size of each row.
fn table(title: &str, rows: &[(String, Sizes)]) -> Markup {
    let max = rows.iter().map(|(_, sizes)| sizes.nar_size).max().unwrap_or_default();
    html! {
        @if !rows.is_empty() {
            div.table {
                table {
                    thead {
                        tr {
                            th scope="col" { (title) }
                            th.optional scope="col" { "paths" }
                            th scope="col" { "unpacked" }
                            th scope="col" { "compressed" }
                        }
                    }
                    tbody {
                        @for (name, sizes) in rows {
                            tr {
                                td { bdi { (name) } span.bar style={ "width:" (percent(sizes.nar_size, max)) } {} }
                                td.optional { (HumanCount(sizes.paths)) }
                                td { (HumanBytes(sizes.nar_size)) }
                                td { (HumanBytes(sizes.file_size)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns a share with one decimal, such as `12.5%`.
fn percent(part: u64, total: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(total.max(1));
    format!("{}.{}%", tenths / 10, tenths % 10)
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sizes(paths: u64, nar_size: u64) -> Sizes {
        Sizes { paths, nar_size, file_size: nar_size / 2 }
    }

    fn stats(by_month: &[(&str, u64)]) -> Stats {
        Stats {
            total: Sizes::default(),
            by_month: by_month.iter().map(|(month, bytes)| ((*month).to_owned(), sizes(1, *bytes))).collect(),
            by_compression: vec![],
            by_signer: vec![],
            largest_paths: vec![],
            largest_closures: vec![],
            closures_examined: 0,
            closures_total: 0,
            pins: vec![("main".to_owned(), Sizes::default())],
            unpinned: sizes(1, 250),
        }
    }

    #[test]
    fn growth_is_the_sum_at_the_beginning_of_a_month() {
        let growth = growth(&stats(&[("2026-01", 100), ("2026-02", 10), ("2026-05", 1)]));
        let points: Vec<(String, u64)> =
            growth.iter().map(|at| (super::super::months::format_month(at.month), at.nar_size)).collect();
        let expected = [("2026-01", 0), ("2026-02", 100), ("2026-03", 110), ("2026-05", 110), ("2026-06", 111)];
        assert_eq!(points, expected.map(|(month, bytes)| (month.to_owned(), bytes)));
    }

    #[test]
    fn ages_and_shares_are_those_of_the_months() {
        let stats = stats(&[("2020-01", 100), ("2024-11", 200), ("2026-09", 300), ("2026-11", 300), ("2027-01", 100)]);
        // 2026-11-26
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(498_792);
        let ages: Vec<(String, u64)> = by_age(&stats, now).into_iter().map(|(name, at)| (name, at.nar_size)).collect();
        let expected = [("this month", 400), ("1 or 2 months ago", 300), ("2 years ago or more", 300)];
        assert_eq!(ages, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
        assert_eq!(kept_by_pins(&stats), "Pins keep 4 of 5 paths: 750 B unpacked, 75.0% of all.");
    }

    #[test]
    fn a_table_has_the_largest_rows_and_the_sum_of_the_others() {
        let rows: Vec<(String, Sizes)> = (0..25).map(|index| (format!("pin-{index}"), sizes(1, index))).collect();
        let largest = largest_rows(&rows);
        assert_eq!((largest.len(), largest[0].0.as_str()), (MAX_ROWS + 1, "pin-24"));
        assert_eq!(largest[MAX_ROWS], ("(5 others)".to_owned(), Sizes { paths: 5, nar_size: 10, file_size: 4 }));
        assert_eq!(largest_rows(&rows[..3]).len(), 3);
    }
}
