//! Lines of a file, with their numbers.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::TraceError;

/// A longer line is of no trace: file names of iologs may be long, but not that long.
const LINE_BYTES_MAX: usize = 8192;

pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
    number: u64,
    /// The line read last is to be given once more.
    again: bool,
}

impl Lines {
    pub fn new(path: PathBuf, reader: BufReader<Box<dyn Read>>) -> Self {
        Self { path, reader, line: Vec::new(), number: 0, again: false }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something is wrong with the line read last.
    pub fn error(&self, problem: String, remedy: &'static str) -> TraceError {
        TraceError { path: self.path.clone(), line: self.number, problem, remedy }
    }

    /// The next line that is not blank, without what ends it.
    pub fn next_line(&mut self) -> Result<Option<&str>, TraceError> {
        loop {
            if !std::mem::take(&mut self.again) {
                self.line.clear();
                self.number += 1;
                let mut limited = self.reader.by_ref().take(LINE_BYTES_MAX as u64);
                let read = limited.read_until(b'\n', &mut self.line);
                let bytes = read.map_err(|error| {
                    self.error(error.to_string(), "check that the file is complete")
                })?;
                if bytes == 0 {
                    return Ok(None);
                }
                if bytes == LINE_BYTES_MAX {
                    let problem = format!("the line has {LINE_BYTES_MAX} bytes or more");
                    return Err(self.error(problem, "name a text file of a known format"));
                }
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        match std::str::from_utf8(self.line.trim_ascii()) {
            Ok(line) => Ok(Some(line)),
            Err(_) => {
                Err(self.error("it is not text".into(), "name a text file of a known format"))
            }
        }
    }

    /// Gives the line read last once more.
    pub fn again(&mut self) {
        self.again = true;
    }
}
