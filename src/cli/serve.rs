//! Options of `presnap serve`. Reading them is all that happens here: the target itself is
//! `target.rs`, which needs SPDK.

use std::path::PathBuf;

use clap::Args;

/// How to start the target.
#[allow(clippy::doc_markdown, reason = "these comments are the help text, shown as they are")]
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// SPDK JSON configuration to load at start, such as one written by save_config
    #[arg(long, short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Cores for SPDK's reactors: a hexadecimal mask or a list
    #[arg(long, short = 'm', value_name = "MASK", default_value = "0x1", value_parser = cores)]
    pub cores: String,

    /// Hugepage memory to take, in MiB; absent: all that is free
    #[arg(long, short = 's', value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(64..))]
    pub memory_mib: Option<u32>,

    /// Folder where hugepages are mounted; absent: found by itself
    #[arg(long, value_name = "DIR")]
    pub hugepage_dir: Option<PathBuf>,

    /// Do not look for PCIe devices: no local NVMe, but nothing is taken from the kernel either
    #[arg(long)]
    pub no_pci: bool,

    /// Cores that the catalog's thread may run on, as a list; absent: every core of the machine but
    /// the reactors', if there are others
    #[arg(long, value_name = "LIST", value_parser = core_list)]
    pub catalog_cores: Option<CoreList>,

    /// Cores that the predictor's thread may run on, as a list; absent: every core of the machine but
    /// the reactors', if there are others
    #[arg(long, value_name = "LIST", value_parser = core_list)]
    pub predictor_cores: Option<CoreList>,

    /// Number shared by SPDK processes that use the same memory; absent: none is shared
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub shm_id: Option<i32>,

    /// Entries per core of SPDK's trace file in /dev/shm, a power of two; 0: no file and no tracing.
    /// Absent: SPDK's default, a file of some 130 MiB that stays when the process is killed
    #[arg(long, value_name = "N", value_parser = trace_entries)]
    pub num_trace_entries: Option<u32>,

    /// Start nothing until framework_start_init is called
    #[arg(long)]
    pub wait_for_rpc: bool,

    /// Least important messages of SPDK to log
    #[arg(long, value_enum, default_value_t = LogLevel::Notice)]
    pub log_level: LogLevel,

    /// Report a reactor that stands still for longer, in ms; 0: do not look. See "A reactor that stands
    /// still" in docs/operating.md
    #[arg(long, value_name = "MS", default_value_t = STALL_MS)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub stall_ms: u32,

    /// Time for a stop, in seconds: what has not ended then is named, and the process ended with
    /// status 1; 0: as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_SECONDS)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub stop_seconds: u32,

    /// JSON-RPC socket to listen on: the value of `--socket`.
    #[arg(skip)]
    pub socket: PathBuf,
}

/// A reactor that stands still for longer is reported, in milliseconds: a hundred times what a command takes.
const STALL_MS: u32 = 10;

/// A stop takes no longer, in seconds: as much as service managers give it, or less.
const STOP_SECONDS: u32 = 60;

/// Core numbers, ascending, none twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<u16>);

/// SPDK's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// And warnings.
    Warn,
    /// And what an operator wants to know.
    Notice,
    /// And details.
    Info,
    /// Everything.
    Debug,
}

/// Greatest core number taken, plus one (DPDK's `RTE_MAX_LCORE` is 128 in SPDK 20.07's build; newer
/// ones have more).
const CORES_MAX: u16 = 1024;

/// Checks a reactor mask in either of the forms that SPDK takes, `0x3` and `[0,1]`; a bare list
/// gets its brackets.
fn cores(text: &str) -> Result<String, String> {
    if let Some(digits) = text.strip_prefix("0x") {
        let hex = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit());
        let fits = digits.len() <= usize::from(CORES_MAX) / 4;
        if !(hex && fits && digits.chars().any(|c| c != '0')) {
            return Err("a mask is 0x and hexadecimal digits, not all zero, such as 0x3".into());
        }
        return Ok(text.to_owned());
    }
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    core_list(inner).map(|CoreList(cores)| {
        let cores: Vec<_> = cores.iter().map(u16::to_string).collect();
        format!("[{}]", cores.join(","))
    })
}

/// The cores in what [`cores`] gives.
#[cfg_attr(not(feature = "spdk"), allow(dead_code, reason = "only a target has cores"))]
pub(super) fn cores_in(text: &str) -> Vec<u16> {
    let Some(digits) = text.strip_prefix("0x") else {
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        return core_list(inner).map(|CoreList(cores)| cores).unwrap_or_default();
    };
    let mut cores = Vec::new();
    for (at, digit) in (0..).step_by(4).zip(digits.chars().rev()) {
        let bits = digit.to_digit(16).unwrap_or_default();
        cores.extend((0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| at + bit));
    }
    cores
}

/// SPDK would take other numbers and write past its ring.
fn trace_entries(text: &str) -> Result<u32, String> {
    let entries = text.parse::<u32>().ok().filter(|count| *count == 0 || count.is_power_of_two());
    entries.ok_or_else(|| format!("{text:?} is neither 0 nor a power of two such as 32768"))
}

/// Reads a list such as `0,2-5`.
fn core_list(text: &str) -> Result<CoreList, String> {
    let number = |text: &str| {
        let core = text.trim().parse::<u16>().ok().filter(|core| *core < CORES_MAX);
        core.ok_or_else(|| {
            format!("{text:?} is not a core: give a list such as 0,2-5, or a mask such as 0x3")
        })
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => cores.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("{part:?} is empty: give the lower core first"));
                }
                cores.extend(first..=last);
            }
        }
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(CoreList(cores))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_masks_and_lists_are_taken() {
        assert_eq!(cores("0x3").unwrap(), "0x3");
        assert_eq!(cores("[0,1]").unwrap(), "[0,1]");
        assert_eq!(cores("2-4,0").unwrap(), "[0,2,3,4]");
        assert_eq!(core_list("3,1-2,2").unwrap(), CoreList(vec![1, 2, 3]));
        for bad in ["", "0x", "0x0", "0xg", "[", "[]", "a", "4-2", "1,,2", "1024", "-1", "0-70000"]
        {
            assert!(cores(bad).is_err(), "{bad}");
        }
        assert_eq!(cores_in("0x8013"), [0, 1, 4, 15]);
        assert_eq!(cores_in("[0,2,3]"), [0, 2, 3]);
    }
}
