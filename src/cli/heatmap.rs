//! `presnap chunks --heatmap`: a volume's chunks as a picture, in the terminal or as an SVG file.
//!
//! Three panels show the same cells, each of one or more chunks, row by row from the volume's start: how
//! often they were written, how likely they are to be, and what there is of copies.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "places in a scale of a few colours"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;

use super::render::{bytes, clean};
use super::{ANSWER_TIMEOUT, Failure, strange};
use crate::rpc::Client;
use crate::rpc::objects::{Chunk, ChunkPage};

/// Chunks asked for at once: the target's app thread makes an answer of them in some milliseconds.
const PAGE_CHUNKS: u64 = 4096;

/// Chunks in a picture at most.
const CHUNKS_MAX: u64 = 1 << 18;

/// Cells in a terminal's panel, and in one of a file: columns and rows.
const TERMINAL_CELLS: (usize, usize) = (64, 32);
const FILE_CELLS: (usize, usize) = (64, 64);

/// Edge of a cell in a file.
const CELL_PX: usize = 6;

/// Command lines for the help text.
pub const EXAMPLES: &[&str] =
    &["presnap chunks vol0 --heatmap", "presnap chunks vol0 --heatmap-file vol0.svg"];

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeatmapArgs {
    /// The volume.
    pub volume: String,
    /// First chunk.
    pub start: u64,
    /// Chunks at most; absent: all.
    pub count: Option<u64>,
    /// Where to write it; absent: to the terminal.
    pub file: Option<PathBuf>,
}

/// The options, on top of those that the method has.
pub fn augment(command: Command) -> Command {
    command
        .arg(
            Arg::new("heatmap")
                .long("heatmap")
                .action(ArgAction::SetTrue)
                .conflicts_with("staged_only")
                .help("Show the chunks as a picture (all of them, unless --count is given)"),
        )
        .arg(
            Arg::new("heatmap_file")
                .long("heatmap-file")
                .value_name("FILE.svg")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("staged_only")
                .help("Write the picture to a file"),
        )
}

/// What a command line asks for, if it is a picture.
pub fn asked(matches: &ArgMatches) -> Option<HeatmapArgs> {
    let file = matches.get_one::<PathBuf>("heatmap_file").cloned();
    (matches.get_flag("heatmap") || file.is_some()).then(|| HeatmapArgs {
        volume: matches.get_one::<String>("volume").cloned().unwrap_or_default(),
        start: matches.get_one("start").copied().unwrap_or(0),
        count: matches.get_one("count").copied(),
        file,
    })
}

/// Asks the target and draws.
///
/// # Errors
/// The target refuses, there is too much for one picture, or the file cannot be written.
pub fn run(
    args: &HeatmapArgs,
    socket: &Path,
    timeout: Option<Duration>,
    colours: bool,
) -> Result<String, Failure> {
    if let Some(file) = &args.file
        && file.extension().is_none_or(|extension| extension != "svg")
    {
        let file = file.display();
        return Err(Failure::usage(format!(
            "{file}: pictures are written as SVG; choose a name that ends in .svg"
        )));
    }
    let (page, chunks) = fetch(args, socket, timeout.unwrap_or(ANSWER_TIMEOUT))?;
    let title = Title {
        volume: clean(&page.volume),
        first: args.start,
        chunk_bytes: u64::from(page.chunk_size_kib) << 10,
    };
    let Some(file) = &args.file else {
        return Ok(terminal(&Picture::of(&chunks, title, TERMINAL_CELLS), colours));
    };
    let text = svg(&Picture::of(&chunks, title, FILE_CELLS));
    std::fs::write(file, text).map_err(|error| {
        Failure::refused(format!("{}: cannot be written: {error}", file.display()))
    })?;
    Ok(String::new())
}

/// All chunks asked for, and the first page for what it says of the volume.
fn fetch(
    args: &HeatmapArgs,
    socket: &Path,
    timeout: Duration,
) -> Result<(ChunkPage, Vec<Chunk>), Failure> {
    let mut client = Client::connect(socket)?;
    let mut ask = |start: u64, left: u64| -> Result<ChunkPage, Failure> {
        let count = left.clamp(1, PAGE_CHUNKS);
        let params = json!({"volume": args.volume, "start": start, "count": count});
        let value = client.call("presnap_get_chunks", Some(&params), Some(timeout))?;
        serde_json::from_value(value).map_err(|error| strange(socket, &error))
    };
    let count = args.count.unwrap_or(u64::MAX);
    let mut first = ask(args.start, count)?;
    let wanted = first.total.saturating_sub(args.start).min(count);
    if wanted > CHUNKS_MAX {
        return Err(Failure::usage(format!(
            "volume '{}' has {wanted} chunks from {} on, and a picture at most {CHUNKS_MAX}; name a \
             part with --start and --count",
            clean(&args.volume),
            args.start
        )));
    }
    let mut chunks = std::mem::take(&mut first.chunks);
    let mut next = first.next;
    while let Some(start) = next
        && (chunks.len() as u64) < wanted
    {
        let page = ask(start, wanted - chunks.len() as u64)?;
        chunks.extend(page.chunks);
        next = page.next;
    }
    Ok((first, chunks))
}

// ---- the picture ----------------------------------------------------------------------------------

/// What there is of a chunk's copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Copy {
    /// No snapshot will require it.
    #[default]
    Clean,
    /// Required, and not copied.
    None,
    /// Required, and its copy lacks some blocks.
    Outdated,
    /// Required, and its copy is right.
    Valid,
}

const COPIES: [(Copy, &str, char, Colour); 4] = [
    (Copy::Clean, "clean", '.', Colour(222, 222, 222)),
    (Copy::None, "dirty, no copy", 'x', Colour(213, 94, 0)),
    (Copy::Outdated, "copy outdated", 'o', Colour(240, 228, 66)),
    (Copy::Valid, "copy valid", '#', Colour(0, 158, 115)),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Colour(u8, u8, u8);

impl Colour {
    fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// From never to always.
const HEAT: [Colour; 6] = [
    Colour(20, 14, 54),
    Colour(75, 12, 107),
    Colour(148, 38, 103),
    Colour(217, 84, 61),
    Colour(251, 164, 10),
    Colour(252, 255, 164),
];

/// The same without colours.
const HEAT_CHARS: [char; 10] = [' ', '.', ':', '-', '=', '+', '*', '#', '%', '@'];

/// Of a chunk that no predictor follows.
const UNKNOWN: Colour = Colour(222, 222, 222);

/// Small values are what is to be told apart: half of the scale is for what is below a quarter.
fn scaled(value: f64) -> f64 {
    value.clamp(0.0, 1.0).sqrt()
}

fn heat_colour(value: f64) -> Colour {
    let at = scaled(value) * (HEAT.len() - 1) as f64;
    let low = (at as usize).min(HEAT.len() - 2);
    let (a, b, part) = (HEAT[low], HEAT[low + 1], at - low as f64);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part).round() as u8;
    Colour(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

fn heat_char(value: f64) -> char {
    HEAT_CHARS[((scaled(value) * 9.0).round() as usize).min(9)]
}

/// A cell: some chunks side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    /// Of the hottest chunk.
    heat: Option<f64>,
    /// Of the one most likely to be written.
    soon: Option<f64>,
    /// Of most of those that are not clean, if any.
    copy: Copy,
}

impl Cell {
    fn of(chunks: &[Chunk]) -> Self {
        let most = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
        let copies = chunks.iter().map(|chunk| match (chunk.dirty, chunk.operation_number) {
            (false, _) => Copy::Clean,
            (true, None) => Copy::None,
            (true, Some(_)) if chunk.valid => Copy::Valid,
            (true, Some(_)) => Copy::Outdated,
        });
        let mut counts = [0; COPIES.len()];
        for copy in copies {
            counts[copy as usize] += 1;
        }
        // Of as many the one that wants attention.
        let copy = [Copy::Valid, Copy::Outdated, Copy::None]
            .into_iter()
            .filter(|copy| counts[*copy as usize] > 0)
            .max_by_key(|copy| counts[*copy as usize]);
        Self {
            heat: most(&mut chunks.iter().filter_map(|chunk| chunk.heat)),
            soon: most(
                &mut chunks.iter().filter_map(|chunk| Some(chunk.p_modify.as_ref()?.within_1_min)),
            ),
            copy: copy.unwrap_or_default(),
        }
    }
}

struct Title {
    volume: String,
    first: u64,
    chunk_bytes: u64,
}

struct Picture {
    title: Title,
    chunks: u64,
    chunks_per_cell: usize,
    columns: usize,
    cells: Vec<Cell>,
}

impl Picture {
    fn of(chunks: &[Chunk], title: Title, (columns, rows_max): (usize, usize)) -> Self {
        let chunks_per_cell = chunks.len().div_ceil(columns * rows_max).max(1).next_power_of_two();
        Self {
            title,
            chunks: chunks.len() as u64,
            chunks_per_cell,
            columns,
            cells: chunks.chunks(chunks_per_cell).map(Cell::of).collect(),
        }
    }

    fn rows(&self) -> usize {
        self.cells.len().div_ceil(self.columns)
    }

    fn cell(&self, column: usize, row: usize) -> Option<&Cell> {
        self.cells.get(row * self.columns + column)
    }

    /// Where a row begins in the volume.
    fn offset(&self, row: usize) -> String {
        let chunk = self.title.first + (row * self.columns * self.chunks_per_cell) as u64;
        bytes(chunk * self.title.chunk_bytes)
    }

    fn headline(&self) -> String {
        let cell = self.chunks_per_cell as u64 * self.title.chunk_bytes;
        format!(
            "{}: {} from {} on; a cell is {}",
            self.title.volume,
            bytes(self.chunks * self.title.chunk_bytes),
            self.offset(0),
            bytes(cell)
        )
    }
}

/// A panel: its heading, and what a cell looks like with colours and without.
struct Panel {
    heading: &'static str,
    is_heat: bool,
    colour: fn(&Cell) -> Colour,
    plain: fn(&Cell) -> char,
}

const PANELS: [Panel; 3] = [
    Panel {
        heading: "written: share of the last minutes' seconds",
        is_heat: true,
        colour: |cell| cell.heat.map_or(UNKNOWN, heat_colour),
        plain: |cell| cell.heat.map_or(' ', heat_char),
    },
    Panel {
        heading: "predicted: to be written within 1 min",
        is_heat: true,
        colour: |cell| cell.soon.map_or(UNKNOWN, heat_colour),
        plain: |cell| cell.soon.map_or(' ', heat_char),
    },
    Panel {
        heading: "copies in the store",
        is_heat: false,
        colour: |cell| COPIES[cell.copy as usize].3,
        plain: |cell| COPIES[cell.copy as usize].2,
    },
];

// ---- in a terminal --------------------------------------------------------------------------------

fn terminal(picture: &Picture, colours: bool) -> String {
    let mut out = picture.headline() + "\n";
    // Half of a block per cell where there are colours, since characters are twice as high as wide.
    let rows_per_line = if colours { 2 } else { 1 };
    for panel in &PANELS {
        let _ = write!(out, "\n{}  {}\n", panel.heading, legend(panel, colours));
        for row in (0..picture.rows()).step_by(rows_per_line) {
            let _ = write!(out, "{:>10} ", picture.offset(row));
            for column in 0..picture.columns {
                let Some(top) = picture.cell(column, row) else { break };
                if !colours {
                    out.push((panel.plain)(top));
                    continue;
                }
                let Colour(r, g, b) = (panel.colour)(top);
                let _ = write!(out, "\x1b[38;2;{r};{g};{b}m");
                if let Some(bottom) = picture.cell(column, row + 1) {
                    let Colour(r, g, b) = (panel.colour)(bottom);
                    let _ = write!(out, "\x1b[48;2;{r};{g};{b}m▀");
                } else {
                    out.push_str("\x1b[49m▀");
                }
            }
            if colours {
                out.push_str("\x1b[0m");
            }
            out.truncate(out.trim_end_matches(' ').len());
            out.push('\n');
        }
    }
    out
}

fn legend(panel: &Panel, colours: bool) -> String {
    let swatch = |Colour(r, g, b): Colour, plain: char| {
        if colours { format!("\x1b[38;2;{r};{g};{b}m█\x1b[0m") } else { plain.to_string() }
    };
    if panel.is_heat {
        let steps = [0.01, 0.04, 0.16, 0.36, 0.64, 1.0];
        let steps = steps.map(|value| swatch(heat_colour(value), heat_char(value)));
        return format!("0 {} 1", steps.concat());
    }
    COPIES.map(|(_, name, plain, colour)| format!("{} {name}", swatch(colour, plain))).join("  ")
}

// ---- as SVG ---------------------------------------------------------------------------------------

/// Space around panels, and above them for their headings.
const MARGIN_PX: usize = 24;
const OFFSETS_PX: usize = 72;
const HEADING_PX: usize = 64;
const LEGEND_PX: usize = 44;

fn svg(picture: &Picture) -> String {
    let (wide, high) = (picture.columns * CELL_PX, picture.rows() * CELL_PX);
    let width = OFFSETS_PX + PANELS.len() * (wide + MARGIN_PX);
    let height = HEADING_PX + high + LEGEND_PX;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{OFFSETS_PX}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(&picture.headline())
    );
    // A label about every 48 pixels.
    for row in (0..picture.rows()).step_by(8) {
        let y = HEADING_PX + row * CELL_PX + 10;
        let x = OFFSETS_PX - 8;
        let offset = picture.offset(row);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{offset}</text>");
    }
    for (index, panel) in PANELS.iter().enumerate() {
        let left = OFFSETS_PX + index * (wide + MARGIN_PX);
        panel_svg(&mut out, picture, panel, left);
        legend_svg(&mut out, panel, left, HEADING_PX + high + 14);
    }
    out + "</svg>\n"
}

fn panel_svg(out: &mut String, picture: &Picture, panel: &Panel, left: usize) {
    let y = HEADING_PX - 10;
    let _ = writeln!(out, "<text x=\"{left}\" y=\"{y}\">{}</text>", escaped(panel.heading));
    let _ = writeln!(out, "<g shape-rendering=\"crispEdges\">");
    for row in 0..picture.rows() {
        let y = HEADING_PX + row * CELL_PX;
        let colour = |column| picture.cell(column, row).map(panel.colour);
        // Cells of one colour side by side are one rectangle.
        let mut column = 0;
        while let Some(of_run) = colour(column).filter(|_| column < picture.columns) {
            let same = |&next: &usize| colour(next) == Some(of_run);
            let run = (column..picture.columns).take_while(same).count();
            let (x, wide) = (left + column * CELL_PX, run * CELL_PX);
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{CELL_PX}\" \
                 fill=\"{}\"/>",
                of_run.hex()
            );
            column += run;
        }
    }
    out.push_str("</g>\n");
}

fn legend_svg(out: &mut String, panel: &Panel, left: usize, y: usize) {
    let mut x = left;
    let mut entry = |colour: Colour, label: &str| {
        let text_x = x + 14;
        let text_y = y + 10;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{text_x}\" y=\"{text_y}\">{label}</text>",
            colour.hex()
        );
        x = text_x + 7 * label.len() + 10;
    };
    if panel.is_heat {
        for value in [0.0, 0.05, 0.2, 0.5, 1.0] {
            entry(heat_colour(value), &format!("{value}"));
        }
        entry(UNKNOWN, "not followed");
    } else {
        for (_, name, _, colour) in COPIES {
            entry(colour, name);
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
#[path = "heatmap_tests.rs"]
mod tests;
