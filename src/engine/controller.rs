//! Moves the threshold from which on chunks are staged: down when snapshots take longer than they may, up
//! when copies are made in vain or staged copies find no room.
//!
//! What happened under another threshold than the present one says nothing about the present one: it is
//! passed over. Between what is too much and what is little lies a band in which nothing moves; when
//! for some snapshots all was well, the threshold goes back towards where it began. A snapshot that took
//! too long weighs more than copies in vain, since it is what users wait for: a threshold with which one
//! did is kept away from for a while.

use std::collections::VecDeque;
use std::fmt;

use super::events::Micros;
use super::scores::Score;

/// The threshold stays between these: nearly all is staged at the one, nearly nothing at the other.
const THRESHOLD_MIN: f32 = 0.005;
const THRESHOLD_MAX: f32 = 0.95;

/// A step makes the odds so many times larger or smaller: five steps from 0.5 to 0.88.
const STEP_ODDS: f32 = 1.5;

/// How long a threshold is in force before it is judged, and the time between two judgements while no
/// snapshot comes: most chunks that rest are staged well before.
const SETTLE_US: u64 = 60_000_000;

/// Bytes copied in vain, in percent of those that the snapshot requires, that are too much.
const WASTE_PERCENT_MAX: u64 = 25;

/// Of so many bytes and less it is chance whether they are too much.
const WASTE_BYTES_MIN: u64 = 8 << 20;

/// Chunks that found no room, in percent of copies made, that are too much.
const NO_ROOM_PERCENT_MAX: u64 = 25;

/// Snapshots in a row with which all was well before the threshold goes a step back.
const CALM_SNAPSHOTS: u32 = 4;

/// For so many snapshots it is remembered that one took too long.
const SLOW_REMEMBERED: u32 = 12;

/// Changes that are kept for users.
pub const CHANGES_KEPT: usize = 16;

/// What the threshold is moved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aims {
    /// Where the threshold begins.
    pub threshold: Score,
    /// Time from a request to a complete snapshot, if that matters.
    pub complete_us_max: Option<u64>,
}

/// What copying ahead has come to, since the last cut or for a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Bytes copied ahead.
    pub copied_bytes: u64,
    /// Bytes of copies that are there for it.
    pub kept_bytes: u64,
    /// Bytes that a snapshot requires.
    pub required_bytes: u64,
    /// Copies made ahead.
    pub copies: u64,
    /// Times that a chunk found no room, or another had to give way to it.
    pub no_room: u64,
}

impl Spent {
    fn wasted_bytes(self) -> u64 {
        self.copied_bytes.saturating_sub(self.kept_bytes)
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            copied_bytes: self.copied_bytes - earlier.copied_bytes.min(self.copied_bytes),
            kept_bytes: self.kept_bytes - earlier.kept_bytes.min(self.kept_bytes),
            required_bytes: self.required_bytes,
            copies: self.copies - earlier.copies.min(self.copies),
            no_room: self.no_room - earlier.no_room.min(self.no_room),
        }
    }
}

/// A snapshot that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Time from the request to complete, in microseconds.
    pub took_us: u64,
    /// Chunks that were copied after the cut.
    pub left_chunks: u64,
    /// What was copied for it ahead.
    pub spent: Spent,
}

/// Why the threshold was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A snapshot took longer than it may.
    Slow {
        /// What it took, in microseconds.
        took_us: u64,
        /// What it may take.
        target_us: u64,
    },
    /// Too much was copied in vain.
    Waste {
        /// So many bytes.
        wasted_bytes: u64,
        /// So many are required.
        required_bytes: u64,
    },
    /// Staged copies found no room.
    NoRoom {
        /// So often.
        no_room: u64,
        /// While so many copies were made.
        copies: u64,
    },
    /// All was well.
    Calm,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        match *self {
            Reason::Slow { took_us, target_us } => write!(
                f,
                "a snapshot took {} ms, and may take {} ms",
                took_us / 1000,
                target_us / 1000
            ),
            Reason::Waste { wasted_bytes, required_bytes } => write!(
                f,
                "{} MiB were copied in vain, with {} MiB required",
                mib(wasted_bytes),
                mib(required_bytes)
            ),
            Reason::NoRoom { no_room, copies } => {
                write!(f, "{no_room} times a chunk found no room, while {copies} copies were made")
            }
            Reason::Calm => {
                write!(f, "all was well for {CALM_SNAPSHOTS} snapshots: back towards the beginning")
            }
        }
    }
}

/// One step of the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Micros,
    /// The threshold before.
    pub from: Score,
    /// The threshold from then on.
    pub to: Score,
    /// Why.
    pub reason: Reason,
}

/// The threshold, and what moves it.
#[derive(Debug)]
pub struct Controller {
    aims: Aims,
    /// Steps from where it began.
    level: i32,
    /// The threshold is in force since then.
    since: Micros,
    /// Judged last.
    judged_at: Micros,
    /// What was spent since the last cut when the threshold was moved last.
    before: Spent,
    /// With this level a snapshot took too long, and for so many more that is remembered.
    slow: Option<(i32, u32)>,
    calm_run: u32,
    changes: VecDeque<Change>,
}

impl Controller {
    /// Begins.
    pub fn new(aims: Aims, now: Micros) -> Self {
        Self {
            aims,
            level: 0,
            since: now,
            judged_at: now,
            before: Spent::default(),
            slow: None,
            calm_run: 0,
            changes: VecDeque::new(),
        }
    }

    /// Goes on with other aims from where it is; false if they begin elsewhere, which takes a new one.
    pub fn aim(&mut self, aims: Aims) -> bool {
        if aims.complete_us_max != self.aims.complete_us_max {
            self.slow = None;
        }
        let same = aims.threshold == self.aims.threshold;
        self.aims = aims;
        same
    }

    /// The threshold in force.
    pub fn threshold(&self) -> Score {
        self.threshold_at(self.level)
    }

    fn threshold_at(&self, level: i32) -> Score {
        let p = self.aims.threshold.probability();
        let odds = p / (1.0 - p).max(f32::EPSILON) * STEP_ODDS.powi(level);
        let stepped = Score::of((odds / (1.0 + odds)).clamp(THRESHOLD_MIN, THRESHOLD_MAX));
        if level == 0 { self.aims.threshold } else { stepped }
    }

    /// The last changes, oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter()
    }

    /// Whether it is time to call [`Controller::look`].
    pub fn is_due(&self, now: Micros) -> bool {
        now.since(self.judged_at) >= SETTLE_US
    }

    /// Looks at what was spent since the last cut, while no snapshot is under way.
    pub fn look(&mut self, now: Micros, spent: Spent) -> Option<Change> {
        self.judged_at = now;
        if now.since(self.since) < SETTLE_US {
            return None;
        }
        let reason = too_much(spent.since(self.before))?;
        self.step(now, 1, reason, spent)
    }

    /// A snapshot is complete.
    pub fn finished(&mut self, now: Micros, finished: &Finished) -> Option<Change> {
        let spent = finished.spent.since(std::mem::take(&mut self.before));
        self.judged_at = now;
        let cut_at = Micros(now.0.saturating_sub(finished.took_us));
        if cut_at.since(self.since) < SETTLE_US {
            return None;
        }
        let target_us = self.aims.complete_us_max;
        // Where all was adopted, no copy more would have made it faster.
        let slow = target_us.filter(|&max| finished.took_us > max && finished.left_chunks > 0);
        self.slow = match slow {
            Some(_) => Some((self.level, SLOW_REMEMBERED)),
            None => self.slow.and_then(|(level, left)| Some((level, left.checked_sub(1)?))),
        };
        // Where there is no room, a lower threshold finds none either.
        if let Some(target_us) = slow.filter(|_| !no_room(spent)) {
            let reason = Reason::Slow { took_us: finished.took_us, target_us };
            self.calm_run = 0;
            return self.step(now, -1, reason, Spent::default());
        }
        if let Some(reason) = too_much(spent) {
            self.calm_run = 0;
            return self.step(now, 1, reason, Spent::default());
        }
        let waste_is_little = !wasteful(spent, WASTE_PERCENT_MAX / 2);
        let time_is_short = target_us.is_none_or(|max| finished.took_us <= max / 2);
        if self.level == 0 || !waste_is_little || !time_is_short {
            self.calm_run = 0;
            return None;
        }
        self.calm_run += 1;
        if self.calm_run < CALM_SNAPSHOTS {
            return None;
        }
        self.step(now, -self.level.signum(), Reason::Calm, Spent::default())
    }

    fn step(&mut self, now: Micros, up: i32, reason: Reason, spent: Spent) -> Option<Change> {
        let level = self.level + up;
        let (from, to) = (self.threshold(), self.threshold_at(level));
        let was_slow = self.slow.is_some_and(|(slow, _)| level >= slow);
        let for_room = matches!(reason, Reason::NoRoom { .. });
        if to == from || (up > 0 && was_slow && !for_room) {
            return None;
        }
        self.level = level;
        self.calm_run = 0;
        self.before = spent;
        self.since = now;
        let change = Change { at: now, from, to, reason };
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        Some(change)
    }
}

fn too_much(spent: Spent) -> Option<Reason> {
    if no_room(spent) {
        return Some(Reason::NoRoom { no_room: spent.no_room, copies: spent.copies });
    }
    wasteful(spent, WASTE_PERCENT_MAX).then(|| Reason::Waste {
        wasted_bytes: spent.wasted_bytes(),
        required_bytes: spent.required_bytes,
    })
}

fn wasteful(spent: Spent, percent_max: u64) -> bool {
    let wasted = spent.wasted_bytes();
    wasted >= WASTE_BYTES_MIN
        && u128::from(wasted) * 100 > u128::from(spent.required_bytes) * u128::from(percent_max)
}

fn no_room(spent: Spent) -> bool {
    spent.no_room * 100 > spent.copies.max(1) * NO_ROOM_PERCENT_MAX
}

#[cfg(test)]
#[path = "tests/controller.rs"]
mod tests;
