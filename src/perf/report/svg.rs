//! Plots as SVG text: axes, lines, bands. Knows nothing of what is plotted.

use std::fmt::Write as _;

/// Room around the plot's field: left, right, top, bottom.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Ticks that a linear axis has, roughly.
const TICKS: f64 = 6.0;
/// Logarithmic axes go at least over this ratio.
const LOG_SPAN_MIN: f64 = 10.0;
/// More decades than this have a label at every second one only.
const DECADES_LABELLED_MAX: i32 = 7;

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal distances for equal differences.
    Linear,
    /// Equal distances for equal ratios. What is not positive is not shown.
    Log,
    /// Shares of 1, with 0.9, 0.99, 0.999 equally far apart.
    Share,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// From where; `None`: from the least value.
    pub from: Option<f64>,
    /// To where; `None`: to the greatest value.
    pub to: Option<f64>,
}

impl Axis {
    /// An axis over what there is.
    pub fn new(label: &str, scale: Scale) -> Self {
        Self { label: label.to_owned(), scale, from: None, to: None }
    }
}

/// A line.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Whose, for the pointer's tip.
    pub name: String,
    /// Its colour, as CSS has it.
    pub colour: String,
    /// Whether it is dashed.
    pub dashed: bool,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// The upper edge of a band above it, point by point.
    pub upper: Vec<f64>,
    /// Whether its points are marked.
    pub marked: bool,
    /// What each point is, for the pointer's tip; its values, if that is not said.
    pub notes: Vec<String>,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What kind, for tests and style: `data-kind`.
    pub kind: String,
    /// Width and height.
    pub size: (f64, f64),
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// A vertical line with a word at it.
    pub mark: Option<(f64, String)>,
    /// A horizontal line with a word at it.
    pub level: Option<(f64, String)>,
}

/// An axis with its limits, laid out.
struct Laid {
    scale: Scale,
    from: f64,
    to: f64,
    /// Where `from` and `to` are.
    at: (f64, f64),
}

impl Laid {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, at: (f64, f64)) -> Self {
        let fits = |value: &f64| value.is_finite() && (axis.scale != Scale::Log || *value > 0.0);
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(fits) {
            least = least.min(value);
            greatest = greatest.max(value);
        }
        if least > greatest {
            (least, greatest) = (1.0, 10.0);
        }
        let (mut from, mut to) = (axis.from.unwrap_or(least), axis.to.unwrap_or(greatest));
        match axis.scale {
            Scale::Log => {
                if axis.from.is_none() && axis.to.is_none() && to / from < LOG_SPAN_MIN {
                    let middle = (from * to).sqrt();
                    (from, to) = (middle / LOG_SPAN_MIN.sqrt(), middle * LOG_SPAN_MIN.sqrt());
                } else {
                    from /= if axis.from.is_none() { 1.15 } else { 1.0 };
                    to *= if axis.to.is_none() { 1.25 } else { 1.0 };
                }
            }
            Scale::Linear => {
                let room = (to - from) * 0.06;
                to += if axis.to.is_none() { room } else { 0.0 };
                if to <= from {
                    to = from + 1.0;
                }
            }
            Scale::Share => {}
        }
        Self { scale: axis.scale, from, to, at }
    }

    fn stretch(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Share => -(1.0 - value).max(1e-9).log10(),
        }
    }

    fn place(&self, value: f64) -> f64 {
        let (from, to) = (self.stretch(self.from), self.stretch(self.to));
        let share = (self.stretch(value) - from) / (to - from);
        self.at.0 + share.clamp(-0.02, 1.02) * (self.at.1 - self.at.0)
    }

    /// Where ticks are, and what they say.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => linear_ticks(self.from, self.to),
            Scale::Log => log_ticks(self.from, self.to),
            Scale::Share => {
                let shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999];
                let inside = |share: &f64| (self.from..=self.to).contains(share);
                let text = |share: f64| {
                    let text = format!("{:.4}", share * 100.0);
                    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
                };
                shares.into_iter().filter(inside).map(|share| (share, text(share))).collect()
            }
        }
    }
}

fn linear_ticks(from: f64, to: f64) -> Vec<(f64, String)> {
    let rough = (to - from) / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let mut ticks = Vec::new();
    let mut number = (from / step).ceil();
    while number * step <= to {
        // Zero has no sign.
        ticks.push((number * step, short(number * step + 0.0)));
        number += 1.0;
    }
    ticks
}

fn log_ticks(from: f64, to: f64) -> Vec<(f64, String)> {
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let mut ticks = Vec::new();
    for decade in first..=last {
        let every = last - first <= DECADES_LABELLED_MAX || decade % 2 == 0;
        for step in 1..10 {
            let value = f64::from(step) * 10_f64.powi(decade);
            // With less than two decades there are labels between them.
            let labelled = step == 1 || (to / from < 60.0 && (step == 2 || step == 5));
            if (from..=to).contains(&value) {
                ticks.push((value, if labelled && every { short(value) } else { String::new() }));
            }
        }
    }
    ticks
}

/// A number as short as it goes: 20k, 1.5M.
pub fn short(value: f64) -> String {
    let size = value.abs();
    let (value, unit) = if size >= 1e9 {
        (value / 1e9, "G")
    } else if size >= 1e6 {
        (value / 1e6, "M")
    } else if size >= 1e4 {
        (value / 1e3, "k")
    } else {
        (value, "")
    };
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Text as XML has it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Plot {
    /// The plot as an `svg` element.
    pub fn svg(&self) -> String {
        let (width, height) = self.size;
        let lines = &self.lines;
        let values = lines.iter().flat_map(|line| {
            line.points.iter().map(|point| point.1).chain(line.upper.iter().copied())
        });
        let level = self.level.iter().map(|level| level.0);
        let xs = lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
        let x = Laid::of(&self.x, xs, (LEFT, width - RIGHT));
        let y = Laid::of(&self.y, values.chain(level), (height - BOTTOM, TOP));
        let mut out = String::new();
        let kind = escaped(&self.kind);
        let _ = write!(
            out,
            "<svg class=\"plot\" data-kind=\"{kind}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" aria-label=\"{}\">",
            escaped(&self.y.label)
        );
        self.axes(&mut out, &x, &y);
        for line in lines {
            draw(&mut out, line, &x, &y);
        }
        out.push_str("</svg>");
        out
    }

    fn axes(&self, out: &mut String, x: &Laid, y: &Laid) {
        let (width, height) = self.size;
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        for (value, text) in y.ticks() {
            let at = y.place(value);
            let class = if text.is_empty() { "minor" } else { "grid" };
            let _ = write!(out, "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{right}\"/>");
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                at + 3.5
            );
        }
        for (value, text) in x.ticks() {
            let at = x.place(value);
            let class = if text.is_empty() { "minor" } else { "grid" };
            let _ = write!(out, "<path class=\"{class}\" d=\"M{at:.1} {TOP}V{bottom}\"/>");
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 15.0
            );
        }
        let _ = write!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            height - 6.0,
            escaped(&self.x.label)
        );
        let _ = write!(
            out,
            "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(13 {:.1}) rotate(-90)\">{}</text>",
            f64::midpoint(TOP, bottom),
            escaped(&self.y.label)
        );
        if let Some((value, text)) = &self.mark {
            let at = x.place(*value);
            let _ = write!(out, "<path class=\"mark\" d=\"M{at:.1} {TOP}V{bottom}\"/>");
            let _ = write!(
                out,
                "<text class=\"note\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                at + 4.0,
                TOP + 11.0,
                escaped(text)
            );
        }
        if let Some((value, text)) = &self.level {
            let at = y.place(*value);
            let _ = write!(out, "<path class=\"mark\" d=\"M{LEFT} {at:.1}H{right}\"/>");
            let _ = write!(
                out,
                "<text class=\"note\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                right - 3.0,
                at - 4.0,
                escaped(text)
            );
        }
    }
}

fn draw(out: &mut String, line: &Line, x: &Laid, y: &Laid) {
    let shown = |value: f64| value.is_finite() && (y.scale != Scale::Log || value > 0.0);
    let name = escaped(&line.name);
    if !line.upper.is_empty() {
        let pairs = line.points.iter().zip(&line.upper);
        let pairs: Vec<_> =
            pairs.filter(|(point, upper)| shown(point.1) && shown(**upper)).collect();
        let lower = pairs.iter().map(|(point, _)| (x.place(point.0), y.place(point.1)));
        let upper = pairs.iter().rev().map(|(point, upper)| (x.place(point.0), y.place(**upper)));
        let mut path = String::new();
        for (place, (x, y)) in lower.chain(upper).enumerate() {
            let _ = write!(path, "{}{x:.1} {y:.1}", if place == 0 { 'M' } else { 'L' });
        }
        if !path.is_empty() {
            let _ = write!(out, "<path class=\"band\" fill=\"{}\" d=\"{path}Z\"/>", line.colour);
        }
    }
    let mut path = String::new();
    let mut pen_down = false;
    for (at, value) in &line.points {
        if shown(*value) {
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if pen_down { 'L' } else { 'M' },
                x.place(*at),
                y.place(*value)
            );
        }
        pen_down = shown(*value);
    }
    let dash = if line.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
    let _ = write!(
        out,
        "<path class=\"line\" data-name=\"{name}\" stroke=\"{}\"{dash} d=\"{path}\"><title>{name}</title></path>",
        line.colour
    );
    if line.marked {
        for (place, (at, value)) in line.points.iter().enumerate() {
            if !shown(*value) {
                continue;
            }
            let tip = line.notes.get(place).map_or_else(
                || format!("{name}: {} at {}", short(*value), short(*at)),
                |note| escaped(note),
            );
            let _ = write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"><title>{tip}</title></circle>",
                x.place(*at),
                y.place(*value),
                line.colour
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        let texts = |ticks: Vec<(f64, String)>| {
            let texts = ticks.into_iter().map(|tick| tick.1);
            texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(texts(linear_ticks(-5.0, 5.0)), "-4 -2 0 2 4");
        assert_eq!(texts(linear_ticks(0.0, 21_000.0)), "0 5000 10k 15k 20k");
        assert_eq!(texts(log_ticks(15.0, 90_000.0)), "100 1000 10k");
        assert_eq!(texts(log_ticks(9.0, 110.0)), "10 20 50 100");
    }

    #[test]
    fn a_plot_has_its_lines_inside() {
        let plot = Plot {
            kind: "test".into(),
            size: (400.0, 200.0),
            x: Axis::new("x", Scale::Linear),
            y: Axis::new("a < b", Scale::Log),
            lines: vec![Line {
                name: "one".into(),
                colour: "red".into(),
                points: vec![(0.0, 10.0), (1.0, 0.0), (2.0, 1000.0), (3.0, 500.0)],
                ..Line::default()
            }],
            mark: None,
            level: None,
        };
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b"), "{svg}");
        let path = svg.split("data-name=\"one\"").nth(1).unwrap();
        let path = path.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        // Where nothing can be shown the line is lifted, not drawn to zero.
        assert_eq!(path.matches('M').count(), 2, "{path}");
        for pair in path.split(['M', 'L']).filter(|pair| !pair.is_empty()) {
            let (x, y) = pair.split_once(' ').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=400.0).contains(&x) && (TOP..=200.0 - BOTTOM).contains(&y), "{path}");
        }
    }
}
