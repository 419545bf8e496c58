//! Charts of the report, as SVG. Their colors are those of a light screen; the style of the page replaces them, see
//! [`STYLE`].

use indicatif::HumanBytes;
use nar_pack::error::{Error, Result};
use plotters::prelude::*;

use super::months::format_month;

/// Gives the colors of the charts those of the page.
pub const STYLE: &str = "
.chart svg { display: block; height: auto; width: 100%; }
.chart [stroke=\"#D1D9E0\"] { stroke: var(--line); }
.chart [fill=\"#59636E\"] { fill: var(--muted); }
.chart [stroke=\"#0B62C4\"] { stroke: var(--accent); }
.chart [fill=\"#0B62C4\"] { fill: var(--accent); }
.chart [stroke=\"#B35900\"] { stroke: var(--second); }
.chart [fill=\"#B35900\"] { fill: var(--second); }
.narrow { display: none; }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; } }
";

const LINE: RGBColor = RGBColor(0xd1, 0xd9, 0xe0);
const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const UNPACKED: RGBColor = RGBColor(0x0b, 0x62, 0xc4);
const COMPRESSED: RGBColor = RGBColor(0xb3, 0x59, 0x00);

/// The size of the labels, in pixels.
const FONT_SIZE: u32 = 13;
/// The width of the labels of the vertical axis, in pixels.
const LABEL_WIDTH: u32 = 76;
/// The least distance of the labels of the horizontal axis, in pixels.
const MIN_MONTH_DISTANCE: u32 = 70;
/// Maximum number of labels of the vertical axis, beside 0.
const MAX_BYTE_LABELS: u64 = 5;

/// The bytes in a cache at the beginning of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Months since the year 0.
    pub month: u32,
    /// Bytes of NARs.
    pub nar_size: u64,
    /// Bytes of compressed NARs.
    pub file_size: u64,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws how a cache grew, in a chart of this size in pixels; `growth` is in the order of time.
///
/// # Errors
/// Fails if the chart cannot be drawn.
pub fn draw_growth(growth: &[Growth], size: (u32, u32)) -> Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    draw(&root, growth).map_err(|error| Error::failed(format!("cannot draw the chart of growth: {error}")))?;
    drop(root);
    Ok(svg)
}

fn draw(root: &Area<'_>, growth: &[Growth]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (Some(first), Some(last)) = (growth.first(), growth.last()) else { return Ok(()) };
    let (width, _) = root.dim_in_pixel();
    let months = first.month..last.month;
    let month_ticks = month_ticks(first.month, last.month, width.saturating_sub(LABEL_WIDTH));
    let byte_ticks = byte_ticks(last.nar_size.max(last.file_size));
    let bytes = 0..byte_ticks.last().copied().unwrap_or(1);
    let mut chart = ChartBuilder::on(root)
        .margin_top(10)
        .margin_right(28)
        .x_label_area_size(28)
        .y_label_area_size(LABEL_WIDTH)
        .build_cartesian_2d(months.with_key_points(month_ticks), bytes.with_key_points(byte_ticks))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(LINE)
        .light_line_style(TRANSPARENT)
        .axis_style(LINE)
        .label_style(("system-ui, sans-serif", FONT_SIZE).into_font().color(&MUTED))
        .x_label_formatter(&|month| format_month(*month))
        .y_label_formatter(&|bytes| HumanBytes(*bytes).to_string().replace(".00 ", " "))
        .draw()?;
    let unpacked = growth.iter().map(|at| (at.month, at.nar_size));
    chart.draw_series(AreaSeries::new(unpacked, 0, UNPACKED.mix(0.15)).border_style(UNPACKED.stroke_width(2)))?;
    let compressed = growth.iter().map(|at| (at.month, at.file_size));
    chart.draw_series(AreaSeries::new(compressed, 0, COMPRESSED.mix(0.15)).border_style(COMPRESSED.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

/// Returns the months that are labeled: every one, or those at the beginning of a quarter, a year and so on.
fn month_ticks(first: u32, last: u32, width: u32) -> Vec<u32> {
    let labels = (width / MIN_MONTH_DISTANCE).max(1);
    let years = std::iter::successors(Some(12_u32), |step| step.checked_mul(2));
    let mut steps = [1, 2, 3, 6].into_iter().chain(years);
    let step = steps.find(|step| (last - first) / step < labels).unwrap_or(u32::MAX);
    (first..=last).filter(|month| month % step == 0).collect()
}

/// Returns the numbers of bytes that are labeled: multiples of a power of two, since these have few digits. The last is
/// greater than `max`.
fn byte_ticks(max: u64) -> Vec<u64> {
    let tick = (max / MAX_BYTE_LABELS + 1).next_power_of_two();
    (0..=max / tick + 1).map(|index| index.saturating_mul(tick)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_a_few_labels_for_any_size_and_time() {
        for max in [0, 1, 4, 5, 1 << 20, 1_234_567_890, u64::MAX] {
            let ticks = byte_ticks(max);
            assert!(
                (2..=6).contains(&ticks.len()) && ticks.last().is_some_and(|last| *last >= max),
                "{max}: {ticks:?}"
            );
        }
        for (first, last) in [(24_000, 24_001), (24_000, 24_023), (1970 * 12, 10_000 * 12)] {
            let ticks = month_ticks(first, last, 320);
            assert!(ticks.len() <= 4, "{ticks:?}");
        }
        assert_eq!(month_ticks(24_001, 24_008, 300), [24_002, 24_004, 24_006, 24_008]);
    }

    #[test]
    fn the_style_knows_every_color_of_a_chart() {
        let at = |month, nar_size| Growth { month, nar_size, file_size: nar_size / 3 };
        let svg = draw_growth(&[at(24_300, 0), at(24_301, 1 << 40)], (900, 300)).unwrap();
        for attribute in svg.split_whitespace().filter(|word| word.starts_with("fill=") || word.starts_with("stroke="))
        {
            let attribute = attribute.trim_end_matches(['>', '/']);
            let is_known = attribute.ends_with("=\"none\"") || STYLE.contains(&format!("[{attribute}]"));
            assert!(is_known, "{attribute}: {svg}");
        }
        assert!(svg.contains("2025-01") && svg.contains("TiB"), "{svg}");
        let largest = draw_growth(&[at(0, 0), at(10_000 * 12, u64::MAX)], (380, 240)).unwrap();
        assert!(largest.contains("EiB"), "{largest}");
    }
}
