//! The report as one HTML page: plots are SVG in it, nothing is loaded from anywhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Machine;
use super::svg::{Axis, Line, Plot, Scale, escaped};
use crate::perf::latency::Bucket;
use crate::perf::metric::{Group, METRICS, Metric, Values, shown};
use crate::perf::result::{Distribution, GoalResult, Row, ScenarioResult, Timeline};

/// Style of the page.
pub(super) const STYLE: &str = include_str!("style.css");
/// Size of plots over the whole width, and of small ones.
const WIDE: (f64, f64) = (1120.0, 340.0);
const SMALL: (f64, f64) = (540.0, 230.0);

/// The page.
pub fn page(machine: &Machine, results: &[ScenarioResult]) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>presnap: what a snapshot costs</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n"
    );
    let _ = write!(
        out,
        "<h1>What a snapshot costs</h1>\n<p class=\"soft\">{}, {}, {} on {} cores of {}, {} GiB, \
         Linux {}. Load average at the begin {}.</p>\n",
        escaped(&machine.at),
        escaped(&machine.presnap),
        escaped(&machine.fio),
        machine.cores,
        escaped(&machine.processor),
        shown(machine.memory_gib),
        escaped(&machine.kernel),
        shown(machine.load_average)
    );
    out.push_str(
        "<p class=\"soft\">Figures are medians of rounds with the least and the greatest below; contenders take \
         turns. Times of percentiles and of pieces are those of the load, as fio measured them.</p>\n",
    );
    if results.len() > 1 {
        out.push_str("<nav>");
        for result in results {
            let _ = write!(out, "<a href=\"#{0}\">{0}</a>", escaped(&result.name));
        }
        out.push_str("</nav>\n");
    }
    goals(&mut out, results);
    for result in results {
        scenario(&mut out, result);
    }
    out.push_str("</main></body></html>\n");
    out
}

fn goals(out: &mut String, results: &[ScenarioResult]) {
    if results.iter().all(|result| result.goals.is_empty()) {
        return;
    }
    out.push_str(
        "<section><h2>Goals</h2><div class=\"scroll\"><table class=\"goals\"><tr><th>Scenario</th>\
         <th class=\"words\">Goal</th><th>Limit</th><th>Measured</th><th>Noise floor</th><th></th></tr>\n",
    );
    for result in results {
        for goal in &result.goals {
            goal_row(out, result, goal);
        }
    }
    out.push_str(
        "</table></div><p class=\"soft\">Noise floor: the same figure of a contender against itself, or where \
         no snapshot was taken.</p></section>\n",
    );
}

fn goal_row(out: &mut String, result: &ScenarioResult, goal: &GoalResult) {
    let badge = match goal.met {
        Some(true) => "<span class=\"badge met\">met</span>",
        Some(false) => "<span class=\"badge missed\">missed</span>",
        None => "<span class=\"badge\">not measured</span>",
    };
    let cell = |values: &Option<Values>| values.as_ref().map_or("<td></td>".into(), cell);
    let _ = writeln!(
        out,
        "<tr><td>{}</td><td class=\"words\">{}</td><td>{}</td>{}{}<td>{badge}</td></tr>",
        escaped(&result.name),
        escaped(&goal.what),
        escaped(&goal.limit),
        cell(&goal.measured),
        cell(&goal.noise)
    );
}

/// A table cell: median, and the range below it.
fn cell(values: &Values) -> String {
    if values.n < 2 {
        return format!("<td>{}</td>", shown(values.median));
    }
    format!(
        "<td title=\"n = {}\">{}<small>{} … {}</small></td>",
        values.n,
        shown(values.median),
        shown(values.min),
        shown(values.max)
    )
}

fn scenario(out: &mut String, result: &ScenarioResult) {
    let _ = write!(
        out,
        "<section id=\"{0}\"><h2>{1}</h2>\n<p class=\"soft\">Scenario <b>{0}</b>, {2} rounds{3}. {4}</p>\n",
        escaped(&result.name),
        escaped(&result.title),
        result.rounds,
        if result.partial { ", <b>stopped early</b>" } else { "" },
        escaped(&result.about)
    );
    list(out, "failures", "Failed", &result.failures);
    list(out, "remarks", "To know", &result.remarks);
    let styles = Styles::of(result);
    if !result.timelines.is_empty() {
        timelines(out, result, &styles);
    }
    if !result.distributions.is_empty() {
        distributions(out, result, &styles);
    }
    series(out, result, &styles);
    for group in Group::ALL {
        table(out, result, group, &styles);
    }
    let json = serde_json::to_string_pretty(&result.scenario).unwrap_or_default();
    let _ = writeln!(
        out,
        "<details><summary>The scenario as it was run</summary><pre>{}</pre></details></section>",
        escaped(&json)
    );
}

pub(super) fn list(out: &mut String, class: &str, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(out, "<div class=\"{class}\"><b>{title}:</b><ul>");
    for line in lines {
        let _ = write!(out, "<li>{}</li>", escaped(line));
    }
    out.push_str("</ul></div>\n");
}

/// Colours of contenders: families of like ones, the same in every scenario.
struct Styles(Vec<(String, &'static str, bool)>);

impl Styles {
    fn of(result: &ScenarioResult) -> Self {
        /// For what is not known by name.
        const OTHERS: [&str; 6] =
            ["#7c3aed", "#0891b2", "#a16207", "#be185d", "#4d7c0f", "#475569"];
        let mut styles: Vec<(String, &'static str, bool)> = Vec::new();
        let mut unknown = 0;
        for row in &result.rows {
            if styles.iter().any(|(name, ..)| *name == row.contender) {
                continue;
            }
            let colour = known_colour(&row.contender).unwrap_or_else(|| {
                unknown += 1;
                OTHERS[(unknown - 1) % OTHERS.len()]
            });
            let dashed = row.contender.ends_with(":copy") || row.contender.ends_with(" again");
            styles.push((row.contender.clone(), colour, dashed));
        }
        Self(styles)
    }

    fn line(&self, name: &str) -> Line {
        let style = self.0.iter().find(|(known, ..)| known == name);
        let (colour, dashed) =
            style.map_or(("#475569", false), |(_, colour, dashed)| (*colour, *dashed));
        Line { name: name.to_owned(), colour: colour.to_owned(), dashed, ..Line::default() }
    }

    fn swatch(&self, name: &str) -> String {
        let line = self.line(name);
        let dashed = if line.dashed { " dashed" } else { "" };
        format!(
            "<span class=\"swatch{dashed}\" style=\"border-color:{}\"></span>{}",
            line.colour,
            escaped(name)
        )
    }

    fn legend(&self, out: &mut String, names: impl Iterator<Item = String>) {
        out.push_str("<div class=\"legend\">");
        for name in names {
            let _ = write!(out, "<span>{}</span>", self.swatch(&name));
        }
        out.push_str("</div>\n");
    }
}

fn known_colour(name: &str) -> Option<&'static str> {
    let name = name.trim_end_matches(" again").trim_end_matches(":copy");
    Some(match name {
        "bare" => "#6b7280",
        "passthru" => "#a8a29e",
        "presnap:off" => "#7dd3fc",
        "presnap:idle" => "#0ea5e9",
        "presnap:deadline" => "#14b8a6",
        "presnap:rate" => "#16a34a",
        "presnap:likely" => "#84cc16",
        "presnap:lstm" => "#1e3a8a",
        "lvol:1MiB" => "#f59e0b",
        "lvol:1MiB:thin" => "#fbbf24",
        "lvol:4MiB" => "#dc2626",
        "lvol:4MiB:thin" => "#f87171",
        _ => return None,
    })
}

fn seconds(line: &[Bucket], value: fn(&Bucket) -> f64) -> Vec<(f64, f64)> {
    line.iter().map(|bucket| (bucket.at_ms as f64 / 1e3, value(bucket))).collect()
}

fn timelines(out: &mut String, result: &ScenarioResult, styles: &Styles) {
    let has_snapshot = result.timelines.iter().flat_map(|line| &line.median).any(|b| b.at_ms < 0);
    let axis =
        if has_snapshot { "seconds from the snapshot" } else { "seconds from the load's start" };
    let plot = |kind: &str, size, y: Axis, lines: Vec<Line>, word: &str| Plot {
        kind: kind.into(),
        size,
        x: Axis::new(axis, Scale::Linear),
        y,
        lines,
        mark: has_snapshot.then(|| (0.0, word.to_owned())),
        level: None,
    };
    let names = || result.timelines.iter().map(|line| line.contender.clone());
    let overlay = |value: fn(&Bucket) -> f64| -> Vec<Line> {
        let line = |timeline: &Timeline| Line {
            points: seconds(&timeline.median, value),
            ..styles.line(&timeline.contender)
        };
        result.timelines.iter().map(line).collect()
    };
    out.push_str("<h3>Around the snapshot</h3>\n");
    styles.legend(out, names());
    let p99 = plot(
        "p99-over-time",
        WIDE,
        Axis::new("p99 of 100 ms, us", Scale::Log),
        overlay(|bucket| bucket.p99_us),
        "snapshot",
    );
    figure(out, "<b>Latency</b> over time: 99th percentile of each 100 ms, median of rounds", &p99);
    let mut rate = Axis::new("commands per second", Scale::Linear);
    rate.from = Some(0.0);
    let iops =
        plot("iops-over-time", WIDE, rate.clone(), overlay(|bucket| bucket.iops), "snapshot");
    figure(out, "<b>Rate</b> over time: commands completed, median of rounds", &iops);
    // The same limits in all small ones, so that they can be compared.
    let all = || result.timelines.iter().flat_map(|line| line.p99_us_max.iter().copied());
    let top = all().fold(0.0, f64::max).max(10.0);
    let least = result.timelines.iter().flat_map(|line| &line.median).map(|b| b.p50_us);
    let least = least.filter(|us| *us > 0.0).fold(top, f64::min);
    out.push_str("<h3>Each by itself</h3><div class=\"grid2\">\n");
    for timeline in &result.timelines {
        let line = styles.line(&timeline.contender);
        let mut y = Axis::new("us", Scale::Log);
        (y.from, y.to) = (Some(least / 1.2), Some(top * 1.2));
        let p50 = Line {
            name: format!("{} p50", timeline.contender),
            dashed: true,
            points: seconds(&timeline.median, |bucket| bucket.p50_us),
            ..line.clone()
        };
        let p99 = Line {
            name: format!("{} p99", timeline.contender),
            dashed: false,
            points: seconds(&timeline.median, |bucket| bucket.p99_us),
            upper: timeline.p99_us_max.clone(),
            ..line
        };
        let small = plot("small-over-time", SMALL, y, vec![p50, p99], "");
        let caption = format!(
            "<b>{}</b>: p99 (band up to the worst round) and p50 (dashed)",
            escaped(&timeline.contender)
        );
        figure(out, &caption, &small);
    }
    out.push_str("</div>\n");
}

pub(super) fn figure(out: &mut String, caption: &str, plot: &Plot) {
    let _ = writeln!(out, "<figure><figcaption>{caption}</figcaption>{}</figure>", plot.svg());
}

fn distributions(out: &mut String, result: &ScenarioResult, styles: &Styles) {
    out.push_str("<h3>Distribution of latencies, all rounds together</h3><div class=\"grid2\">\n");
    for direction in ["write", "read"] {
        let some: Vec<&Distribution> =
            result.distributions.iter().filter(|one| one.direction == direction).collect();
        if some.is_empty() {
            continue;
        }
        let line = |one: &&Distribution| Line {
            // The last step is everything: it has no place on this axis.
            points: one
                .steps
                .iter()
                .filter(|step| step.1 < 1.0)
                .map(|step| (step.1, step.0))
                .collect(),
            ..styles.line(&one.contender)
        };
        let mut x = Axis::new("share of commands that are at most as slow", Scale::Share);
        (x.from, x.to) = (Some(0.0), Some(0.999_99));
        let plot = Plot {
            kind: format!("distribution-{direction}"),
            size: (540.0, 300.0),
            x,
            y: Axis::new("latency, us", Scale::Log),
            lines: some.iter().map(line).collect(),
            mark: None,
            level: None,
        };
        figure(out, &format!("<b>{direction}s</b>"), &plot);
    }
    out.push_str("</div>\n<div class=\"scroll\"><table><tr><th>Merged over rounds</th><th></th><th>commands</th>\
        <th>p50 us</th><th>p99 us</th><th>p99.9 us</th><th>p99.99 us</th><th>max us</th></tr>\n");
    for one in &result.distributions {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td>",
            styles.swatch(&one.contender),
            one.direction,
            shown(one.count as f64)
        );
        for us in one.percentiles_us {
            let _ = write!(out, "<td>{}</td>", shown(us));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// Plots over steps that have a place on an axis.
fn series(out: &mut String, result: &ScenarioResult, styles: &Styles) {
    let placed: Vec<&Row> = result.rows.iter().filter(|row| row.x.is_some()).collect();
    if placed.iter().filter_map(|row| row.x).map(f64::to_bits).collect::<BTreeSet<_>>().len() < 2 {
        return;
    }
    out.push_str("<h3>What grows, and how</h3><div class=\"grid2\">\n");
    for metric in METRICS {
        let mut lines: Vec<Line> = Vec::new();
        for row in &placed {
            let Some((values, x)) = row.figures.get(metric.id).zip(row.x) else { continue };
            let place =
                lines.iter().position(|line| line.name == row.contender).unwrap_or_else(|| {
                    lines.push(Line { marked: true, ..styles.line(&row.contender) });
                    lines.len() - 1
                });
            lines[place].points.push((x, values.median));
        }
        if lines.is_empty() {
            continue;
        }
        let ratio = placed.iter().filter_map(|row| row.x).fold(0.0, f64::max);
        let scale = if ratio > 8.0 { Scale::Log } else { Scale::Linear };
        let mut y = Axis::new(&heading(metric), Scale::Linear);
        y.from = Some(0.0);
        let plot = Plot {
            kind: format!("series-{}", metric.id),
            size: SMALL,
            x: Axis::new("", scale),
            y,
            lines,
            mark: None,
            level: None,
        };
        figure(out, &format!("<b>{}</b>", escaped(metric.label)), &plot);
    }
    out.push_str("</div>\n");
}

fn heading(metric: &Metric) -> String {
    if metric.unit.is_empty() {
        metric.label.to_owned()
    } else {
        format!("{}, {}", metric.label, metric.unit)
    }
}

fn table(out: &mut String, result: &ScenarioResult, group: Group, styles: &Styles) {
    let present = |metric: &&Metric| {
        metric.group == group && result.rows.iter().any(|row| row.figures.contains_key(metric.id))
    };
    let columns: Vec<&Metric> = METRICS.iter().filter(present).collect();
    if columns.is_empty() {
        return;
    }
    let _ = write!(out, "<h3>{}</h3><div class=\"scroll\"><table><tr><th></th>", group.title());
    let steps = result.rows.iter().any(|row| !row.step.is_empty());
    if steps {
        out.push_str("<th class=\"words\"></th>");
    }
    for metric in &columns {
        let _ = write!(out, "<th>{}</th>", escaped(&heading(metric)));
    }
    out.push_str("<th>n</th></tr>\n");
    for row in &result.rows {
        let shown: Vec<Option<&Values>> =
            columns.iter().map(|metric| row.figures.get(metric.id)).collect();
        if shown.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(out, "<tr><td>{}</td>", styles.swatch(&row.contender));
        if steps {
            let _ = write!(out, "<td class=\"words\">{}</td>", escaped(&row.step));
        }
        for values in &shown {
            out.push_str(&values.map_or("<td></td>".into(), cell));
        }
        let n = shown.iter().flatten().map(|values| values.n).max().unwrap_or(0);
        let _ = writeln!(out, "<td>{n}</td></tr>");
    }
    out.push_str("</table></div>\n");
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
