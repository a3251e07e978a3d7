//! The page of `presnap report`: frontiers as plots, everything else as tables.

use std::fmt::Write as _;

use super::html::{STYLE, figure, list};
use super::svg::{Axis, Line, Plot, Scale, escaped};
use crate::perf::metric::shown;
use crate::perf::prediction::goals::Goal;
use crate::perf::prediction::plan::Case;
use crate::perf::prediction::{Contest, Outcome, Row, TraceOutcome};
use crate::predict::evaluate;

/// Size of plots.
const SIZE: (f64, f64) = (540.0, 260.0);

/// The page.
pub fn page(outcome: &Outcome) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>presnap: what predicting is worth</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n"
    );
    let machine = &outcome.machine;
    let _ = write!(
        out,
        "<h1>What predicting is worth</h1>\n<p class=\"soft\">{}, {}, on {} cores of {}, {} GiB, Linux {}. \
         Load average at the begin {}. It took {} s.</p>\n",
        escaped(&machine.at),
        escaped(&machine.presnap),
        machine.cores,
        escaped(&machine.processor),
        shown(machine.memory_gib),
        escaped(&machine.kernel),
        shown(machine.load_average),
        shown(outcome.took_s)
    );
    out.push_str(
        "<p class=\"soft\">Traces are replayed in virtual time against the real gate, engine and slots, with a modelled \
         pair of NVMe devices, under every policy with several settings each. A point of a plot is one setting: the share \
         of required chunks that snapshots adopted, against what was spent ahead for it. Up and left is better; the line \
         joins the settings that no other setting of the policy beats. Irregular schedules are sums over several seeds. \
         Only traces that are <b>held out</b> count for goals: the model learned nothing from them.</p>\n",
    );
    list(&mut out, "failures", "Failed", &outcome.failures);
    out.push_str("<nav>");
    for trace in &outcome.traces {
        let _ = write!(out, "<a href=\"#{0}\">{0}</a>", escaped(&trace.name));
    }
    out.push_str("<a href=\"#cost\">cost</a><a href=\"#settings\">settings</a></nav>\n");
    goals(&mut out, &outcome.goals);
    for trace in &outcome.traces {
        section(&mut out, trace);
    }
    cost(&mut out, outcome);
    let json = serde_json::to_string_pretty(&outcome.settings).unwrap_or_default();
    let _ = writeln!(
        out,
        "<section id=\"settings\"><h2>Settings</h2><pre>{}</pre></section>\n</main></body></html>",
        escaped(&json)
    );
    out
}

fn badge(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "<span class=\"badge met\">met</span>",
        Some(false) => "<span class=\"badge missed\">missed</span>",
        None => "<span class=\"badge\">not measured</span>",
    }
}

fn goals(out: &mut String, goals: &[Goal]) {
    out.push_str("<section id=\"goals\"><h2>Goals of lstm</h2>\n");
    for goal in goals {
        let (met, counted) = goal.met_of();
        let _ = writeln!(
            out,
            "<details><summary>{} {} <small>({met} of {counted})</small></summary>\
             <div class=\"scroll\"><table><tr><th>On</th><th class=\"words\">Measured</th><th></th></tr>",
            badge(goal.met),
            escaped(&goal.what)
        );
        for detail in &goal.details {
            let remark = if detail.counts { "" } else { " <small>does not count</small>" };
            let _ = writeln!(
                out,
                "<tr><td>{}{remark}</td><td class=\"words\">{}</td><td>{}</td></tr>",
                escaped(&detail.whereon),
                escaped(&detail.measured),
                badge(Some(detail.met))
            );
        }
        out.push_str("</table></div></details>\n");
    }
    out.push_str("</section>\n");
}

fn section(out: &mut String, trace: &TraceOutcome) {
    let _ = write!(
        out,
        "<section id=\"{0}\"><h2>{0}</h2>\n<p class=\"soft\"><b>{1}</b>. {2} s, {3} reads, {4} modifications of {5} MB, \
         on a volume of {6} GiB.</p>\n",
        escaped(&trace.name),
        trace.kind.name(),
        shown(trace.span_s),
        trace.reads,
        trace.modifications,
        shown(trace.modified_bytes as f64 / 1e6),
        shown(trace.volume_bytes as f64 / f64::from(1 << 30))
    );
    for case in Case::ALL {
        let contests = || trace.contests.iter().filter(|contest| contest.case == case);
        if contests().next().is_none() {
            continue;
        }
        let _ = writeln!(out, "<h3>{}</h3>", escaped(case.title()));
        if let Some(contest) = contests().next() {
            legend(out, &contest.families());
        }
        out.push_str("<div class=\"grid2\">\n");
        for contest in contests() {
            frontiers(out, contest);
        }
        out.push_str("</div>\n");
        for contest in contests() {
            effects(out, contest);
        }
    }
    measures(out, trace);
    out.push_str("</section>\n");
}

fn colour(family: &str) -> &'static str {
    match family {
        "off" => "#a8a29e",
        "idle" => "#0ea5e9",
        "rate" => "#16a34a",
        "likely" => "#84cc16",
        "logistic" => "#d97706",
        "lstm" => "#1e3a8a",
        "tuned" => "#a21caf",
        "deadline" => "#14b8a6",
        _ => "#111827",
    }
}

fn legend(out: &mut String, families: &[&str]) {
    out.push_str("<div class=\"legend\">");
    for family in families.iter().filter(|family| **family != "off") {
        let _ = write!(
            out,
            "<span><span class=\"swatch\" style=\"border-color:{}\"></span>{}</span>",
            colour(family),
            escaped(family)
        );
    }
    out.push_str("</div>\n");
}

fn schedule(contest: &Contest) -> String {
    let limits = match (contest.staging_chunks_max.as_slice(), contest.copy_bytes_per_s_max) {
        ([], None) => String::new(),
        ([], Some(rate)) => format!("; copying at most {} MB/s", shown(rate as f64 / 1e6)),
        (chunks, _) => {
            let chunks: Vec<String> = chunks.iter().map(u64::to_string).collect();
            format!("; at most {} chunks staged", chunks.join(", "))
        }
    };
    format!("{}: {} snapshots{limits}", contest.schedules.join("; "), contest.snapshots)
}

fn frontiers(out: &mut String, contest: &Contest) {
    const COSTS: [(&str, &str); 2] = [
        ("bytes", "bytes ahead, chunks per required one"),
        ("commands", "copy commands ahead per required chunk"),
    ];
    for (id, label) in COSTS {
        let cost = if id == "bytes" { |row: &Row| row.bytes } else { |row: &Row| row.commands };
        let mut lines = vec![];
        // What stages nothing has no place here.
        for family in contest.families().into_iter().filter(|family| *family != "off") {
            let frontier = contest.frontier(family, cost);
            let points = frontier.points();
            lines.push(Line {
                name: family.to_owned(),
                colour: colour(family).to_owned(),
                dashed: ["oracle", "tuned"].contains(&family),
                points: points.iter().map(|point| (point.cost, point.adopted)).collect(),
                marked: true,
                notes: points
                    .iter()
                    .map(|point| {
                        format!(
                            "{}: {:.2}% for {:.3}",
                            point.policy,
                            point.adopted * 100.0,
                            point.cost
                        )
                    })
                    .collect(),
                ..Line::default()
            });
        }
        let scale = if contest.case == Case::Limited { Scale::Linear } else { Scale::Share };
        let mut y = Axis::new("share of required chunks adopted", scale);
        y.from = Some(0.0);
        if scale == Scale::Share {
            y.to = Some(0.999);
        }
        let mut x = Axis::new(label, Scale::Linear);
        x.from = Some(0.0);
        let plot = Plot {
            kind: format!("frontier-{id}-{}-{}", contest.case.id(), contest.timing.name()),
            size: SIZE,
            x,
            y,
            lines,
            mark: None,
            level: (scale == Scale::Share).then(|| (0.99, "99%".to_owned())),
        };
        let caption = format!("<b>{}</b>, {}", escaped(label), contest.timing.name());
        figure(out, &caption, &plot);
    }
}

fn effects(out: &mut String, contest: &Contest) {
    let _ = writeln!(
        out,
        "<details><summary>Every setting, {} ({})</summary><div class=\"scroll\"><table><tr><th>Policy</th>\
         <th>adopted</th><th>right at the cut</th><th>bytes</th><th>copy commands</th><th>copies</th>\
         <th>left, whole</th><th>left, parts</th><th>left, MB</th><th>complete, mean ms</th><th>worst ms</th>\
         <th>writes that waited</th><th>longest wait, ms</th><th>staged per byte written</th>\
         <th>wasted per byte written</th><th>no room</th><th>failed</th></tr>",
        contest.timing.name(),
        escaped(&schedule(contest))
    );
    for row in &contest.rows {
        let replay = &row.replay;
        let left = replay.left;
        let _ = writeln!(
            out,
            "<tr><td><span class=\"swatch\" style=\"border-color:{}\"></span>{}</td><td>{:.2}%</td><td>{:.2}%</td>\
             <td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{}</td><td>{}</td></tr>",
            colour(row.family()),
            escaped(&row.policy),
            row.adopted * 100.0,
            row.right * 100.0,
            row.bytes,
            row.commands,
            row.copies,
            left.whole_chunks,
            left.partial_chunks,
            shown((left.whole_bytes + left.partial_bytes) as f64 / 1e6),
            shown(replay.complete_us_mean as f64 / 1e3),
            shown(replay.complete_us_max as f64 / 1e3),
            replay.parked.commands,
            shown(replay.parked.wait_us_max as f64 / 1e3),
            row.staged_per_written,
            row.wasted_per_written,
            replay.staging.refused,
            replay.failed
        );
    }
    out.push_str("</table></div></details>\n");
}

fn measures(out: &mut String, trace: &TraceOutcome) {
    if trace.measures.is_empty() {
        return;
    }
    out.push_str(
        "<h3>Predictions: whether a chunk is modified within a window</h3><div class=\"scroll\"><table>\
         <tr><th>Predictor</th><th>window, s</th><th>predictions</th><th>came true</th><th>log loss</th><th>Brier</th>\
         <th>PR-AUC</th><th>calibration error</th></tr>\n",
    );
    for line in &trace.measures {
        let rivals = trace.measures.iter().filter(|other| other.window_s == line.window_s);
        let least = rivals.map(|other| other.log_loss).fold(f64::INFINITY, f64::min);
        let (open, close) = if line.log_loss <= least { ("<b>", "</b>") } else { ("", "") };
        let _ = writeln!(
            out,
            "<tr><td><span class=\"swatch\" style=\"border-color:{}\"></span>{}</td><td>{}</td><td>{}</td><td>{:.2}%</td>\
             <td>{open}{:.4}{close}</td><td>{:.4}</td><td>{:.3}</td><td>{:.4}</td></tr>",
            colour(&line.predictor),
            escaped(&line.predictor),
            line.window_s,
            line.count,
            line.base_rate * 100.0,
            line.log_loss,
            line.brier,
            line.pr_auc,
            line.calibration_error
        );
    }
    out.push_str("</table></div>\n<div class=\"grid2\">\n");
    let mut windows: Vec<u64> = trace.measures.iter().map(|line| line.window_s).collect();
    windows.dedup();
    for window_s in windows {
        let lines: Vec<_> = trace.measures.iter().filter(|l| l.window_s == window_s).collect();
        figure(
            out,
            &format!("<b>Calibration</b>, {window_s} s: predicted against what came, by tenths"),
            &calibration(&lines),
        );
    }
    out.push_str("</div>\n");
}

fn calibration(measures: &[&evaluate::Line]) -> Plot {
    let mut lines: Vec<Line> = measures
        .iter()
        .map(|measure| {
            let bins = measure.calibration.iter().filter(|bin| bin.0 > 0);
            Line {
                name: measure.predictor.clone(),
                colour: colour(&measure.predictor).to_owned(),
                points: bins.clone().map(|bin| (bin.1, bin.2)).collect(),
                marked: true,
                notes: bins
                    .map(|bin| {
                        format!(
                            "{}: {:.3} predicted, {:.3} came, of {}",
                            measure.predictor, bin.1, bin.2, bin.0
                        )
                    })
                    .collect(),
                ..Line::default()
            }
        })
        .collect();
    lines.push(Line {
        name: "as it should be".into(),
        colour: "#9aa4b1".into(),
        dashed: true,
        points: vec![(0.0, 0.0), (1.0, 1.0)],
        ..Line::default()
    });
    let axis = |label| Axis { from: Some(0.0), to: Some(1.0), ..Axis::new(label, Scale::Linear) };
    Plot {
        kind: "calibration".into(),
        size: SIZE,
        x: axis("predicted"),
        y: axis("came true"),
        lines,
        mark: None,
        level: None,
    }
}

fn cost(out: &mut String, outcome: &Outcome) {
    let cost = &outcome.cost;
    out.push_str(
        "<section id=\"cost\"><h2>Cost</h2>\n<p class=\"soft\">A tick is everything that is done once a second: the \
         monitor's window, features, predictions, scores. One in sixteen chunks is modified in each. The middle one of \
         nine, and the longest. Memory per million active chunks: what the monitor counts itself, and what the process \
         grew by, which is rough where chunks are few.</p>\n",
    );
    let mut lines: Vec<Line> = vec![];
    for tick in &cost.ticks {
        let place =
            lines.iter().position(|line| line.name == tick.predictor).unwrap_or_else(|| {
                lines.push(Line {
                    name: tick.predictor.clone(),
                    colour: colour(&tick.predictor).to_owned(),
                    marked: true,
                    ..Line::default()
                });
                lines.len() - 1
            });
        lines[place].points.push((f64::from(tick.chunks), tick.tick_ms));
    }
    legend(out, &lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>());
    let plot = Plot {
        kind: "tick-time".into(),
        size: SIZE,
        x: Axis::new("active chunks", Scale::Log),
        y: Axis::new("time of a tick, ms", Scale::Log),
        lines,
        mark: None,
        level: None,
    };
    figure(out, "<b>Time of a tick</b>", &plot);
    out.push_str(
        "<div class=\"scroll\"><table><tr><th>Predictor</th><th>active chunks</th><th>tick, ms</th><th>longest, ms</th>\
         <th>monitor, MB per million</th><th>process, MB per million</th></tr>\n",
    );
    for tick in &cost.ticks {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&tick.predictor),
            tick.chunks,
            shown(tick.tick_ms),
            shown(tick.tick_ms_max),
            shown(tick.monitor_mb_per_million),
            shown(tick.process_mb_per_million)
        );
    }
    out.push_str("</table></div>\n");
    if let Some(training) = &cost.training {
        let _ = writeln!(
            out,
            "<p>Training: {} s to prepare {} rows, {} ms for a step of 256 x 16 rows: {} s for as many steps as the \
             shipped model had.</p>",
            shown(training.prepare_s),
            training.rows,
            shown(training.step_ms),
            shown(training.shipped_s)
        );
    }
    out.push_str("</section>\n");
}
