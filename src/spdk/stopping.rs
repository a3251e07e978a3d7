//! A stop that does not end, and one that is not waited for.
//!
//! The app's stop runs on the app thread, and waits for commands to end, for reactors and for devices. Should one of them never
//! answer, a thread of its own ends the process: when the time is up, or at a second signal. It says what was hanging.
//! What a store holds is then as after a crash: marks of a clean stop are the last thing that a stop writes.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use spdk_sys as sys;

use super::thread::spawn_os_thread;

/// Signals that come so shortly after the first are the same one: `timeout`, for one, sends its signal to its child and
/// to the child's group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// How long the process waits for its last words to be written, to a pipe that nobody reads, say.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// Exit status of a process that was ended here.
const STATUS: i32 = 1;

/// What comes through the pipe; a signal is another byte.
const BEGIN: u8 = b'b';
const END: u8 = b'e';

struct Stop {
    /// To the thread that waits.
    teller: UnixStream,
    within: Option<Duration>,
    began: OnceLock<Instant>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    step: String,
    left_behind: Vec<String>,
}

static STOP: OnceLock<Stop> = OnceLock::new();

fn progress(stop: &Stop) -> MutexGuard<'_, Progress> {
    stop.progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, a stop takes no longer than `within` (`None`: as long as it takes), and a second signal ends the process.
/// Once, when SPDK has its own handlers in place: they are called as well.
///
/// # Errors
/// What the system says.
pub fn install(within: Option<Duration>) -> io::Result<()> {
    let (teller, listener) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        pipe::register(signal, teller.try_clone()?)?;
    }
    let stop = Stop { teller, within, began: OnceLock::new(), progress: Mutex::default() };
    if STOP.set(stop).is_ok() {
        // On the reactors' CPUs as well, should there be no others: it has to run in any case.
        spawn_os_thread("presnap-stop", None, move || wait(listener))?;
    }
    Ok(())
}

/// The stop begins, if it has not yet.
pub fn begin() {
    tell(BEGIN);
}

/// The stop has ended.
pub fn end() {
    tell(END);
}

fn tell(what: u8) {
    if let Some(stop) = STOP.get() {
        stop.began.get_or_init(Instant::now);
        // The other end is read for as long as the process lives.
        let _ = (&stop.teller).write_all(&[what]);
    }
}

/// What the stop does next, for the report if that hangs: "volume 'vol0' is being closed".
pub fn step(what: impl Into<String>) {
    if let Some(stop) = STOP.get() {
        progress(stop).step = what.into();
    }
}

/// What the stop goes on without: "volume 'vol0'".
pub fn leave_behind(what: impl Into<String>) {
    if let Some(stop) = STOP.get() {
        progress(stop).left_behind.push(what.into());
    }
}

/// The time that one of several steps may take, so that some is left for the others: at most `most`.
pub fn time_for_step(most: Duration) -> Duration {
    let Some(stop) = STOP.get() else { return most };
    let Some(within) = stop.within else { return most };
    let gone = stop.began.get_or_init(Instant::now).elapsed();
    most.min(within.saturating_sub(gone) / 4)
}

fn wait(mut listener: UnixStream) {
    let Some(stop) = STOP.get() else { return };
    let mut first_signal: Option<Instant> = None;
    loop {
        let left = match (stop.began.get(), stop.within) {
            (Some(began), Some(within)) => {
                let left = within.saturating_sub(began.elapsed());
                if left.is_zero() {
                    give_up(stop, &format!("has not stopped within {} s", within.as_secs_f64()));
                }
                Some(left)
            }
            _ => None,
        };
        let mut byte = [0];
        // It refuses zero alone, which is none of these.
        let _ = listener.set_read_timeout(left);
        match listener.read(&mut byte) {
            Ok(1) if byte[0] == BEGIN => {}
            Ok(1) if byte[0] == END => return,
            Ok(1) => {
                stop.began.get_or_init(Instant::now);
                let first = *first_signal.get_or_insert_with(Instant::now);
                if first.elapsed() > SAME_SIGNAL {
                    give_up(stop, "got a second signal");
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => return,
        }
    }
}

/// Says so, and ends the process.
fn give_up(stop: &Stop, why: &str) -> ! {
    let (told, has_told) = mpsc::channel();
    let words = words(&progress(stop), why);
    // Whoever hangs may do so while it writes to the log.
    let teller = std::thread::Builder::new().spawn(move || {
        tracing::error!("{words}");
        let _ = told.send(());
    });
    if teller.is_ok() {
        let _ = has_told.recv_timeout(LAST_WORDS_MAX);
    }
    // SAFETY: ends the process; nothing of it runs after that.
    unsafe { sys::psc_exit_now(STATUS) };
    unreachable!("the process has ended");
}

fn words(progress: &Progress, why: &str) -> String {
    let step = match progress.step.as_str() {
        "" => "the app thread does not come to it",
        step => step,
    };
    let left_behind = match progress.left_behind.as_slice() {
        [] => String::new(),
        some => format!(" (not closed before: {})", some.join(", ")),
    };
    format!(
        "the target {why} and is ended: {step}{left_behind}; volumes that were not saved compare with their newest \
         snapshot, and stores that were not closed are repaired at their next load"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_say_what_hangs() {
        let mut progress = Progress::default();
        assert!(words(&progress, "has").starts_with("the target has and is ended: the app thread"));
        progress.step = "bdevs are removed".to_owned();
        progress.left_behind = vec!["volume 'a'".to_owned(), "store 'b'".to_owned()];
        let words = words(&progress, "has");
        assert!(
            words.contains(": bdevs are removed (not closed before: volume 'a', store 'b'); "),
            "{words}"
        );
    }
}
