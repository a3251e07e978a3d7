//! The summary on the terminal.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::perf::metric::{self, Metric, Values, shown};
use crate::perf::result::ScenarioResult;

/// Figures that are shown, in this order, as far as there are any.
const COLUMNS: [&str; 13] = [
    "write_p50_us",
    "write_p99_us",
    "write_p999_us",
    "write_max_us",
    "p99_ratio",
    "after_rate_share",
    "independent_ms",
    "extra_writes",
    "create_ms",
    "restart_ms",
    "read_share",
    "share_of_passthru",
    "cut_us",
];

fn cell(values: &Values) -> String {
    if values.n < 2 {
        shown(values.median)
    } else {
        format!("{} ({} .. {})", shown(values.median), shown(values.min), shown(values.max))
    }
}

/// What people read first.
pub fn summary(results: &[ScenarioResult]) -> String {
    let mut out = String::new();
    for result in results {
        let early = if result.partial { ", stopped early" } else { "" };
        let _ =
            write!(out, "\n{}: {} ({} rounds{early})\n", result.name, result.title, result.rounds);
        if !result.rows.is_empty() {
            let _ = writeln!(out, "{}", table(result));
        }
        for goal in &result.goals {
            let (sign, measured) = match (&goal.met, &goal.measured) {
                (Some(met), Some(values)) => (if *met { "met" } else { "missed" }, cell(values)),
                _ => ("not measured", "-".to_owned()),
            };
            let noise = goal.noise.as_ref().map(|values| format!(", noise {}", cell(values)));
            let _ = writeln!(
                out,
                "  {sign}: {}: {measured}, {}{}",
                goal.what,
                goal.limit,
                noise.unwrap_or_default()
            );
        }
        for remark in &result.remarks {
            let _ = writeln!(out, "  to know: {remark}");
        }
        for failure in &result.failures {
            let _ = writeln!(out, "  FAILED: {failure}");
        }
    }
    out
}

fn table(result: &ScenarioResult) -> Table {
    let present = |id: &str| result.rows.iter().any(|row| row.figures.contains_key(id));
    let columns: Vec<&Metric> =
        COLUMNS.iter().filter(|id| present(id)).filter_map(|id| metric::find(id)).collect();
    let mut table = Table::new();
    let heading = |metric: &&Metric| {
        if metric.unit.is_empty() {
            metric.label.to_owned()
        } else {
            format!("{}, {}", metric.label, metric.unit)
        }
    };
    let mut header = vec!["contender".to_owned()];
    header.extend(columns.iter().map(heading));
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    for row in &result.rows {
        let figures: Vec<Option<&Values>> =
            columns.iter().map(|metric| row.figures.get(metric.id)).collect();
        let name = format!("{} {}", row.contender, row.step);
        let mut cells = vec![name.trim().to_owned()];
        cells.extend(figures.iter().map(|values| values.map(cell).unwrap_or_default()));
        table.add_row(cells);
    }
    table
}
