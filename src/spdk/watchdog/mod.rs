//! Reactors that stand still, and where.
//!
//! A reactor never sleeps and never waits: while a function on it does not return, no command on it goes on.
//! Each reactor has a poller that notes the time, a *beat*, every [`BEAT`]. What lies between two of them is counted by the
//! reactor itself as a stall if it is too long, so none is missed. A thread of its own looks at the
//! beats: where one is overdue, it has the reactor copy its stack ([`stack`]), and when the stall is over it
//! reports it, once it is known whose doing it was ([`judge`]). A stall without an end in sight is reported before.
//! What the thread that looks does may take its time, or never come to an end: reactors do not wait for it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use spdk_sys as sys;

use super::app;
use super::clock;
use super::executor;
use super::poller::{PollResult, Poller};
use super::thread::{self, spawn_os_thread};
use judge::{Doing, Ended, Overdue, Reports};
use stack::{Shown, Slot, show};
use unwind::{Copied, walk};

mod judge;
mod stack;
mod unwind;

/// Time from one beat to the next.
const BEAT: Duration = Duration::from_millis(1);
/// A reactor whose last beat is no older has not begun to stall.
const BEATING: Duration = Duration::from_micros(1500);
/// Signals that ask for a stack are at least so far apart, on each reactor.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A stall that is reported before its end is reported without a stack if there is none by then.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// What the hypervisor took is asked for in each so manieth look: the file is long.
const LOOKS_PER_STEAL: u32 = 16;

/// A watched reactor.
struct Reactor {
    cpu: u32,
    thread: String,
    stall_ticks: u64,
    /// Of its OS thread; 0 before the first beat.
    os_thread: AtomicI32,
    /// Ticks at the last beat.
    beat: AtomicU64,
    /// Stalls that have ended, and how many ticks they took.
    ended: AtomicU64,
    ended_ticks: AtomicU64,
    longest_ticks: AtomicU64,
    slot: Slot,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    stalls: AtomicU64,
    longest_us: AtomicU64,
    preempted: AtomicU64,
    longest_preempted_us: AtomicU64,
}

/// How a reactor has fared since counting began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorStalls {
    /// Its CPU.
    pub core: u32,
    /// The SPDK thread on it whose beats are watched.
    pub thread: String,
    /// Stalls of both sorts.
    pub stalls: u64,
    /// Of these, those during which the machine had taken the CPU away.
    pub preempted: u64,
    /// The longest of the reactor's own doing, in microseconds.
    pub longest_us: u64,
    /// The longest of the machine's.
    pub longest_preempted_us: u64,
}

/// No reactor begins to beat any more.
static ENDED: AtomicBool = AtomicBool::new(false);
static REACTORS: OnceLock<Vec<&'static Reactor>> = OnceLock::new();

thread_local! {
    /// On a reactor: its beats. Pollers must be dropped on their SPDK thread, which [`stop`] sees to.
    static PULSE: RefCell<Option<ManuallyDrop<Poller>>> = const { RefCell::new(None) };
}

impl Reactor {
    fn new(cpu: u32, thread: String, stall_ticks: u64) -> &'static Self {
        Box::leak(Box::new(Self {
            cpu,
            thread,
            stall_ticks,
            os_thread: AtomicI32::new(0),
            beat: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            ended_ticks: AtomicU64::new(0),
            longest_ticks: AtomicU64::new(0),
            slot: Slot::new(),
            counts: Counts::default(),
        }))
    }

    fn beat(&'static self) {
        // Each time: SPDK may have moved its thread to another reactor.
        self.os_thread.store(self.slot.write_here(&self.beat), Ordering::Relaxed);
        let now = clock::now_ticks();
        let before = self.beat.load(Ordering::Relaxed);
        self.beat.store(now, Ordering::Relaxed);
        let gap = now.saturating_sub(before);
        if before == 0 || gap <= self.stall_ticks {
            return;
        }
        self.ended_ticks.fetch_add(gap, Ordering::Relaxed);
        self.longest_ticks.fetch_max(gap, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// Watches all reactors from now on, until the app stops. On the app thread, when the app is up.
///
/// A stall is what is longer than `limit`; `cpus` are for the thread that looks, as in [`spawn_os_thread`].
pub fn start(limit: Duration, cpus: Option<&'static [u32]>) {
    if let Err(error) = stack::install() {
        tracing::warn!(%error, "reactors that stand still are not reported: no signal");
        return;
    }
    let (sender, receiver) = bounded(1);
    let (found_to, found_by) = bounded::<Vec<&'static Reactor>>(1);
    // First, so that nothing beats where nobody looks.
    let watcher = move || {
        if let Ok(reactors) = found_by.recv() {
            Watcher::new(&reactors, limit).run(&receiver);
        }
    };
    if let Err(error) = spawn_os_thread("presnap-watch", cpus, watcher) {
        tracing::warn!(%error, "reactors that stand still are not reported: no thread");
        return;
    }
    app::on_shutdown(move || Box::pin(stop(sender)));
    executor::spawn(async move {
        let stall_ticks = limit.as_nanos() * u128::from(clock::ticks_hz()) / 1_000_000_000;
        let stall_ticks = u64::try_from(stall_ticks).unwrap_or(u64::MAX);
        let mut found: Vec<Option<&'static Reactor>> = Vec::new();
        for thread in thread::all().await {
            let name = thread.name();
            let made =
                executor::spawn_on(thread, move || async move { watched(name, stall_ticks) });
            found.push(made.await.ok().flatten());
        }
        let reactors: Vec<_> = found.into_iter().flatten().collect();
        let _ = REACTORS.set(reactors.clone());
        let _ = found_to.send(reactors);
    })
    .detach();
}

/// Makes this reactor beat, if no other SPDK thread on it does.
fn watched(thread: String, stall_ticks: u64) -> Option<&'static Reactor> {
    PULSE.with_borrow_mut(|pulse| {
        if pulse.is_some() || ENDED.load(Ordering::SeqCst) {
            return None;
        }
        // SAFETY: reads a thread-local variable.
        let cpu = unsafe { sys::psc_reactor_cpu() };
        let reactor = Reactor::new(cpu, thread, stall_ticks);
        let poller = Poller::register(BEAT, move || {
            reactor.beat();
            PollResult::Idle
        });
        *pulse = Some(ManuallyDrop::new(poller));
        Some(reactor)
    })
}

async fn stop(watcher: Sender<()>) {
    ENDED.store(true, Ordering::SeqCst);
    drop(watcher);
    for thread in thread::all().await {
        let ended = executor::spawn_on(thread, || async {
            let here = PULSE.with_borrow_mut(|pulse| {
                let is_here = pulse.as_ref().is_some_and(|poller| poller.is_local());
                if is_here { pulse.take() } else { None }
            });
            drop(here.map(ManuallyDrop::into_inner));
        });
        let _ = ended.await;
    }
}

/// How the reactors fare; none while nothing is watched. From any thread.
pub fn reactors() -> Vec<ReactorStalls> {
    let reactors = REACTORS.get().map(Vec::as_slice).unwrap_or_default();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let stalls = |reactor: &&'static Reactor| ReactorStalls {
        core: reactor.cpu,
        thread: reactor.thread.clone(),
        stalls: read(&reactor.counts.stalls),
        preempted: read(&reactor.counts.preempted),
        longest_us: read(&reactor.counts.longest_us),
        longest_preempted_us: read(&reactor.counts.longest_preempted_us),
    };
    reactors.iter().map(stalls).collect()
}

/// Starts counting anew. From any thread.
pub fn reset() {
    for reactor in REACTORS.get().into_iter().flatten() {
        let Counts { stalls, longest_us, preempted, longest_preempted_us } = &reactor.counts;
        for counter in [stalls, longest_us, preempted, longest_preempted_us] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

// ---- the thread that looks -----------------------------------------------------------------------

struct Watcher {
    limit: Duration,
    every: Duration,
    began: Instant,
    watches: Vec<Watch>,
    /// This thread's own time without a CPU.
    own: Option<File>,
    /// Time that the machine as a whole stood still: a process that is stopped, a guest that is paused.
    frozen: Duration,
    looks: u32,
}

/// What is known of one reactor.
struct Watch {
    reactor: &'static Reactor,
    schedstat: Option<File>,
    /// Stalls seen, as the reactor counts them.
    seen: u64,
    seen_ticks: u64,
    /// What the machine had taken before the last beat that was seen, see [`Watch::taken`]; and at the look before.
    taken_before: Duration,
    taken_at_last_look: Duration,
    beat_at_last_look: u64,
    stolen: Duration,
    /// The beat that was overdue when a stack was asked for.
    asked_at_beat: u64,
    asked_at: Duration,
    reported_at_beat: u64,
    /// Where it was, if that was reported before the end.
    place: Option<String>,
    own: Reports,
    machine: Reports,
}

impl Watcher {
    fn new(reactors: &[&'static Reactor], limit: Duration) -> Self {
        let watch = |reactor: &&'static Reactor| Watch {
            reactor,
            schedstat: None,
            seen: 0,
            seen_ticks: 0,
            taken_before: Duration::ZERO,
            taken_at_last_look: Duration::ZERO,
            beat_at_last_look: 0,
            stolen: Duration::ZERO,
            asked_at_beat: 0,
            asked_at: Duration::ZERO,
            reported_at_beat: 0,
            place: None,
            own: Reports::default(),
            machine: Reports::default(),
        };
        Self {
            limit,
            every: (limit / 2).clamp(Duration::from_millis(1), Duration::from_millis(100)),
            began: Instant::now(),
            watches: reactors.iter().map(watch).collect(),
            own: File::open("/proc/thread-self/schedstat").ok(),
            frozen: Duration::ZERO,
            looks: 0,
        }
    }

    /// Until the other end is dropped.
    fn run(mut self, stop: &Receiver<()>) {
        let mut at = Instant::now();
        let mut waited = self.own.as_ref().and_then(run_delay).unwrap_or_default();
        while stop.recv_timeout(self.every) == Err(RecvTimeoutError::Timeout) {
            let now = Instant::now();
            let slept = now.duration_since(at);
            at = now;
            let before = std::mem::replace(
                &mut waited,
                self.own.as_ref().and_then(run_delay).unwrap_or_default(),
            );
            let waited = waited.saturating_sub(before);
            self.frozen += judge::stood_still(slept, self.every, waited, self.limit);
            if self.look() {
                // A report takes its time.
                at = Instant::now();
            }
        }
    }

    /// Whether anything was reported.
    fn look(&mut self) -> bool {
        let now = self.began.elapsed();
        if self.looks.is_multiple_of(LOOKS_PER_STEAL) {
            self.look_at_stolen();
        }
        self.looks = self.looks.wrapping_add(1);
        let (mut stolen_is_new, mut has_told) = (false, false);
        for at in 0..self.watches.len() {
            let ended = self.watches[at].ended();
            if ended.count > 0 && !std::mem::replace(&mut stolen_is_new, true) {
                self.look_at_stolen();
            }
            let (limit, frozen) = (self.limit, self.frozen);
            let watch = &mut self.watches[at];
            let taken = watch.taken() + frozen;
            if ended.count > 0 {
                let taken_meanwhile = taken.saturating_sub(watch.taken_before);
                let doing = judge::judge(ended, taken_meanwhile, limit);
                has_told |= watch.tell(ended, doing, now);
            }
            has_told |= watch.look_at_beat(limit, taken, now);
        }
        has_told
    }

    fn look_at_stolen(&mut self) {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        for watch in &mut self.watches {
            watch.stolen = stolen(&stat, watch.reactor.cpu).unwrap_or(watch.stolen);
        }
    }
}

impl Watch {
    /// Stalls that have ended since the last look.
    fn ended(&mut self) -> Ended {
        let reactor = self.reactor;
        let count = reactor.ended.load(Ordering::Acquire);
        let ticks = reactor.ended_ticks.load(Ordering::Relaxed);
        if count == self.seen {
            return Ended::default();
        }
        let longest = reactor.longest_ticks.swap(0, Ordering::Relaxed);
        let ended = Ended {
            count: count - self.seen,
            total: clock::ticks_to_duration(ticks - self.seen_ticks),
            longest: clock::ticks_to_duration(longest),
        };
        (self.seen, self.seen_ticks) = (count, ticks);
        ended
    }

    /// Time that the machine has taken from the reactor since the beginning: others ran on its CPU, or the
    /// hypervisor gave it none.
    fn taken(&mut self) -> Duration {
        let os_thread = self.reactor.os_thread.load(Ordering::Relaxed);
        if self.schedstat.is_none() && os_thread != 0 {
            self.schedstat = File::open(format!("/proc/self/task/{os_thread}/schedstat")).ok();
        }
        let waited = self.schedstat.as_ref().and_then(run_delay).unwrap_or_default();
        waited + self.stolen
    }

    /// Asks for a stack, and reports a long stall: whether it has.
    fn look_at_beat(&mut self, limit: Duration, taken: Duration, now: Duration) -> bool {
        let beat = self.reactor.beat.load(Ordering::Relaxed);
        let age = clock::ticks_to_duration(clock::now_ticks().saturating_sub(beat));
        let taken_at_last_look = std::mem::replace(&mut self.taken_at_last_look, taken);
        let is_new = std::mem::replace(&mut self.beat_at_last_look, beat) != beat;
        if beat == 0 {
            return false;
        }
        if age <= BEATING {
            self.taken_before = taken;
        } else if is_new {
            self.taken_before = taken_at_last_look;
        }
        let overdue = judge::overdue(age, taken.saturating_sub(self.taken_before), limit);
        // One report in a while, so no more stacks than that.
        if overdue == Overdue::No || !self.own.is_due(now) {
            return false;
        }
        let since_asked = now.saturating_sub(self.asked_at);
        if self.asked_at_beat != beat {
            if since_asked >= ASK_EVERY {
                let os_thread = self.reactor.os_thread.load(Ordering::Relaxed);
                // One that is busy has not come out of the kernel since it was asked: it will write yet.
                let _ = self.reactor.slot.ask(os_thread);
                (self.asked_at_beat, self.asked_at) = (beat, now);
            }
            return false;
        }
        if overdue != Overdue::Long || self.reported_at_beat == beat {
            return false;
        }
        let stack = self.reactor.slot.take(beat);
        if stack.is_none() && since_asked < ANSWER_MAX {
            return false;
        }
        self.reported_at_beat = beat;
        let Shown { place, frames } = shown(stack);
        let (core, ms) = (self.reactor.cpu, age.as_millis());
        tracing::error!("reactor on core {core} stands still for {ms} ms now, in {place}{frames}");
        self.place = Some(place);
        true
    }

    /// Counts and reports stalls that have ended: whether it has reported.
    fn tell(&mut self, ended: Ended, doing: Doing, now: Duration) -> bool {
        let counts = &self.reactor.counts;
        let longest_us = u64::try_from(ended.longest.as_micros()).unwrap_or(u64::MAX);
        counts.stalls.fetch_add(ended.count, Ordering::Relaxed);
        let longest = match doing {
            Doing::Own => &counts.longest_us,
            Doing::Machine => {
                counts.preempted.fetch_add(ended.count, Ordering::Relaxed);
                &counts.longest_preempted_us
            }
        };
        longest.fetch_max(longest_us, Ordering::Relaxed);
        let (stack, place) = (self.reactor.slot.take(self.asked_at_beat), self.place.take());
        let reports = match doing {
            Doing::Own => &mut self.own,
            Doing::Machine => &mut self.machine,
        };
        let Some(untold) = reports.add(ended, now) else { return false };
        let (core, ms) = (self.reactor.cpu, ended.longest.as_millis());
        let more = match (untold.count + ended.count - 1, untold.longest) {
            (0, _) => String::new(),
            (count, longest) => {
                let longest = longest.max(if ended.count > 1 { ended.longest } else { longest });
                format!("; {count} more since the last report, up to {} ms", longest.as_millis())
            }
        };
        match doing {
            Doing::Own => {
                let Shown { place, frames } = match (place, stack) {
                    (Some(place), _) => Shown { place, frames: String::new() },
                    (None, stack) => shown(stack),
                };
                tracing::warn!(
                    "reactor on core {core} stood still for {ms} ms, in {place}{more}{frames}"
                );
            }
            // Where it was then has nothing to do with it.
            Doing::Machine => tracing::info!(
                "reactor on core {core} had no CPU for {ms} ms: the machine gave it to others{more}"
            ),
        }
        true
    }
}

/// There is no stack if the stall was over before one was asked for, or the reactor has not left the kernel since.
fn shown(stack: Option<Copied>) -> Shown {
    let unknown = || Shown { place: "a place that is not known".to_owned(), frames: String::new() };
    stack.map_or_else(unknown, |stack| show(&walk(&stack)))
}

/// How long a thread has waited for a CPU, by its `schedstat`.
fn run_delay(file: &File) -> Option<Duration> {
    let mut text = [0; 96];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// How long the hypervisor has kept a CPU from this machine, by `/proc/stat`, in steps of 10 ms.
fn stolen(stat: &str, cpu: u32) -> Option<Duration> {
    let name = format!("cpu{cpu}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(name.as_str()))?;
    line.split(' ').nth(8)?.parse::<u64>().ok().map(|ticks| Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a beat is not noted.
    #[test]
    fn what_lies_between_two_beats_is_counted_if_it_is_too_long() {
        let count = |reactor: &Reactor| reactor.ended.load(Ordering::Relaxed);
        let patient = Reactor::new(0, String::new(), u64::MAX);
        patient.beat();
        let first = patient.beat.load(Ordering::Relaxed);
        assert!(first > 0 && patient.os_thread.load(Ordering::Relaxed) > 0);
        let (began, beats) = (Instant::now(), 1_000_000);
        for _ in 0..beats {
            patient.beat();
        }
        println!("a beat takes {:?}", began.elapsed() / beats);
        assert!(patient.beat.load(Ordering::Relaxed) > first);
        assert_eq!(count(patient), 0);
        let hasty = Reactor::new(0, String::new(), 1_000_000);
        hasty.beat();
        let began = hasty.beat.load(Ordering::Relaxed);
        while clock::now_ticks() <= began + 1_000_000 {}
        assert_eq!(count(hasty), 0, "it is the reactor that counts");
        hasty.beat();
        assert_eq!(count(hasty), 1);
        assert!(hasty.longest_ticks.load(Ordering::Relaxed) > 1_000_000);
    }

    #[test]
    fn what_the_hypervisor_takes_is_read() {
        let stat = "cpu  1 2 3 4 5 6 7 80 0 0\ncpu1 1 2 3 4 5 6 7 8 0 0\ncpu12 1 2 3 4 5 6 7 21 0 0\nintr 9\n";
        assert_eq!(stolen(stat, 1), Some(Duration::from_millis(80)));
        assert_eq!(stolen(stat, 12), Some(Duration::from_millis(210)));
        assert_eq!(stolen(stat, 2), None);
    }
}
