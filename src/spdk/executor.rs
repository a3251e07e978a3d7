//! Futures on SPDK threads.
//!
//! A task belongs to the SPDK thread that spawned it, is polled and dropped only there, and may hold
//! things that are not `Send`. Wakers may be used from any OS thread: waking sends a message. The
//! executor is for the control path and background copies; foreground commands use plain callbacks.

use std::cell::Cell;
use std::ffi::c_void;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_task::Runnable;

use super::error::Errno;
use super::guard;
use super::poller::{PollResult, Poller};
use super::thread::Thread;

/// A boxed future of one SPDK thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T> + 'static>>;

/// The result of a spawned task. Dropping it lets the task run on.
pub struct JoinHandle<T>(Option<async_task::Task<T>>);

impl<T> JoinHandle<T> {
    /// Lets the task run on by itself.
    pub fn detach(self) {
        drop(self);
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let task = self.0.as_mut().expect("present until dropped");
        let result = Pin::new(task).poll(cx);
        if result.is_ready() {
            self.0 = None;
        }
        result
    }
}

/// Runs a future on the current SPDK thread.
///
/// # Panics
/// Off SPDK's threads; there, [`spawn_on`] is the way.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let thread = Thread::current();
    let schedule = move |runnable: Runnable| {
        let raw = runnable.into_raw();
        if !thread.send_raw(run_task, raw.as_ptr().cast()) {
            // The thread has exited. Dropping the task here could drop its future on a foreign
            // thread, so it is leaked; the process is about to end.
            tracing::debug!("a task outlived its SPDK thread");
        }
    };
    // SAFETY: the future may be not Send, so it must be polled and dropped on this thread only: the
    // one place that takes a Runnable, `schedule`, sends it to this thread to be run, or leaks it.
    // The future is 'static, and `schedule` is Send, Sync and 'static (a Thread handle).
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    runnable.schedule();
    JoinHandle(Some(task))
}

extern "C" fn run_task(ctx: *mut c_void) {
    guard("task", || {
        let raw = NonNull::new(ctx.cast()).expect("a task");
        // SAFETY: from Runnable::into_raw() in `schedule`, delivered once, on the task's thread.
        let runnable = unsafe { Runnable::<()>::from_raw(raw) };
        runnable.run();
    });
}

/// Runs a future on another SPDK thread; the result comes back through the receiver.
pub fn spawn_on<F, Fut>(thread: Thread, make: F) -> Receiver<Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    let (sender, receiver) = oneshot();
    thread.send(move || {
        let future = make();
        spawn(async move { sender.send(future.await) }).detach();
    });
    receiver
}

// ---- oneshot -------------------------------------------------------------------------------------

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    closed: bool,
}

fn lock<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    // Nothing that can panic runs under the lock, so the contents are sound in any case.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sending half of [`oneshot`]; dropping it cancels the receiver.
pub struct Sender<T>(Arc<Mutex<Slot<T>>>);

/// The receiving half of [`oneshot`]: a future of the value, or `ECANCELED` without sender.
pub struct Receiver<T>(Arc<Mutex<Slot<T>>>);

/// A channel for one value; both halves may be moved to other OS threads when the value may.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, waker: None, closed: false }));
    (Sender(Arc::clone(&slot)), Receiver(slot))
}

impl<T> Sender<T> {
    /// Delivers the value; without receiver it is dropped, which is not an error.
    pub fn send(self, value: T) {
        lock(&self.0).value = Some(value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = lock(&self.0);
            slot.closed = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Errno>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = lock(&self.0);
        if let Some(value) = slot.value.take() {
            return Poll::Ready(Ok(value));
        }
        if slot.closed {
            return Poll::Ready(Err(Errno::CANCELED));
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

// ---- time ----------------------------------------------------------------------------------------

/// Waits on the current SPDK thread; microsecond steps, at least one reactor round.
pub async fn sleep(duration: Duration) {
    let (sender, receiver) = oneshot::<()>();
    let sender = Cell::new(Some(sender));
    let _poller = Poller::register(duration, move || match sender.take() {
        Some(sender) => {
            sender.send(());
            PollResult::Busy
        }
        None => PollResult::Idle,
    });
    // The sender lives in the poller, which lives until the value has come.
    let _ = receiver.await;
}

/// Lets other work of this thread run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The future's output, or `None` when it was not done in time; the future is dropped then.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(sleep(duration));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// All outputs, in order; the futures run concurrently.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
