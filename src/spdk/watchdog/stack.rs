//! Stacks of other OS threads: copied by a signal, made readable later and elsewhere.
//!
//! The signal may come in the middle of anything, with the locks of malloc or of the loader held. So its handler, in the shim,
//! copies registers and up to 32 KiB of the stack, within the bounds that the thread has told before, and that is all: some microseconds, without
//! a function of any library. Finding callers ([`unwind`](super::unwind)) and names ([`show`]) is for the thread that looks.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicU64;

use spdk_sys as sys;

use super::unwind::Copied;
use crate::spdk::error::Errno;

/// Frames that a report shows.
const FRAMES_SHOWN: usize = 24;

/// Takes the signal that asks for a stack.
///
/// # Errors
/// What the system says.
pub fn install() -> Result<(), Errno> {
    // SAFETY: legal on any OS thread; the handler touches a psc_stack of a `Slot` only.
    Errno::check(unsafe { sys::psc_stack_install() })
}

/// Where one OS thread writes its stack. It has to live for ever, since that may happen late.
pub struct Slot(UnsafeCell<sys::psc_stack>);

// SAFETY: C hands what is inside from thread to thread by its atomic `state`: the watched thread writes
// between psc_stack_ask() and psc_stack_take(), and only the one OS thread that calls these two reads, after them.
unsafe impl Sync for Slot {}

impl Slot {
    /// An empty one.
    pub fn new() -> Self {
        Self(UnsafeCell::new(sys::psc_stack::default()))
    }

    /// This OS thread writes its stacks here from now on, with the `mark` of that moment. Its number.
    pub fn write_here(&'static self, mark: &'static AtomicU64) -> i32 {
        // SAFETY: both live for ever; the mark is read atomically.
        unsafe { sys::psc_stack_of_this_thread(self.0.get(), mark.as_ptr()) }
    }

    /// Has an OS thread that writes here do so. Only one OS thread calls this and [`Slot::take`].
    ///
    /// # Errors
    /// `EBUSY` while it has not done so since the last time; `ESRCH` when it has ended.
    pub fn ask(&self, os_thread: i32) -> Result<(), Errno> {
        // SAFETY: the place lives for ever, and the signal is handled (`install`).
        Errno::check(unsafe { sys::psc_stack_ask(self.0.get(), os_thread) })
    }

    /// What was written since it was asked for, if the mark was this then. An answer that came later, when the thread had
    /// gone on, is thrown away.
    pub fn take(&self, mark: u64) -> Option<Copied> {
        let raw = self.0.get();
        // SAFETY: the place lives for ever.
        if !unsafe { sys::psc_stack_take(raw) } {
            return None;
        }
        // SAFETY: written, and not asked for again before this function ends.
        let stack = unsafe { &*raw };
        let words = stack.words.get(..stack.count as usize)?.to_vec();
        let copied = Copied { pc: stack.pc, registers: stack.registers, from: stack.from, words };
        (stack.mark == mark).then_some(copied)
    }
}

/// A stack for people.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The innermost function with known source: neither the system's nor Rust's library.
    pub place: String,
    /// A line for each frame, innermost first.
    pub frames: String,
}

/// Names the functions of a stack. Reads the program's debug information, which takes a while.
pub fn show(stack: &[u64]) -> Shown {
    let mut shown = Shown::default();
    for (number, &at) in stack.iter().take(FRAMES_SHOWN).enumerate() {
        // A caller goes on behind its call, and `resolve` looks one byte before that; where the thread was is exact.
        let at = if number == 0 { at + 1 } else { at };
        let mut is_known = false;
        backtrace::resolve(ptr::without_provenance_mut::<c_void>(at as usize), |symbol| {
            let Some(name) = symbol.name() else { return };
            is_known = true;
            let name = format!("{name:#}");
            let source = symbol.filename().map(|file| place_of(file, symbol.lineno()));
            let line = source.as_ref().map_or(String::new(), |source| format!(" at {source}"));
            // Debian builds its C library in a folder that debug information names relatively.
            let is_library = symbol
                .filename()
                .is_none_or(|file| file.starts_with("/rustc") || file.is_relative());
            if shown.place.is_empty() && !is_library {
                shown.place = format!("{name}{line}");
            }
            // Writing to a string does not fail.
            let _ = write!(shown.frames, "\n  {number:2}: {name}{line}");
        });
        if !is_known {
            let _ = write!(shown.frames, "\n  {number:2}: {at:#x}");
        }
    }
    if shown.place.is_empty() {
        let first = shown.frames.lines().nth(1).and_then(|line| line.split_once(": "));
        first.map_or("an unknown place", |(_, name)| name).clone_into(&mut shown.place);
    }
    // All of it would be kept in memory for the next time.
    backtrace::clear_symbol_cache();
    shown
}

fn place_of(file: &Path, line: Option<u32>) -> String {
    // The last folders tell sources apart well enough.
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    let from = parts.len().saturating_sub(4);
    let file = parts[from..].join("/");
    line.map_or(file.clone(), |line| format!("{file}:{line}"))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::spdk::watchdog::unwind::walk;

    const DONE_MAX: Duration = Duration::from_mins(1);

    fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = done() {
                return value;
            }
            assert!(started.elapsed() < DONE_MAX, "{what} has not come");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[inline(never)]
    fn innermost(is_there: &AtomicBool, is_over: &AtomicBool, sleeps: bool) -> u64 {
        is_there.store(true, Ordering::Release);
        let mut rounds = 0;
        while !is_over.load(Ordering::Acquire) {
            if sleeps {
                thread::sleep(Duration::from_millis(20));
            }
            rounds = black_box(rounds + 1);
        }
        rounds
    }

    #[inline(never)]
    fn its_caller(is_there: &AtomicBool, is_over: &AtomicBool, sleeps: bool) -> u64 {
        // Something to be done behind the call.
        black_box(innermost(is_there, is_over, sleeps)) + 1
    }

    /// Ends the thread, also when its test fails.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// Has a thread stand in `innermost`, and looks at it.
    fn with_a_thread(
        sleeps: bool,
        mark: &'static AtomicU64,
        look: impl FnOnce(&'static Slot, i32),
    ) {
        install().expect("a signal handler");
        let slot: &'static Slot = Box::leak(Box::new(Slot::new()));
        let (os_thread, is_there) = (AtomicI32::new(0), AtomicBool::new(false));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let over = Over(&is_over);
            scope.spawn(|| {
                os_thread.store(slot.write_here(mark), Ordering::Release);
                its_caller(&is_there, &is_over, sleeps);
            });
            wait_for("the thread", || is_there.load(Ordering::Acquire).then_some(()));
            look(slot, os_thread.load(Ordering::Acquire));
            drop(over);
        });
    }

    /// Through functions of the C library, when it sleeps.
    #[test]
    fn a_stack_is_written_by_its_thread_and_read_elsewhere() {
        static MARK: AtomicU64 = AtomicU64::new(7);
        for sleeps in [false, true] {
            with_a_thread(sleeps, &MARK, |slot, os_thread| {
                slot.ask(os_thread).expect("asked");
                let copied = wait_for("the stack", || slot.take(7));
                let shown = show(&walk(&copied));
                assert!(shown.place.contains("innermost at "), "{shown:?}");
                let lines: Vec<_> = shown.frames.lines().collect();
                let at = |name: &str| lines.iter().position(|line| line.contains(name));
                let (inner, outer) = (at("innermost at "), at("its_caller at "));
                assert!(inner.is_some() && inner < outer, "{}", shown.frames);
                assert!(at("start_thread").or(at("clone")) > outer, "to the end: {}", shown.frames);
            });
        }
    }

    /// Fails when a stack counts that was written after the stall that it was asked for.
    #[test]
    fn an_answer_that_comes_too_late_is_thrown_away() {
        static MARK: AtomicU64 = AtomicU64::new(8);
        with_a_thread(false, &MARK, |slot, os_thread| {
            for _ in 0..20 {
                slot.ask(os_thread).expect("asked");
                wait_for("an answer", || {
                    assert!(slot.take(7).is_none(), "of another stall");
                    // Whoever has answered can be asked again.
                    let again = slot.ask(os_thread);
                    (again != Err(Errno::BUSY)).then_some(())
                });
                wait_for("the answer", || slot.take(8));
            }
        });
    }

    #[test]
    fn a_thread_that_has_ended_is_not_waited_for() {
        static MARK: AtomicU64 = AtomicU64::new(0);
        install().expect("a signal handler");
        let slot: &'static Slot = Box::leak(Box::new(Slot::new()));
        let os_thread = thread::spawn(|| slot.write_here(&MARK)).join().expect("no panic");
        // The system may take a moment to notice.
        wait_for("its end", || {
            let asked = slot.ask(os_thread);
            assert!(slot.take(0).is_none(), "nobody has written");
            asked.is_err().then_some(())
        });
    }

    /// A stack of this many words, of which the thread's own are the first `end`: what is copied from `sp` on.
    fn copied(sp: u64, end: u64) -> (u64, Vec<u64>) {
        let memory: Vec<u64> = (0..10_000).collect();
        let base = memory.as_ptr() as u64;
        let mut stack = Box::new(sys::psc_stack::default());
        // SAFETY: reads between `base` and `base + end`, and even beyond that is memory of ours.
        unsafe { sys::psc_stack_copy(&raw mut *stack, base.wrapping_add(sp), base, base + end) };
        (stack.from.saturating_sub(base), stack.words[..stack.count as usize].to_vec())
    }

    /// Fails when the handler reads beyond the stack, or where there is none.
    #[test]
    fn no_more_than_the_stack_is_copied() {
        assert_eq!(copied(800, 1600), (672, (84..200).collect()), "with the red zone");
        assert_eq!(copied(80, 160), (0, (0..20).collect()), "which ends with the stack");
        assert_eq!(copied(1592, 1600), (1464, (183..200).collect()));
        assert_eq!(copied(803, 1605), (680, (85..200).collect()), "whole words only");
        assert!(copied(80_000, 80_000).1.is_empty(), "its end");
        assert!(copied(2000, 1600).1.is_empty(), "above it");
        assert!(copied(8_u64.wrapping_neg(), 1600).1.is_empty(), "below it");
        assert_eq!(copied(128, 80_000), (0, (0..4096).collect()), "what there is room for");
    }
}
