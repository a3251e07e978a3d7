use super::*;
use crate::rpc::objects::{BlockMapHex, PModify};

fn chunk(chunk_id: u64) -> Chunk {
    Chunk {
        chunk_id,
        operation_number: None,
        staging_location: None,
        valid: false,
        dirty: false,
        block_map: BlockMapHex(0),
        last_write_age_ms: None,
        heat: None,
        score: None,
        p_modify: None,
    }
}

fn followed(chunk_id: u64, heat: f64, soon: f64) -> Chunk {
    let p_modify =
        PModify { within_10_s: 0.0, within_1_min: soon, within_5_min: 1.0, within_15_min: 1.0 };
    Chunk { dirty: true, heat: Some(heat), p_modify: Some(p_modify), ..chunk(chunk_id) }
}

fn copied(chunk_id: u64, valid: bool) -> Chunk {
    Chunk { operation_number: Some(7), valid, ..followed(chunk_id, 0.0, 0.0) }
}

fn picture(chunks: &[Chunk], cells: (usize, usize)) -> Picture {
    let title = Title { volume: "vol0".into(), first: 16, chunk_bytes: 256 << 10 };
    Picture::of(chunks, title, cells)
}

#[test]
fn a_cell_is_its_hottest_chunk_and_what_most_of_its_copies_are() {
    assert_eq!(Cell::of(&[chunk(0), chunk(1)]), Cell::default());
    let cell = Cell::of(&[chunk(0), followed(1, 0.1, 0.9), followed(2, 0.4, 0.2), copied(3, true)]);
    assert_eq!(cell, Cell { heat: Some(0.4), soon: Some(0.9), copy: Copy::None });
    let cell = Cell::of(&[copied(0, true), copied(1, false), copied(2, true), chunk(3)]);
    assert_eq!(cell.copy, Copy::Valid);
    assert_eq!(Cell::of(&[copied(0, true), copied(1, false)]).copy, Copy::Outdated);
}

#[test]
fn however_many_chunks_there_are_the_cells_fit_and_none_is_left_out() {
    for count in [1, 63, 64, 65, 2048, 2049, 5000, 100_000] {
        let chunks: Vec<_> = (0..count).map(chunk).collect();
        let picture = picture(&chunks, (64, 32));
        assert!(picture.rows() <= 32, "{count}");
        let cells = count.div_ceil(picture.chunks_per_cell as u64);
        assert_eq!(picture.cells.len() as u64, cells, "{count}");
        assert!(picture.chunks_per_cell == 1 || cells > 1024, "{count}: coarser than need be");
    }
}

#[test]
fn without_colours_it_is_plain_text() {
    let chunks =
        [chunk(16), followed(17, 1.0, 0.25), copied(18, true), copied(19, false), chunk(20)];
    let text = terminal(&picture(&chunks, (4, 4)), false);
    let expected = "\
vol0: 1.2 MiB from 4 MiB on; a cell is 256 KiB

written: share of the last minutes' seconds  0 .:=+#@ 1
     4 MiB  @
     5 MiB

predicted: to be written within 1 min  0 .:=+#@ 1
     4 MiB  +
     5 MiB

copies in the store  . clean  x dirty, no copy  o copy outdated  # copy valid
     4 MiB .x#o
     5 MiB .
";
    assert_eq!(text, expected);
}

#[test]
fn with_colours_two_rows_are_one_line() {
    let chunks: Vec<_> = (0..12).map(|id| followed(id, 0.5, 0.5)).collect();
    let text = terminal(&picture(&chunks, (4, 4)), true);
    let blocks = |line: &str| line.matches('▀').count();
    let lines: Vec<_> = text.lines().map(blocks).filter(|count| *count > 0).collect();
    assert_eq!(lines, [4, 4].repeat(3), "three rows are two lines, in each of three panels");
    assert!(text.lines().all(|line| !line.contains('▀') || line.ends_with("\x1b[0m")));
}

#[test]
fn heat_goes_from_dark_to_bright() {
    let brightness = |value: f64| {
        let Colour(r, g, b) = heat_colour(value);
        u32::from(r) + u32::from(g) + u32::from(b)
    };
    let steps: Vec<_> = (0..=100).map(|step| brightness(f64::from(step) / 100.0)).collect();
    assert!(steps.is_sorted(), "{steps:?}");
    assert_eq!((heat_colour(-1.0), heat_colour(2.0)), (HEAT[0], HEAT[5]));
    assert_eq!((heat_char(0.0), heat_char(1.0)), (' ', '@'));
}

#[test]
fn the_svg_covers_every_cell_once_and_escapes_names() {
    let chunks: Vec<_> = (0..130)
        .map(|id| if id % 3 == 0 { copied(id, true) } else { followed(id, 0.01 * id as f64, 0.3) })
        .collect();
    let mut picture = picture(&chunks, (64, 64));
    picture.title.volume = "a<b&c".into();
    let text = svg(&picture);
    assert!(text.contains("a&lt;b&amp;c: ") && !text.contains("a<b"));
    let number = |rect: &str, name: &str| -> usize {
        let from = rect.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
        rect[from..].split('"').next().unwrap().parse().unwrap()
    };
    // A group is the cells of a panel.
    for group in text.split("<g ").skip(1) {
        let cells = group.split("</g>").next().unwrap();
        let wide: usize =
            cells.lines().filter(|l| l.starts_with("<rect")).map(|r| number(r, "width")).sum();
        assert_eq!(wide, 130 * CELL_PX);
    }
    assert_eq!(text.matches("<g ").count(), 3);
    assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
}
