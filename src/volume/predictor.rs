//! The predictor's thread: one for all volumes whose policy predicts, started with the first.
//!
//! It owns their monitors and predictors, drains their access rings, and tells the app thread by
//! message what it finds. Nobody waits for it: an app thread that does not hear from it for
//! [`STALLED_US`] stages by rest until it does.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::scoring::{Follower, News, Order, Scored};
use super::volume;
use crate::spdk::executor;
use crate::spdk::thread::{Thread, spawn_os_thread};

/// CPUs of the thread; absent or empty: all but the reactors'.
pub static PREDICTOR_CPUS: OnceLock<Vec<u32>> = OnceLock::new();

/// Time between two looks at the rings: at 1 ms a ring takes 4 million commands a second, but for
/// the times of the ticks themselves.
const DRAIN_EVERY: Duration = Duration::from_millis(1);

/// Messages to the app thread that it has not taken yet, of one volume; with more, news wait.
const UNTAKEN_MAX: u32 = 16;

/// An app thread that did not hear of a volume for so long goes on without the predictor.
pub const STALLED_US: u64 = 5_000_000;

/// A thread that died is followed by another at least so long after it began.
const RESTART_AFTER: Duration = Duration::from_secs(20);

/// How long a shutdown waits for the thread.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

enum Request {
    Follow(Order, Arc<Link>),
    Leave(u64),
    Cut(u64, u64),
    Stop(executor::Sender<()>),
    Die,
}

/// What the app thread and the predictor's share of one volume.
#[derive(Default)]
pub struct Link {
    /// Copies may have to give way, so they need scores.
    pub room_is_short: AtomicBool,
    untaken: AtomicU32,
}

impl Link {
    /// Messages that the app thread has not taken yet.
    pub fn untaken(&self) -> u32 {
        self.untaken.load(Ordering::Relaxed)
    }
}

/// What the app thread is told.
pub enum Told {
    /// Records have come.
    News(News),
    /// A window was closed.
    Scored(Box<Scored>),
}

struct Running {
    sender: Sender<Request>,
    thread: JoinHandle<()>,
    /// Counts the threads that were started.
    generation: u64,
    began: Instant,
}

thread_local! {
    /// On the app thread.
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// Follows a volume, or goes on with other settings. On the app thread. Returns the number of the
/// thread, for [`is_lost`].
///
/// # Errors
/// The system starts no thread.
pub fn follow(order: Order, link: Arc<Link>) -> std::io::Result<u64> {
    RUNNING.with_borrow_mut(|running| {
        let mut generation = running.as_ref().map_or(0, |running| running.generation);
        if running.as_ref().is_none_or(|running| running.thread.is_finished()) {
            let cpus = PREDICTOR_CPUS.get().map(Vec::as_slice).filter(|cpus| !cpus.is_empty());
            let (sender, receiver) = unbounded();
            let thread = spawn_os_thread("presnap-predict", cpus, move || run(&receiver))?;
            generation += 1;
            *running = Some(Running { sender, thread, generation, began: Instant::now() });
        }
        if let Some(running) = running {
            // It fails when the thread has panicked meanwhile; then the volume hears nothing of it,
            // and stages by rest.
            let _ = running.sender.send(Request::Follow(order, link));
        }
        Ok(generation)
    })
}

/// Whether a volume that thread `generation` followed is to be followed anew: the thread has died and
/// another runs, or may be started. On the app thread.
pub fn is_lost(generation: u64) -> bool {
    RUNNING.with_borrow(|running| match running {
        Some(running) if running.generation == generation => {
            running.thread.is_finished() && running.began.elapsed() >= RESTART_AFTER
        }
        _ => true,
    })
}

/// Lets the thread panic, for tests. On the app thread.
#[doc(hidden)]
pub fn let_it_die() {
    send(Request::Die);
}

/// Follows a volume no longer. On the app thread.
pub fn leave(key: u64) {
    send(Request::Leave(key));
}

/// A volume's snapshot was cut. On the app thread.
pub fn cut(key: u64, at_us: u64) {
    send(Request::Cut(key, at_us));
}

fn send(request: Request) {
    RUNNING.with_borrow(|running| {
        if let Some(running) = running {
            let _ = running.sender.send(request);
        }
    });
}

/// Ends the thread, if it runs. On the app thread.
pub async fn stop() {
    let Some(Running { sender, thread, .. }) = RUNNING.take() else { return };
    let (ended, has_ended) = executor::oneshot();
    let _ = sender.send(Request::Stop(ended));
    if executor::timeout(STOP_TIME_MAX, has_ended).await.is_none() {
        tracing::error!("the predictor's thread has not ended in time and is left alone");
        return;
    }
    // It has said so with its last words.
    if thread.join().is_err() {
        tracing::error!("the predictor's thread has panicked");
    }
}

struct Followed {
    follower: Follower,
    link: Arc<Link>,
}

impl Followed {
    fn work(&mut self, share: usize) {
        self.follower.drain();
        let scores_staged = self.link.room_is_short.load(Ordering::Relaxed);
        if let Some(scored) = self.follower.tick(scores_staged, share) {
            self.tell(Told::Scored(Box::new(scored)));
            // What was written while it was thinking: after the scores, which are void for it.
            self.follower.drain();
        }
        if self.link.untaken.load(Ordering::Relaxed) < UNTAKEN_MAX
            && let Some(news) = self.follower.news()
        {
            self.tell(Told::News(news));
        }
    }

    fn tell(&self, told: Told) {
        let (key, link) = (self.follower.key(), Arc::clone(&self.link));
        link.untaken.fetch_add(1, Ordering::Relaxed);
        Thread::app().send(move || {
            link.untaken.fetch_sub(1, Ordering::Relaxed);
            volume::told(key, told);
        });
    }
}

fn run(receiver: &Receiver<Request>) {
    let mut volumes: Vec<Followed> = Vec::new();
    loop {
        let request = if volumes.is_empty() {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(DRAIN_EVERY)
        };
        match request {
            Ok(Request::Follow(order, link)) => {
                let known = volumes.iter_mut().find(|known| known.follower.key() == order.key);
                match known {
                    Some(known) => known.follower.change(order),
                    None => volumes.push(Followed { follower: Follower::new(order), link }),
                }
            }
            Ok(Request::Leave(key)) => volumes.retain(|known| known.follower.key() != key),
            Ok(Request::Cut(key, at_us)) => {
                if let Some(known) = volumes.iter_mut().find(|known| known.follower.key() == key) {
                    known.follower.cut(at_us);
                }
            }
            Ok(Request::Stop(ended)) => return ended.send(()),
            Ok(Request::Die) => panic!("as a test asked for"),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let share = volumes.len();
        for volume in &mut volumes {
            volume.work(share);
        }
    }
}
