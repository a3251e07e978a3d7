//! Rooms use what docs/architecture.md, "Rooms", says that they use, and none that stands below them there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The code of a folder, without comments.
fn code(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all += &code(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            let is_code = |line: &&str| !line.trim_start().starts_with("//");
            all.extend(text.lines().filter(is_code).flat_map(|line| [line, "\n"]));
        }
    }
    all
}

fn uses(code: &str, room: &str) -> bool {
    let path = format!("crate::{room}");
    let goes_on = |c: char| c.is_alphanumeric() || c == '_';
    let named = |(at, _): (usize, &str)| !code[at + path.len()..].starts_with(goes_on);
    // In `use crate::{...}`, as rustfmt has it.
    let grouped = code.contains("use crate::{\n") && code.contains(&format!("\n    {room}::"));
    code.match_indices(&path).any(named) || grouped
}

/// Fails when a room uses another that its row does not name, or that stands below it.
#[test]
fn rooms_use_what_the_table_says() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(project.join("docs/architecture.md")).expect("the page");
    let (_, table) = page.split_once("\n## Rooms\n").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("its end");
    let mut above: Vec<(&str, BTreeSet<&str>)> = Vec::new();
    for row in table.lines() {
        let Some((_, room)) = row.split_once("`src/") else { continue };
        let room = room.split('`').next().expect("a name");
        let cell = row.trim_end_matches('|').rsplit('|').next().expect("what it uses");
        let words: Vec<&str> = cell.split(|c: char| !c.is_alphanumeric()).collect();
        let mut allowed = BTreeSet::from([room]);
        for (other, its) in above.iter().filter(|(other, _)| words.contains(other)) {
            allowed.insert(other);
            // "and what that uses"
            allowed.extend(its.iter().filter(|_| words.contains(&"what")));
        }
        above.push((room, allowed));
    }
    assert_eq!(above.len(), 11, "rows that were understood: {above:?}");
    for (room, allowed) in &above {
        let code = code(&project.join("src").join(room));
        for (other, _) in &above {
            assert!(allowed.contains(other) || !uses(&code, other), "src/{room} uses {other}");
        }
    }
}
