//! The agent: a process that is told over JSON-RPC what commands to send to which bdev.
//!
//! It is this test program again, started with one ignored test that runs a presnap target with
//! more methods (`test_*`). Its bdevs may be namespaces of another process over NVMe/TCP, or
//! volumes of its own.
//!
//! What it writes describes itself: each 4 KiB block is full of pairs (number of the write, number
//! of the block). Who submitted what, and when it was acknowledged, is in a log file that outlives
//! the process. See `cut.rs` for what can be concluded from these two.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use presnap::cli::{self, LogLevel, ServeOptions};
use presnap::spdk::bdev::{Desc, IoChannel};
use presnap::spdk::dma::DmaBuf;
use presnap::spdk::error::{Errno, IoError};
use presnap::spdk::executor::{self, Receiver, join_all};
use presnap::spdk::rpc::{self, RpcError};
use presnap::spdk::thread::{self, Thread};
use serde::Deserialize;
use serde_json::{Value, json};

pub const SOCKET_VARIABLE: &str = "PRESNAP_TEST_AGENT_SOCKET";
pub const CORES_VARIABLE: &str = "PRESNAP_TEST_AGENT_CORES";
pub const MEMORY_VARIABLE: &str = "PRESNAP_TEST_AGENT_MEMORY_MIB";

/// Bytes that one pair repeats over.
pub const BLOCK_BYTES: usize = 4096;
/// Longest write: what NVMe/TCP takes as one command.
pub const WRITE_BLOCKS_MAX: usize = 32;
/// Bytes per command of a dump.
const DUMP_BYTES: usize = 128 << 10;
const DUMP_QUEUE_DEPTH: usize = 16;
/// Bytes of a [`LogEntry`] in the file.
const LOG_ENTRY_BYTES: usize = 32;

/// Runs the agent; no test by itself.
#[test]
#[ignore = "started by tests that need an agent"]
fn process() {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else { return };
    rpc::register("test_now", |_| async { Ok(json!(now_ns())) });
    rpc::register("test_dump", |params| async { dump(rpc::params(params)?).await });
    rpc::register("test_io", |params| async { io(rpc::params(params)?).await });
    rpc::register("test_load_start", |params| async { load_start(rpc::params(params)?).await });
    rpc::register("test_load_stop", |params| async { load_stop(rpc::params(params)?).await });
    rpc::register("test_block", |params| async { block(rpc::params(params)?).await });
    rpc::register("test_predictor_dies", |_| async {
        presnap::volume::predictor::let_it_die();
        Ok(json!(true))
    });
    crate::zcopy::register();
    let options = ServeOptions {
        config: None,
        cores: std::env::var(CORES_VARIABLE).expect("given"),
        memory_mib: std::env::var(MEMORY_VARIABLE).ok().and_then(|mib| mib.parse().ok()),
        hugepage_dir: None,
        no_pci: true,
        catalog_cores: None,
        predictor_cores: None,
        shm_id: None,
        num_trace_entries: Some(0),
        wait_for_rpc: false,
        log_level: LogLevel::Notice,
        stall_ms: 10,
        stop_seconds: 60,
        socket: PathBuf::from(socket),
    };
    cli::serve(&options).expect("served");
}

/// Nanoseconds of the agent's own clock.
fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Zero stands for "never".
    1 + START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn refused(what: &str, errno: Errno) -> RpcError {
    RpcError::errno(errno, format!("{what}: {errno}"))
}

fn open(bdev: &str, writable: bool) -> Result<IoChannel, RpcError> {
    let desc = Desc::open(bdev, writable, |_| {}).map_err(|error| refused(bdev, error))?;
    desc.channel().map_err(|error| refused(bdev, error))
}

fn buffer(len: usize) -> Result<DmaBuf, RpcError> {
    DmaBuf::zeroed(len, 4096).map_err(|error| refused("memory", error))
}

// ---- reactors that stand still ------------------------------------------------------------------

#[derive(Deserialize)]
struct Block {
    /// 0 for the first reactor, and so on.
    reactor: usize,
    ms: u64,
    /// Sleep in the kernel instead of computing.
    sleep: bool,
}

/// Blocks a reactor: the first one before the answer, others after it.
async fn block(params: Block) -> Result<Value, RpcError> {
    let Block { reactor, ms, sleep } = params;
    let block = move || if sleep { sleep_on_a_reactor(ms) } else { stand_still(ms) };
    if reactor == 0 {
        block();
        return Ok(json!(true));
    }
    let all = thread::all().await;
    let mut groups = all.into_iter().filter(|thread| thread.name().contains("poll_group"));
    let thread = groups.nth(reactor).ok_or_else(|| RpcError::invalid_params("no such reactor"))?;
    thread.send(block);
    Ok(json!(true))
}

#[inline(never)]
fn stand_still(ms: u64) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(ms) {
        std::hint::black_box(ms);
    }
}

#[inline(never)]
fn sleep_on_a_reactor(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
    std::hint::black_box(ms);
}

// ---- whole bdevs --------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Dump {
    bdev: String,
    file: PathBuf,
}

/// Reads a whole bdev into a file.
async fn dump(params: Dump) -> Result<Value, RpcError> {
    let channel = open(&params.bdev, false)?;
    let info = channel.desc().info();
    let file = File::create(&params.file).expect("a file for the dump");
    let piece = (DUMP_BYTES / info.block_bytes as usize) as u64;
    let next = Cell::new(0);
    let readers = (0..DUMP_QUEUE_DEPTH).map(|_| async {
        let mut buf = buffer(DUMP_BYTES)?;
        loop {
            let at = next.get();
            let count = piece.min(info.block_count - at);
            if count == 0 {
                return Ok(());
            }
            next.set(at + count);
            let (back, result) = channel.read(buf, at, count).await;
            result.map_err(|error| {
                RpcError::errno(Errno::IO, format!("block {at} of {}: {error}", info.name))
            })?;
            buf = back;
            let bytes = count as usize * info.block_bytes as usize;
            let offset = at * u64::from(info.block_bytes);
            file.write_all_at(&buf[..bytes], offset).expect("written");
        }
    });
    join_all(readers).await.into_iter().collect::<Result<(), RpcError>>()?;
    Ok(json!(info.bytes()))
}

// ---- single commands ----------------------------------------------------------------------------

#[derive(Deserialize)]
struct Io {
    bdev: String,
    op: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    bytes: u64,
    /// What to write.
    #[serde(default)]
    fill: u8,
}

/// One command; the answer is `{ok, error, sct, sc}`.
async fn io(params: Io) -> Result<Value, RpcError> {
    let writable = !matches!(params.op.as_str(), "read" | "reset");
    let channel = open(&params.bdev, writable)?;
    let block_bytes = u64::from(channel.desc().block_bytes());
    let (at, count) = (params.offset / block_bytes, params.bytes / block_bytes);
    let result = match params.op.as_str() {
        "write" => {
            let mut buf = buffer(params.bytes as usize)?;
            buf.fill(params.fill);
            channel.write(buf, at, count).await.1
        }
        "read" => channel.read(buffer(params.bytes as usize)?, at, count).await.1,
        "write_zeroes" => channel.write_zeroes(at, count).await,
        "unmap" => channel.unmap(at, count).await,
        "flush" => channel.flush().await,
        "reset" => channel.reset().await,
        other => return Err(RpcError::invalid_params(format!("no op {other}"))),
    };
    Ok(outcome(result))
}

/// `{ok, error, sct, sc}`.
pub fn outcome(result: Result<(), IoError>) -> Value {
    match result {
        Ok(()) => json!({"ok": true}),
        Err(error) => {
            let (sct, sc) = error.nvme();
            json!({"ok": false, "error": error.to_string(), "sct": sct, "sc": sc})
        }
    }
}

// ---- load ---------------------------------------------------------------------------------------

/// What `test_load_start` takes.
#[derive(Clone, Deserialize, serde::Serialize)]
pub struct Load {
    /// Names it for `test_load_stop`.
    pub name: String,
    /// Ways to the same volume; each has its own queue.
    pub bdevs: Vec<String>,
    /// Whether each queue is on another reactor, in turn.
    pub spread: bool,
    /// Writes under way per queue.
    pub queue_depth: usize,
    /// Log file, made by this.
    pub log: PathBuf,
    /// Seed of the random choices.
    pub seed: u64,
    /// The last write's number so far.
    pub numbers_from: u64,
    /// Write everything once, in order, instead of random writes until stopped.
    pub fill: bool,
    /// Pause of each writer between its writes, in microseconds.
    pub pause_us: u64,
}

struct Running {
    shared: Arc<Shared>,
    writers: Vec<Receiver<u64>>,
}

/// What the writers of a load share.
struct Shared {
    stop: AtomicBool,
    /// Next block of a fill.
    next: AtomicU64,
    log: LogWriter,
    params: Load,
    blocks: u64,
}

thread_local! {
    static LOADS: RefCell<HashMap<String, Running>> = RefCell::default();
}

/// A write as the log has it.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry {
    /// Its number: 1, 2, ... in order of submission.
    pub number: u64,
    /// First block.
    pub block: u32,
    /// Blocks.
    pub count: u32,
    /// Just before it was submitted, by the agent's clock.
    pub submitted_ns: u64,
    /// Just after it was acknowledged; 0 if it was not.
    pub acknowledged_ns: u64,
}

struct LogWriter {
    file: File,
    numbers_from: u64,
    entries: AtomicU64,
    failed: AtomicU64,
}

impl LogWriter {
    fn submit(&self, block: u32, count: u32) -> u64 {
        let index = self.entries.fetch_add(1, Ordering::Relaxed);
        let number = self.numbers_from + index + 1;
        let mut bytes = [0; LOG_ENTRY_BYTES];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..12].copy_from_slice(&block.to_le_bytes());
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        bytes[16..24].copy_from_slice(&now_ns().to_le_bytes());
        self.file.write_all_at(&bytes, index * LOG_ENTRY_BYTES as u64).expect("logged");
        number
    }

    fn acknowledge(&self, number: u64) {
        let index = number - self.numbers_from - 1;
        let at = index * LOG_ENTRY_BYTES as u64 + 24;
        self.file.write_all_at(&now_ns().to_le_bytes(), at).expect("logged");
    }
}

/// Reads a log, also one that is being written: as far as it has no gap.
pub fn read_log(path: &Path) -> Vec<LogEntry> {
    let bytes = std::fs::read(path).expect("a log");
    let entries = bytes.chunks_exact(LOG_ENTRY_BYTES).map(|entry| {
        let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8"));
        let short = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4"));
        LogEntry {
            number: long(0),
            block: short(8),
            count: short(12),
            submitted_ns: long(16),
            acknowledged_ns: long(24),
        }
    });
    entries.take_while(|entry| entry.number != 0).collect()
}

/// xorshift64*: good enough, and the same for the same seed, which is not 0.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % bound
    }
}

/// Which blocks a writer may write, so that no two writes under way overlap: of the volume's first
/// half every n-th (so that chunks are shared between queues), of the second half one stretch (so
/// that writes may span chunks).
struct Area {
    writer: u64,
    writers: u64,
    half: u64,
}

impl Area {
    fn choose(&self, random: &mut Random) -> (u32, u32) {
        if random.below(10) < 7 {
            let rounds = self.half / self.writers;
            ((random.below(rounds) * self.writers + self.writer) as u32, 1)
        } else {
            let stretch = self.half / self.writers;
            let count = 1 + random.below((WRITE_BLOCKS_MAX as u64).min(stretch));
            let within = random.below(stretch - count + 1);
            ((self.half + self.writer * stretch + within) as u32, count as u32)
        }
    }
}

async fn load_start(params: Load) -> Result<Value, RpcError> {
    let threads: Vec<Thread> = if params.spread {
        // NVMe-oF's: one on each reactor.
        let all = thread::all().await;
        all.into_iter().filter(|thread| thread.name().contains("poll_group")).collect()
    } else {
        vec![Thread::app()]
    };
    assert!(params.spread == (threads.len() > 1), "too few threads: {threads:?}");
    let descs: Vec<Desc> = params
        .bdevs
        .iter()
        .map(|bdev| Desc::open(bdev, true, |_| {}).map_err(|error| refused(bdev, error)))
        .collect::<Result<_, _>>()?;
    let log = LogWriter {
        file: File::create(&params.log).expect("a file for the log"),
        numbers_from: params.numbers_from,
        entries: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    let blocks = descs[0].info().bytes() / BLOCK_BYTES as u64;
    let name = params.name.clone();
    let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let shared = Arc::new(Shared { stop, next, log, params, blocks });
    let mut writers = Vec::new();
    for (queue, desc) in descs.iter().enumerate() {
        for depth in 0..shared.params.queue_depth {
            let writer = (queue * shared.params.queue_depth + depth) as u64;
            let (desc, shared) = (desc.clone(), Arc::clone(&shared));
            let thread = threads[queue % threads.len()];
            writers.push(executor::spawn_on(thread, move || write_on(desc, shared, writer)));
        }
    }
    LOADS.with_borrow_mut(|loads| loads.insert(name, Running { shared, writers }));
    Ok(Value::Bool(true))
}

/// One writer: one write after the other, until stopped or failed.
async fn write_on(desc: Desc, shared: Arc<Shared>, writer: u64) -> u64 {
    let channel = desc.channel().expect("a channel");
    let params = &shared.params;
    let writers = (params.bdevs.len() * params.queue_depth) as u64;
    let mut random = Random(params.seed ^ ((writer + 1) << 32) | 1);
    let area = Area { writer, writers, half: shared.blocks / 2 };
    let mut data = DmaBuf::zeroed(WRITE_BLOCKS_MAX * BLOCK_BYTES, 4096).expect("memory");
    let mut written = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let (block, count) = if params.fill {
            let block = shared.next.fetch_add(WRITE_BLOCKS_MAX as u64, Ordering::Relaxed);
            if block >= shared.blocks {
                break;
            }
            (block as u32, (shared.blocks - block).min(WRITE_BLOCKS_MAX as u64) as u32)
        } else {
            area.choose(&mut random)
        };
        let (back, good) = write_logged(&channel, &shared.log, data, block, count).await;
        data = back;
        if !good {
            break;
        }
        written += 1;
        if params.pause_us > 0 {
            executor::sleep(Duration::from_micros(params.pause_us)).await;
        }
    }
    written
}

async fn write_logged(
    channel: &IoChannel,
    log: &LogWriter,
    mut data: DmaBuf,
    block: u32,
    count: u32,
) -> (DmaBuf, bool) {
    let number = log.submit(block, count);
    for (index, bytes) in data.chunks_mut(BLOCK_BYTES).take(count as usize).enumerate() {
        let mut pair = [0; 16];
        pair[..8].copy_from_slice(&number.to_le_bytes());
        pair[8..].copy_from_slice(&(u64::from(block) + index as u64).to_le_bytes());
        for place in bytes.chunks_exact_mut(16) {
            place.copy_from_slice(&pair);
        }
    }
    let per_block = BLOCK_BYTES as u64 / u64::from(channel.desc().block_bytes());
    let at = u64::from(block) * per_block;
    let (data, result) = channel.write(data, at, u64::from(count) * per_block).await;
    match &result {
        Ok(()) => log.acknowledge(number),
        Err(error) => {
            eprintln!("write {number} of {count} blocks at {block}: {error}");
            log.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
    (data, result.is_ok())
}

#[derive(Deserialize)]
struct Name {
    name: String,
    /// Let it end by itself (a fill).
    #[serde(default)]
    wait: bool,
}

/// Waits for the writes under way; the answer is `{written, failed}`.
async fn load_stop(params: Name) -> Result<Value, RpcError> {
    let running = LOADS.with_borrow_mut(|loads| loads.remove(&params.name));
    let running = running.ok_or_else(|| RpcError::invalid_params("no such load"))?;
    if !params.wait {
        running.shared.stop.store(true, Ordering::Relaxed);
    }
    let written = join_all(running.writers).await.into_iter().sum::<Result<u64, _>>();
    let written = written.map_err(|error| RpcError::invalid_params(error.to_string()))?;
    let failed = running.shared.log.failed.load(Ordering::Relaxed);
    Ok(json!({"written": written, "failed": failed}))
}
