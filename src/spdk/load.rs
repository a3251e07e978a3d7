//! Load on a bdev from within the process, for measuring what a layer costs.
//!
//! A closed loop of fixed depth on the current SPDK thread: each completion submits the next command,
//! without futures and without allocation.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use spdk_sys as sys;

use super::bdev::{IoChannel, IoType};
use super::clock;
use super::dma::DmaBuf;
use super::error::{Errno, IoError};
use super::executor::{Sender, oneshot};
use super::guard;

/// Latencies above are counted as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Commands under way at any time.
    pub queue_depth: u32,
    /// Size of each.
    pub io_blocks: u64,
    /// 0 for reads only, 100 for writes only.
    pub write_percent: u8,
    /// The range, from its first block.
    pub first_block: u64,
    /// The range's length.
    pub span_blocks: u64,
    /// No command is started after this.
    pub duration: Duration,
    /// Of the addresses, which are uniformly random multiples of `io_blocks`.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub struct LoadResult {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Commands that failed.
    pub errors: u64,
    /// From the first submission to the last completion.
    pub elapsed: Duration,
    /// The part of it that the thread was on a CPU.
    pub on_cpu: Duration,
    /// Nanoseconds from submission to completion.
    pub latency_ns: Histogram<u64>,
}

impl LoadResult {
    /// CPU time of the thread per successful command. With a reactor, which never sleeps, on a core
    /// of its own this is the inverse of [`Self::iops`]; elsewhere it does not count the time that
    /// the system gave to others.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn cpu_ns_per_command(&self) -> f64 {
        self.on_cpu.as_nanos() as f64 / (self.reads + self.writes) as f64
    }

    /// Successful commands per second.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn iops(&self) -> f64 {
        (self.reads + self.writes) as f64 / self.elapsed.as_secs_f64()
    }
}

struct Shared {
    spec: LoadSpec,
    channel: IoChannel,
    end_ticks: u64,
    start_ticks: u64,
    random: Cell<u64>,
    in_flight: Cell<u32>,
    reads: Cell<u64>,
    writes: Cell<u64>,
    errors: Cell<u64>,
    latency_ticks: RefCell<Histogram<u64>>,
    done: Cell<Option<Sender<(u64, u64)>>>,
}

impl Shared {
    /// xorshift64*: fast, and good enough for addresses.
    fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// One of the commands under way; its own memory until it is not started again.
struct Slot {
    raw: sys::psc_op,
    iov: sys::iovec,
    submitted_ticks: u64,
    shared: Rc<Shared>,
    _buf: DmaBuf,
}

/// Runs the load.
///
/// # Errors
/// `ENOMEM` without memory for the buffers, `EINVAL` for a range shorter than one command.
pub async fn run(channel: &IoChannel, spec: &LoadSpec) -> Result<LoadResult, Errno> {
    let info = channel.desc().info();
    let in_range = spec.first_block.checked_add(spec.span_blocks) <= Some(info.block_count);
    if spec.io_blocks == 0 || spec.span_blocks < spec.io_blocks || !in_range {
        return Err(Errno::INVAL);
    }
    let len = usize::try_from(spec.io_blocks * u64::from(info.block_bytes)).expect("64 bit");
    let mut bufs = Vec::new();
    for _ in 0..spec.queue_depth.max(1) {
        bufs.push(DmaBuf::zeroed(len, info.buf_align.max(4096))?);
    }
    let (done, receiver) = oneshot();
    let histogram = || Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("sound bounds");
    let start_cpu_ns = clock::thread_cpu_ns();
    let start_ticks = clock::now_ticks();
    let duration_ticks = spec.duration.as_nanos() * u128::from(clock::ticks_hz()) / 1_000_000_000;
    let shared = Rc::new(Shared {
        spec: spec.clone(),
        channel: channel.clone(),
        start_ticks,
        end_ticks: start_ticks.saturating_add(u64::try_from(duration_ticks).unwrap_or(u64::MAX)),
        random: Cell::new(spec.seed | 1),
        in_flight: Cell::new(0),
        reads: Cell::new(0),
        writes: Cell::new(0),
        errors: Cell::new(0),
        latency_ticks: RefCell::new(histogram()),
        done: Cell::new(Some(done)),
    });
    for buf in bufs {
        let iov = sys::iovec { iov_base: buf.as_raw().cast(), iov_len: len };
        let slot = Slot {
            raw: sys::psc_op::default(),
            iov,
            submitted_ticks: 0,
            shared: Rc::clone(&shared),
            _buf: buf,
        };
        shared.in_flight.set(shared.in_flight.get() + 1);
        submit(Box::into_raw(Box::new(slot)));
    }
    let (end_ticks, end_cpu_ns) = receiver.await?;
    let mut latency_ns = histogram();
    for step in shared.latency_ticks.borrow().iter_recorded() {
        let ns = clock::ticks_to_duration(step.value_iterated_to()).as_nanos();
        let ns = u64::try_from(ns).unwrap_or(u64::MAX).clamp(1, LATENCY_NS_MAX);
        latency_ns.saturating_record_n(ns, step.count_since_last_iteration());
    }
    Ok(LoadResult {
        reads: shared.reads.get(),
        writes: shared.writes.get(),
        errors: shared.errors.get(),
        elapsed: clock::ticks_to_duration(end_ticks - shared.start_ticks),
        on_cpu: Duration::from_nanos(end_cpu_ns - start_cpu_ns),
        latency_ns,
    })
}

fn submit(slot: *mut Slot) {
    // SAFETY: a box leaked by run(), which only load_done() takes back; not under way now. It holds
    // the channel and the buffer. On the channel's thread: run() and completions are.
    unsafe {
        let shared = &(*slot).shared;
        let spec = &shared.spec;
        let places = spec.span_blocks / spec.io_blocks;
        let random = shared.random();
        let write = (random >> 32) % 100 < u64::from(spec.write_percent);
        // The high half of the product is uniform over the places.
        let place = (u128::from(shared.random()) * u128::from(places)) >> 64;
        let place = u64::try_from(place).expect("below places");
        (*slot).raw = sys::psc_op {
            desc: shared.channel.desc().raw(),
            ch: shared.channel.raw(),
            iovs: &raw mut (*slot).iov,
            iovcnt: 1,
            offset_blocks: spec.first_block + place * spec.io_blocks,
            num_blocks: spec.io_blocks,
            type_: if write { IoType::Write } else { IoType::Read } as u32,
            cb: Some(load_done),
            ctx: slot.cast(),
            ..Default::default()
        };
        (*slot).submitted_ticks = clock::now_ticks();
        sys::psc_op_submit(&raw mut (*slot).raw);
    }
}

extern "C" fn load_done(raw: *mut sys::psc_op) {
    guard("load", || {
        let now = clock::now_ticks();
        // SAFETY: `ctx` is the slot of submit(); SPDK is done with it.
        let (slot, shared) = unsafe {
            let slot = (*raw).ctx.cast::<Slot>();
            (slot, Rc::clone(&(*slot).shared))
        };
        // SAFETY: as above.
        let (ok, kind, submitted) = unsafe {
            (IoError::check(&(*raw).status).is_ok(), (*raw).type_, (*slot).submitted_ticks)
        };
        let counter = match (ok, kind == IoType::Write as u32) {
            (false, _) => &shared.errors,
            (true, true) => &shared.writes,
            (true, false) => &shared.reads,
        };
        counter.set(counter.get() + 1);
        shared.latency_ticks.borrow_mut().saturating_record((now - submitted).max(1));
        if now < shared.end_ticks {
            return submit(slot);
        }
        // SAFETY: leaked by run(), not submitted again.
        drop(unsafe { Box::from_raw(slot) });
        shared.in_flight.set(shared.in_flight.get() - 1);
        if shared.in_flight.get() == 0
            && let Some(done) = shared.done.take()
        {
            done.send((now, clock::thread_cpu_ns()));
        }
    });
}
