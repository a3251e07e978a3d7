//! What a line of each format says.

use std::fmt;

use super::TraceKind;

/// What the first line of the project's own format is.
const PROJECT_HEADER: &str = "time_us,op,offset_bytes,length_bytes";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Project,
    Msr,
    /// Time so far, from the `wait` actions.
    Fio2 {
        waited_us: u64,
    },
    Fio3,
}

/// Which disk a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk<'a> {
    name: &'a str,
    /// MSR: the number of the disk in host `name`.
    number: Option<&'a str>,
}

impl Disk<'_> {
    pub fn is(&self, wanted: &str) -> bool {
        match self.number {
            None => self.name == wanted,
            Some(number) => wanted
                .strip_prefix(self.name)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| rest == number),
        }
    }
}

impl fmt::Display for Disk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            None => f.write_str(self.name),
            Some(number) => write!(f, "{}.{number}", self.name),
        }
    }
}

pub(super) enum Parsed<'a> {
    Record {
        disk: Option<Disk<'a>>,
        /// Microseconds in the file's own reckoning.
        at_us: u64,
        kind: TraceKind,
        offset_bytes: u64,
        length_bytes: u64,
    },
    /// Something that is no command.
    Nothing,
}

/// What is wrong and what can be done about it.
type Fault = (String, &'static str);

const CORRECT: &str = "correct the line or leave it out";

impl Format {
    pub fn of_first_line(line: &str) -> Option<Self> {
        match line {
            PROJECT_HEADER => Some(Format::Project),
            "fio version 2 iolog" => Some(Format::Fio2 { waited_us: 0 }),
            "fio version 3 iolog" => Some(Format::Fio3),
            _ => {
                let fields = line.split(',').count();
                let time = line.split(',').next().unwrap_or_default();
                (fields == 7 && time.parse::<u64>().is_ok()).then_some(Format::Msr)
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Project => "presnap csv",
            Format::Msr => "MSR Cambridge csv",
            Format::Fio2 { .. } => "fio iolog v2",
            Format::Fio3 => "fio iolog v3",
        }
    }

    pub fn parse<'a>(&mut self, line: &'a str) -> Result<Parsed<'a>, Fault> {
        match self {
            Format::Project => project(line),
            Format::Msr => msr(line),
            Format::Fio2 { waited_us } => {
                let (name, rest) = word(line, "file name")?;
                let (action, rest) = word(rest, "action")?;
                if action == "wait" {
                    let (us, _) = word(rest, "time to wait")?;
                    *waited_us = waited_us.saturating_add(number(us, "time to wait")?);
                    return Ok(Parsed::Nothing);
                }
                fio(name, action, rest, *waited_us)
            }
            Format::Fio3 => {
                let (time, rest) = word(line, "time")?;
                let (name, rest) = word(rest, "file name")?;
                let (action, rest) = word(rest, "action")?;
                // fio's manual names no unit; fio itself writes microseconds and waits for as many.
                fio(name, action, rest, number(time, "time")?)
            }
        }
    }
}

fn project(line: &str) -> Result<Parsed<'_>, Fault> {
    let [time, op, offset, length] = fields(line)?;
    let kind = match op {
        "R" => TraceKind::Read,
        "W" => TraceKind::Write,
        "U" => TraceKind::Unmap,
        _ => return Err((format!("op is {op:?}, not R, W or U"), CORRECT)),
    };
    Ok(Parsed::Record {
        disk: None,
        at_us: number(time, "time_us")?,
        kind,
        offset_bytes: number(offset, "offset_bytes")?,
        length_bytes: number(length, "length_bytes")?,
    })
}

fn msr(line: &str) -> Result<Parsed<'_>, Fault> {
    let [time, host, disk, kind, offset, size, _response] = fields(line)?;
    let kind = match kind {
        "Read" => TraceKind::Read,
        "Write" => TraceKind::Write,
        _ => return Err((format!("type is {kind:?}, not Read or Write"), CORRECT)),
    };
    Ok(Parsed::Record {
        disk: Some(Disk { name: host, number: Some(disk) }),
        // Steps of 100 ns.
        at_us: number(time, "time")? / 10,
        kind,
        offset_bytes: number(offset, "offset")?,
        length_bytes: number(size, "size")?,
    })
}

fn fio<'a>(name: &'a str, action: &str, rest: &str, at_us: u64) -> Result<Parsed<'a>, Fault> {
    let kind = match action {
        "read" => TraceKind::Read,
        "write" => TraceKind::Write,
        "trim" => TraceKind::Unmap,
        "add" | "open" | "close" | "sync" | "datasync" | "sync_file_range" => {
            return Ok(Parsed::Nothing);
        }
        _ => return Err((format!("{action:?} is no action of an iolog"), CORRECT)),
    };
    let (offset, rest) = word(rest, "offset")?;
    let (length, _) = word(rest, "length")?;
    Ok(Parsed::Record {
        disk: Some(Disk { name, number: None }),
        at_us,
        kind,
        offset_bytes: number(offset, "offset")?,
        length_bytes: number(length, "length")?,
    })
}

/// Exactly so many fields.
fn fields<const COUNT: usize>(line: &str) -> Result<[&str; COUNT], Fault> {
    let mut fields = [""; COUNT];
    let mut found = 0;
    for field in line.split(',') {
        if let Some(place) = fields.get_mut(found) {
            *place = field.trim();
        }
        found += 1;
    }
    if found == COUNT {
        Ok(fields)
    } else {
        Err((format!("it has {found} fields, not {COUNT}"), CORRECT))
    }
}

fn word<'a>(text: &'a str, what: &str) -> Result<(&'a str, &'a str), Fault> {
    let text = text.trim_start();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    if word.is_empty() {
        Err((format!("it ends before its {what}"), CORRECT))
    } else {
        Ok((word, rest))
    }
}

fn number(text: &str, what: &str) -> Result<u64, Fault> {
    text.parse()
        .map_err(|_| (format!("{what} is {text:?}, not a number of at most 64 bits"), CORRECT))
}
