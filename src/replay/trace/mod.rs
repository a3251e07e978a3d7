//! Block traces: what a volume was asked, when. Read record by record, never as a whole.
//!
//! | format | recognised by | times |
//! | --- | --- | --- |
//! | project (`NAME.csv`, `NAME.csv.zst`) | header `time_us,op,offset_bytes,length_bytes` | microseconds |
//! | MSR Cambridge CSV | seven fields: time, host, disk, type, offset, size, response time | 100 ns |
//! | fio iolog, version 2 | its first line | those of its `wait` actions only |
//! | fio iolog, version 3 | its first line | microseconds |
//!
//! Each may be packed with zstd. Times count from the first record; they never go backwards: a
//! record that is a little late in its file is taken as of the time of the one before.

mod lines;
mod records;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use lines::Lines;
use records::{Format, Parsed};

/// What a record asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Unmap.
    Unmap,
}

/// One command of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Microseconds since the first record of the trace.
    pub time_us: u64,
    /// What it asks for.
    pub kind: TraceKind,
    /// First byte.
    pub offset_bytes: u64,
    /// Bytes, at least 1.
    pub length_bytes: u64,
}

/// What is wrong with a trace, where, and what can be done.
#[derive(Debug)]
pub struct TraceError {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1; 0 if it is not about a line.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
    /// What can be done about it.
    pub remedy: &'static str,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for TraceError {}

/// Times that go back by more than this are a fault of the file, not of the order in which a
/// busy machine wrote its records.
const LATE_US_MAX: u64 = 60_000_000;

/// An open trace; iterate for its records. Ends after the first error.
pub struct Trace {
    lines: Lines,
    format: Format,
    /// The one disk or file whose records are taken.
    disk: Option<String>,
    /// Time of the first record in the file's own reckoning.
    first_us: Option<u64>,
    last_us: u64,
    late: u64,
    empty: u64,
    over: bool,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("path", &self.lines.path()).finish_non_exhaustive()
    }
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

impl Trace {
    /// Opens a trace of any of the formats. If it has records of several disks (MSR: `HOST.DISK`)
    /// or files (fio: the name), `disk` says which are meant; without it, those of the first.
    ///
    /// # Errors
    /// When the file cannot be read or is in none of the formats.
    pub fn open(path: &Path, disk: Option<&str>) -> Result<Self, TraceError> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Self::read_from(path, file, disk)
    }

    /// The same for what a file holds; `path` names it in errors.
    ///
    /// # Errors
    /// When it cannot be read or is in none of the formats.
    pub fn read_from(
        path: &Path,
        file: impl Read + 'static,
        disk: Option<&str>,
    ) -> Result<Self, TraceError> {
        let mut file = BufReader::with_capacity(1 << 16, file);
        let head = file.fill_buf().map_err(|error| unreadable(path, &error))?;
        if head.starts_with(&GZIP_MAGIC) {
            let problem = "it is packed with gzip".into();
            return Err(failed(path, problem, "unpack it with gunzip first"));
        }
        let reader: Box<dyn Read> = if head.starts_with(&ZSTD_MAGIC) {
            let decoder = zstd::Decoder::with_buffer(file)
                .map_err(|error| failed(path, error.to_string(), "check that it is complete"))?;
            Box::new(decoder)
        } else {
            Box::new(file)
        };
        Self::of_lines(Lines::new(path.to_owned(), BufReader::new(reader)), disk)
    }

    fn of_lines(mut lines: Lines, disk: Option<&str>) -> Result<Self, TraceError> {
        let Some(first) = lines.next_line()? else {
            return Err(lines.error("it is empty".into(), "name a trace with records"));
        };
        let Some(format) = Format::of_first_line(first) else {
            let start: String = first.chars().take(40).collect();
            return Err(lines.error(
                format!("it begins with {start:?}, which no known format does"),
                "known are presnap's own CSV, MSR Cambridge CSV and fio iologs, see docs/prediction.md",
            ));
        };
        if format == Format::Msr {
            lines.again();
        }
        Ok(Self {
            lines,
            format,
            disk: disk.map(str::to_owned),
            first_us: None,
            last_us: 0,
            late: 0,
            empty: 0,
            over: false,
        })
    }

    /// Name of the format.
    pub fn format_name(&self) -> &'static str {
        self.format.name()
    }

    /// Records so far whose time was before that of an earlier one.
    pub fn late_records(&self) -> u64 {
        self.late
    }

    /// Records so far that were left out for having no bytes.
    pub fn empty_records(&self) -> u64 {
        self.empty
    }

    fn read(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        loop {
            let Some(line) = self.lines.next_line()? else { return Ok(None) };
            let parsed = match self.format.parse(line) {
                Ok(parsed) => parsed,
                Err((problem, remedy)) => return Err(self.lines.error(problem, remedy)),
            };
            let Parsed::Record { disk, at_us, kind, offset_bytes, length_bytes } = parsed else {
                continue;
            };
            match (&self.disk, disk) {
                (Some(wanted), Some(disk)) if !disk.is(wanted) => continue,
                (None, Some(disk)) => self.disk = Some(disk.to_string()),
                _ => {}
            }
            if length_bytes == 0 {
                self.empty += 1;
                continue;
            }
            let first_us = *self.first_us.get_or_insert(at_us);
            let mut time_us = at_us.saturating_sub(first_us);
            if time_us < self.last_us {
                if self.last_us - time_us > LATE_US_MAX {
                    let problem = format!("time goes back by {} us", self.last_us - time_us);
                    return Err(self.lines.error(problem, "sort the trace by time"));
                }
                self.late += 1;
                time_us = self.last_us;
            }
            self.last_us = time_us;
            if offset_bytes.checked_add(length_bytes).is_none_or(|end| end > i64::MAX as u64) {
                let problem = format!("{length_bytes} bytes from {offset_bytes} are on no device");
                return Err(self.lines.error(problem, "correct the line or leave it out"));
            }
            return Ok(Some(TraceRecord { time_us, kind, offset_bytes, length_bytes }));
        }
    }
}

fn failed(path: &Path, problem: String, remedy: &'static str) -> TraceError {
    TraceError { path: path.to_owned(), line: 0, problem, remedy }
}

fn unreadable(path: &Path, error: &std::io::Error) -> TraceError {
    failed(path, error.to_string(), "check its name and permissions")
}

impl Iterator for Trace {
    type Item = Result<TraceRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let result = self.read().transpose();
        self.over = !matches!(result, Some(Ok(_)));
        result
    }
}

/// What a trace holds, from reading all of it once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Read commands.
    pub reads: u64,
    /// Write and unmap commands.
    pub modifications: u64,
    /// Bytes written and unmapped.
    pub modified_bytes: u64,
    /// Time of the last record, in microseconds since the first.
    pub span_us: u64,
    /// Where the highest command ends: what the volume must be large enough for.
    pub end_bytes: u64,
    /// Records whose time was before that of an earlier one.
    pub late: u64,
}

impl Survey {
    /// Reads all of `trace`.
    ///
    /// # Errors
    /// The first error of the trace; or it has no records.
    pub fn of(mut trace: Trace) -> Result<Self, TraceError> {
        let mut survey = Self::default();
        while let Some(record) = trace.next().transpose()? {
            if record.kind == TraceKind::Read {
                survey.reads += 1;
            } else {
                survey.modifications += 1;
                survey.modified_bytes += record.length_bytes;
            }
            survey.span_us = record.time_us;
            survey.end_bytes = survey.end_bytes.max(record.offset_bytes + record.length_bytes);
        }
        survey.late = trace.late;
        if survey.end_bytes == 0 {
            let remedy = "name a trace with records, or another disk of it";
            return Err(trace.lines.error("it has no records".into(), remedy));
        }
        Ok(survey)
    }
}
