//! The OS thread that owns the catalog.
//!
//! Reactors hand it requests through a bounded queue and never wait: a full queue gives the
//! request back. The completion of each request that was taken is called once, on this thread,
//! whether the request succeeded, failed or panicked; if the thread ended meanwhile, possibly on
//! the thread of another submitter. After a panic the catalog writes nothing any more.

use std::{
    any::Any,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam::channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};

use super::{
    catalog::{Catalog, LostMark},
    error::{Error, Result},
};
use crate::engine::records::{CatalogReply, CatalogRequest};

/// Requests that may wait. One volume has a few under way; 256 is dozens of volumes busy at once.
pub const QUEUE_REQUESTS_MAX: usize = 256;

/// Called with a request's outcome, on the catalog thread: hands it on and returns.
pub type Completion = Box<dyn FnOnce(Result<CatalogReply>) + Send>;

/// Work with the catalog that is no [`CatalogRequest`]; an error means it was not run to its end.
pub type Job = Box<dyn FnOnce(Result<&mut Catalog>) + Send>;

/// What starts the thread: gets the thread's body, gives back its handle. The caller's place to
/// name the thread and to take it off the reactors' cores.
pub type Body = Box<dyn FnOnce() + Send>;

enum Message {
    Request(CatalogRequest, Completion),
    Job(Job),
    Stop,
}

/// A request that was not taken, with its completion.
pub struct NotTaken {
    /// The request.
    pub request: CatalogRequest,
    /// Its completion, not called.
    pub completion: Completion,
    /// [`Error::QueueFull`] or [`Error::Closed`].
    pub error: Error,
}

impl fmt::Debug for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotTaken")
            .field("request", &self.request)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// What the thread and its handles share.
///
/// A bounded crossbeam channel keeps messages whose receiver is gone for as long as there are
/// senders, and their completions would never be called. So everybody can empty it: the thread
/// sets `closed` and then empties the queue; a submitter queues and then looks at `closed`.
/// Whichever is later in the one order of the sequentially consistent accesses takes the message
/// out.
struct Shared {
    closed: AtomicBool,
    receiver: Receiver<Message>,
    lost: LostMark,
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn refuse_queued(&self) {
        for message in self.receiver.try_iter() {
            refuse(message, Error::Closed);
        }
    }
}

/// Hands requests to the catalog thread. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct CatalogHandle {
    sender: Sender<Message>,
    shared: Arc<Shared>,
}

impl fmt::Debug for CatalogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogHandle").field("queued", &self.sender.len()).finish_non_exhaustive()
    }
}

impl CatalogHandle {
    /// Queues a request; `completion` gets its outcome. Requests are served in order.
    ///
    /// # Errors
    /// Gives both back where the queue is full or the thread is gone.
    pub fn submit(
        &self,
        request: CatalogRequest,
        completion: Completion,
    ) -> Result<(), Box<NotTaken>> {
        let Err((message, error)) = self.send(Message::Request(request, completion)) else {
            return Ok(());
        };
        let Message::Request(request, completion) = message else {
            unreachable!("the message that was sent comes back");
        };
        Err(Box::new(NotTaken { request, completion, error }))
    }

    /// Queues work of another sort, such as `create_volume`. A job that was taken is called once,
    /// with [`Error::Closed`] or [`Error::Panicked`] where the catalog is not to be had.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::Closed`]; the job is dropped uncalled.
    pub fn run(&self, job: Job) -> Result<()> {
        self.send(Message::Job(job)).map_err(|(_, error)| error)
    }

    /// Why nothing will succeed any more until the store is loaded again, if so.
    pub fn lost(&self) -> Option<&str> {
        self.shared.lost.get().map(String::as_str)
    }

    #[allow(
        clippy::result_large_err,
        reason = "it is the message itself, which has to come back without an allocation"
    )]
    fn send(&self, message: Message) -> Result<(), (Message, Error)> {
        if self.shared.is_closed() {
            return Err((message, Error::Closed));
        }
        self.enqueue(message)
    }

    /// Like `send`, where the thread may have ended since it was looked at.
    #[allow(clippy::result_large_err, reason = "as for send")]
    fn enqueue(&self, message: Message) -> Result<(), (Message, Error)> {
        match self.sender.try_send(message) {
            Ok(()) => {
                if self.shared.is_closed() {
                    self.shared.refuse_queued();
                }
                Ok(())
            }
            Err(TrySendError::Full(message)) => {
                Err((message, Error::QueueFull { queued: QUEUE_REQUESTS_MAX }))
            }
            Err(TrySendError::Disconnected(message)) => Err((message, Error::Closed)),
        }
    }
}

/// The running thread. Dropping it without [`CatalogThread::stop`] stops it too, without waiting.
#[derive(Debug)]
pub struct CatalogThread {
    handle: CatalogHandle,
    join: Option<JoinHandle<()>>,
    outcome: Receiver<Result<()>>,
}

impl CatalogThread {
    /// Starts the thread by `spawn`, which gets its body.
    ///
    /// # Errors
    /// What `spawn` returns; the catalog is closed by being dropped.
    pub fn start(
        catalog: Catalog,
        spawn: impl FnOnce(Body) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_REQUESTS_MAX);
        let lost = catalog.lost_mark();
        let shared = Arc::new(Shared { closed: AtomicBool::new(false), receiver, lost });
        let (outcome_sender, outcome) = bounded(1);
        let served = Arc::clone(&shared);
        let body = Box::new(move || {
            let result = serve(catalog, &served);
            // Nobody listens where the thread was dropped without a stop.
            let _ = outcome_sender.send(result);
        });
        let join = Some(spawn(body)?);
        Ok(CatalogThread { handle: CatalogHandle { sender, shared }, join, outcome })
    }

    /// A handle to hand out.
    pub fn handle(&self) -> CatalogHandle {
        self.handle.clone()
    }

    /// Serves what is queued, closes the catalog and waits for the thread. Blocks: not for a
    /// reactor. Requests queued later fail with [`Error::Closed`].
    ///
    /// # Errors
    /// What closing the catalog returned; [`Error::Panicked`].
    pub fn stop(mut self) -> Result<()> {
        // A full queue is emptied by the thread, if it still runs.
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        let mut message = Message::Stop;
        while !self.handle.shared.is_closed() {
            match self.handle.sender.send_timeout(message, LOOK_AGAIN) {
                Err(SendTimeoutError::Timeout(back)) => message = back,
                _ => break,
            }
        }
        let result = self.outcome.recv().unwrap_or(Err(Error::Closed));
        if let Some(join) = self.join.take()
            && let Err(panic) = join.join()
        {
            return Err(Error::Panicked { message: panic_message(&*panic) });
        }
        result
    }
}

impl Drop for CatalogThread {
    fn drop(&mut self) {
        if self.join.is_some() {
            // Where the queue is full, the thread ends when the last handle is gone.
            let _ = self.handle.sender.try_send(Message::Stop);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// The thread's body: until a stop, or until the last handle is gone.
fn serve(mut catalog: Catalog, shared: &Shared) -> Result<()> {
    let mut panicked: Option<String> = None;
    while let Ok(message) = shared.receiver.recv() {
        if matches!(message, Message::Stop) {
            break;
        }
        let known = panicked.clone();
        let served = catch_unwind(AssertUnwindSafe(|| match known {
            None => serve_one(&mut catalog, message, &shared.lost),
            Some(message_of_panic) => {
                refuse(message, Error::Panicked { message: message_of_panic });
                Ok(())
            }
        }));
        // The inner panics were answered; the outer ones are those of a completion or a job.
        if let Err(message) = served.unwrap_or_else(|panic| Err(panic_message(&*panic))) {
            tracing::error!(%message, "panic on the catalog thread");
            mark_panic(&shared.lost, &message);
            panicked.get_or_insert(message);
        }
    }
    shared.closed.store(true, Ordering::SeqCst);
    // Those that slipped in behind the stop.
    let refused = catch_unwind(AssertUnwindSafe(|| shared.refuse_queued()));
    if let Some(message) = panicked.or(refused.err().map(|panic| panic_message(&*panic))) {
        let dropped = catch_unwind(AssertUnwindSafe(|| catalog.abandon()));
        if dropped.is_err() {
            tracing::error!("the catalog panicked again when it was dropped");
        }
        return Err(Error::Panicked { message });
    }
    catalog.close()
}

fn refuse(message: Message, error: Error) {
    match message {
        Message::Request(_, completion) => completion(Err(error)),
        Message::Job(job) => job(Err(error)),
        Message::Stop => {}
    }
}

fn mark_panic(lost: &LostMark, message: &str) {
    // The first reason counts.
    let _ = lost.set(format!("its catalog thread panicked ({message})"));
}

/// Serves one message; returns the message of a panic inside the catalog.
fn serve_one(catalog: &mut Catalog, message: Message, lost: &LostMark) -> Result<(), String> {
    match message {
        Message::Request(request, completion) => {
            match catch_unwind(AssertUnwindSafe(|| catalog.execute(request))) {
                Ok(result) => completion(result),
                Err(panic) => {
                    let message = panic_message(&*panic);
                    mark_panic(lost, &message);
                    completion(Err(Error::Panicked { message: message.clone() }));
                    return Err(message);
                }
            }
        }
        Message::Job(job) => {
            catalog.revive();
            job(Ok(catalog));
        }
        Message::Stop => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moment that the thread's end and a submitter would have to share for a completion to be
    /// lost is too short to be met by running them: so it is played.
    #[test]
    fn a_message_behind_the_last_look_is_refused_by_its_submitter() {
        let (sender, receiver) = bounded(QUEUE_REQUESTS_MAX);
        let lost = LostMark::default();
        let shared = Arc::new(Shared { closed: AtomicBool::new(false), receiver, lost });
        let handle = CatalogHandle { sender, shared: Arc::clone(&shared) };
        assert!(!shared.is_closed(), "the submitter looks");
        shared.closed.store(true, Ordering::SeqCst);
        shared.refuse_queued();
        let (told, outcome) = bounded(1);
        let job: Job = Box::new(move |catalog| told.send(catalog.map(|_| ())).unwrap());
        assert!(handle.enqueue(Message::Job(job)).is_ok());
        assert!(matches!(outcome.try_recv(), Ok(Err(Error::Closed))));
    }
}
