//! Functions that a reactor calls again and again.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use spdk_sys as sys;

use super::guard;
use super::thread::Thread;

/// Whether a poller found something to do; SPDK's CPU statistics rest on the truth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollResult {
    /// Did some work.
    Busy,
    /// Found none.
    Idle,
}

struct Shared {
    f: RefCell<Box<dyn FnMut() -> PollResult>>,
    gone: Cell<bool>,
}

/// A registered poller; dropping it unregisters, also from within its own function.
pub struct Poller {
    raw: NonNull<sys::spdk_poller>,
    /// SPDK's reference, made with `Rc::into_raw`.
    ctx: *const Shared,
    thread: Thread,
    /// Not `Send`: belongs to the SPDK thread that registered it.
    _local: PhantomData<*const ()>,
}

impl Poller {
    /// Calls `f` on the current SPDK thread every `period`; zero means every round.
    ///
    /// # Panics
    /// Off SPDK's threads, or without memory for it.
    pub fn register(period: Duration, f: impl FnMut() -> PollResult + 'static) -> Self {
        let thread = Thread::current();
        let shared = Rc::new(Shared { f: RefCell::new(Box::new(f)), gone: Cell::new(false) });
        let ctx = Rc::into_raw(shared);
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        // A short positive period must not turn into "every round".
        let period_us = if period.is_zero() { 0 } else { period_us.max(1) };
        // SAFETY: on an SPDK thread; `ctx` stays valid until Drop unregisters.
        let raw = unsafe {
            sys::psc_poller_register(
                Some(poll),
                ctx.cast_mut().cast(),
                period_us,
                c"presnap".as_ptr(),
            )
        };
        let raw = NonNull::new(raw).expect("memory for a poller");
        Self { raw, ctx, thread, _local: PhantomData }
    }
}

impl Poller {
    /// Whether this code runs on its thread, and so may drop it.
    pub fn is_local(&self) -> bool {
        self.thread.is_current()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        assert!(self.thread.is_current(), "a poller is dropped on its own thread");
        // SAFETY: registered once, unregistered once, on the same thread. SPDK never calls it again,
        // though it may be in a call right now, which holds a reference of its own.
        unsafe { sys::psc_poller_unregister(self.raw.as_ptr()) };
        // SAFETY: into_raw() in register(); this is SPDK's reference, no longer needed.
        let shared = unsafe { Rc::from_raw(self.ctx) };
        shared.gone.set(true);
    }
}

extern "C" fn poll(ctx: *mut c_void) -> c_int {
    guard("poller", || {
        let ctx = ctx.cast_const().cast::<Shared>();
        // SAFETY: Poller holds one reference until it has unregistered, so the pointer is valid now;
        // the second one keeps the closure alive should it drop its own Poller.
        let shared = unsafe {
            Rc::increment_strong_count(ctx);
            Rc::from_raw(ctx)
        };
        if shared.gone.get() {
            return 0;
        }
        let result = (shared.f.borrow_mut())();
        c_int::from(result == PollResult::Busy)
    })
}
