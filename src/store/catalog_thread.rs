//! The OS thread that owns the catalog.
//!
//! Reactors hand it requests through a bounded queue and never wait: a full queue gives the
//! request back. Each request's completion is called once, on this thread, whether the request
//! succeeded, failed, panicked or came too late. After a panic the catalog is not touched again.

use std::{
    any::Any,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::JoinHandle,
};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::{
    catalog::Catalog,
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

/// Hands requests to the catalog thread. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct CatalogHandle {
    sender: Sender<Message>,
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
        let (message, error) = match self.sender.try_send(Message::Request(request, completion)) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(message)) => {
                (message, Error::QueueFull { queued: QUEUE_REQUESTS_MAX })
            }
            Err(TrySendError::Disconnected(message)) => (message, Error::Closed),
        };
        let Message::Request(request, completion) = message else {
            unreachable!("the message that was sent comes back");
        };
        Err(Box::new(NotTaken { request, completion, error }))
    }

    /// Queues work of another sort, such as `create_volume`. A job that is never run is called
    /// with [`Error::Closed`].
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::Closed`]; the job is dropped uncalled.
    pub fn run(&self, job: Job) -> Result<()> {
        self.sender.try_send(Message::Job(job)).map_err(|error| match error {
            TrySendError::Full(_) => Error::QueueFull { queued: QUEUE_REQUESTS_MAX },
            TrySendError::Disconnected(_) => Error::Closed,
        })
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
        let (outcome_sender, outcome) = bounded(1);
        let body = Box::new(move || {
            let result = serve(catalog, &receiver);
            // Nobody listens where the thread was dropped without a stop.
            let _ = outcome_sender.send(result);
        });
        let join = Some(spawn(body)?);
        Ok(CatalogThread { handle: CatalogHandle { sender }, join, outcome })
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
        // Blocks only while the queue is full, and the thread empties it.
        let _ = self.handle.sender.send(Message::Stop);
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
fn serve(mut catalog: Catalog, receiver: &Receiver<Message>) -> Result<()> {
    let mut panicked: Option<String> = None;
    while let Ok(message) = receiver.recv() {
        match message {
            Message::Stop => break,
            message => {
                if let Err(message) = serve_one(&mut catalog, message, panicked.as_deref()) {
                    tracing::error!(%message, "the catalog thread panicked");
                    panicked.get_or_insert(message);
                }
            }
        }
    }
    // Those that slipped in behind the stop.
    for message in receiver.try_iter() {
        refuse(message, || Error::Closed);
    }
    if let Some(message) = panicked {
        // Dropping the database could panic once more; the next load repairs it.
        std::mem::forget(catalog);
        return Err(Error::Panicked { message });
    }
    catalog.close()
}

fn refuse(message: Message, error: impl FnOnce() -> Error) {
    match message {
        Message::Request(_, completion) => completion(Err(error())),
        Message::Job(job) => job(Err(error())),
        Message::Stop => {}
    }
}

/// Serves one message; returns the message of a panic.
fn serve_one(
    catalog: &mut Catalog,
    message: Message,
    panicked: Option<&str>,
) -> Result<(), String> {
    if let Some(panicked) = panicked {
        refuse(message, || Error::Panicked { message: panicked.to_owned() });
        return Ok(());
    }
    match message {
        Message::Request(request, completion) => {
            let outcome = catch_unwind(AssertUnwindSafe(|| catalog.execute(request)));
            match outcome {
                Ok(result) => completion(result),
                Err(panic) => {
                    let message = panic_message(&*panic);
                    completion(Err(Error::Panicked { message: message.clone() }));
                    return Err(message);
                }
            }
        }
        Message::Job(job) => {
            let outcome = catch_unwind(AssertUnwindSafe(|| job(Ok(catalog))));
            outcome.map_err(|panic| panic_message(&*panic))?;
        }
        Message::Stop => {}
    }
    Ok(())
}
