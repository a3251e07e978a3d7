//! SPDK threads, and OS threads beside them.

use std::ffi::{CStr, c_void};
use std::future::Future;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError, mpsc};

use spdk_sys as sys;

use super::error::Errno;
use super::executor;
use super::guard;

/// Handle of an SPDK thread: a cooperative one, run by a reactor.
///
/// Threads presnap sees (the app thread, one per NVMe-oF poll group) live as long as the app.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thread(NonNull<sys::spdk_thread>);

// SAFETY: the handle is only ever used for spdk_thread_send_msg() and comparing, both legal from any
// OS thread.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

impl Thread {
    /// The SPDK thread this code runs on.
    ///
    /// # Panics
    /// On an OS thread that is not a reactor.
    pub fn current() -> Self {
        Self::try_current().expect("called on an SPDK thread")
    }

    /// The SPDK thread this code runs on, if any.
    pub fn try_current() -> Option<Self> {
        // SAFETY: reads a thread-local variable; legal anywhere.
        NonNull::new(unsafe { sys::psc_thread_current() }).map(Self)
    }

    /// The app thread, where subsystems, RPC and everything that is not I/O run.
    ///
    /// # Panics
    /// Before SPDK has initialized its bdev subsystem.
    pub fn app() -> Self {
        // SAFETY: reads a variable written once during start.
        let thread = NonNull::new(unsafe { sys::psc_thread_app() });
        Self(thread.expect("the app has started"))
    }

    pub(super) fn from_raw(raw: *mut sys::spdk_thread) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// Whether this code runs on the thread.
    pub fn is_current(self) -> bool {
        Self::try_current() == Some(self)
    }

    /// The thread's name.
    pub fn name(self) -> String {
        // SAFETY: threads live as long as the app; the name is a C string inside the thread.
        let name = unsafe { CStr::from_ptr(sys::psc_thread_name(self.0.as_ptr())) };
        name.to_string_lossy().into_owned()
    }

    /// Runs `f` on the thread, later; legal on any OS thread. Order is kept per sender.
    ///
    /// If the thread has exited (the app is coming down), `f` is dropped instead.
    pub fn send(self, f: impl FnOnce() + Send + 'static) {
        extern "C" fn run<F: FnOnce()>(ctx: *mut c_void) {
            guard("message", || {
                // SAFETY: into_raw() below; SPDK calls once, and F is Send.
                let f = unsafe { Box::from_raw(ctx.cast::<F>()) };
                f();
            });
        }
        fn message<F: FnOnce()>(_: &F) -> extern "C" fn(*mut c_void) {
            run::<F>
        }
        let run = message(&f);
        let ctx = Box::into_raw(Box::new(f));
        if !self.send_raw(run, ctx.cast()) {
            // SAFETY: SPDK did not take it, so it is still ours.
            drop(unsafe { Box::from_raw(ctx) });
        }
    }

    /// False when the thread has exited; `run` will not be called then.
    pub(super) fn send_raw(self, run: extern "C" fn(*mut c_void), ctx: *mut c_void) -> bool {
        loop {
            // SAFETY: threads live as long as the app; what `ctx` is, is between caller and `run`.
            let rc = unsafe { sys::psc_thread_send(self.0.as_ptr(), Some(run), ctx) };
            match Errno::check(rc) {
                Ok(()) => return true,
                Err(Errno::NOMEM) if Self::try_current().is_none() => std::thread::yield_now(),
                Err(Errno::NOMEM) => {
                    // 262,143 messages are under way; SPDK itself cannot go on without them either.
                    eprintln!("presnap: SPDK is out of message objects");
                    std::process::abort();
                }
                Err(_) => return false,
            }
        }
    }

    /// Runs a future on the thread and blocks this OS thread until it is done; `None` when the app
    /// went down before.
    ///
    /// # Panics
    /// On an SPDK thread: those must not block.
    pub fn block_on<F, Fut>(self, make: F) -> Option<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        assert!(Self::try_current().is_none(), "an SPDK thread must not block");
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(move || {
            let future = make();
            executor::spawn(async move {
                // The receiver waits below, unless its OS thread was killed.
                let _ = sender.send(future.await);
            });
        });
        receiver.recv().ok()
    }
}

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Thread({})", self.name())
    }
}

/// All SPDK threads. On an SPDK thread.
pub async fn all() -> Vec<Thread> {
    struct Visit {
        found: Mutex<Vec<Thread>>,
        sender: executor::Sender<Vec<Thread>>,
    }
    extern "C" fn visit_each(ctx: *mut c_void) {
        guard("for each thread", || {
            // SAFETY: the box made below, which `done` takes back after the last visit.
            let visit = unsafe { &*ctx.cast::<Visit>() };
            let mut found = visit.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push(Thread::current());
        });
    }
    extern "C" fn done(ctx: *mut c_void) {
        guard("for each thread", || {
            // SAFETY: the box made below; the last call.
            let visit = unsafe { Box::from_raw(ctx.cast::<Visit>()) };
            let found = visit.found.into_inner().unwrap_or_else(PoisonError::into_inner);
            visit.sender.send(found);
        });
    }
    assert!(Thread::try_current().is_some(), "called on an SPDK thread");
    let (sender, receiver) = executor::oneshot();
    let visit = Box::new(Visit { found: Mutex::new(Vec::new()), sender });
    // SAFETY: on an SPDK thread; what the box holds may be used from any thread.
    unsafe { sys::psc_thread_for_each(Some(visit_each), Box::into_raw(visit).cast(), Some(done)) };
    receiver.await.unwrap_or_default()
}

/// Starts an OS thread that keeps off the reactors' CPUs (or on `cpus`, when given).
///
/// A new thread inherits its parent's CPU mask, and the parent is usually a reactor pinned to one
/// CPU which it never leaves idle; hence the reset.
///
/// # Errors
/// When the system cannot start a thread.
pub fn spawn_os_thread<T: Send + 'static>(
    name: &str,
    cpus: Option<&[u32]>,
    f: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    let cpus = cpus.unwrap_or_default().to_vec();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // SAFETY: pointer and length are of one vector; the call concerns this OS thread only.
        let rc = unsafe { sys::psc_os_thread_set_cpus(cpus.as_ptr(), cpus.len()) };
        if let Err(error) = Errno::check(rc) {
            tracing::warn!(%error, ?cpus, "CPU mask of a thread not set");
        }
        f()
    })
}
