//! Who takes a volume's access records: its predictor, or, without one or while that does not answer,
//! the volume's ticker.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Volume, now};
use crate::engine::events::{Event, Micros};
use crate::gate::{ChunkIndex, LbaRange};
use crate::volume::access::AccessKind;
use crate::volume::predictor::{self, Link, STALLED_US, Told};
use crate::volume::scoring::{ChunkForecast, Order, Scored};
use crate::volume::tuning::StagingPolicy;

/// What is known of a volume's predictor.
pub struct Follower {
    link: Arc<Link>,
    /// Number of the predictor's thread.
    generation: u64,
    heard_at: Micros,
    stalled: bool,
    /// What it last found, and when that was told.
    pub last: Option<(Box<Scored>, Micros)>,
}

impl Volume {
    /// Has the volume followed by a predictor if the policy has one.
    pub(super) fn follow(&self) {
        let tuning = self.options.borrow().tuning;
        let StagingPolicy::Predicted(kind) = tuning.policy else {
            if self.follower.borrow_mut().take().is_some() {
                predictor::leave(self.key);
            }
            return;
        };
        let order = Order {
            key: self.key,
            name: self.name(),
            gate: Arc::clone(&self.device.gate),
            rings: Arc::clone(&self.device.rings),
            predictor: kind,
            window_us: (tuning.window_ms != 0).then_some(tuning.window_ms * 1000),
            copy_bytes_per_s_max: tuning.copy_bytes_per_s_max(),
        };
        let link = {
            let mut follower = self.follower.borrow_mut();
            let follower = follower.get_or_insert_with(|| Follower {
                link: Arc::default(),
                generation: 0,
                heard_at: now(),
                stalled: false,
                last: None,
            });
            Arc::clone(&follower.link)
        };
        match predictor::follow(order, link) {
            Ok(generation) => {
                if let Some(follower) = self.follower.borrow_mut().as_mut() {
                    follower.generation = generation;
                }
            }
            // It counts as stalled soon.
            Err(error) => {
                tracing::error!(volume = self.name(), %error, "the predictor's thread cannot be started");
            }
        }
    }

    /// For how long nothing was heard of the predictor, in microseconds, if that is too long.
    pub fn predictor_stalled(&self) -> Option<u64> {
        let follower = self.follower.borrow();
        follower.as_ref().filter(|f| f.stalled).map(|f| now().since(f.heard_at))
    }

    /// What the predictor thinks of a chunk.
    pub fn forecast(&self, chunk: ChunkIndex) -> Option<ChunkForecast> {
        let follower = self.follower.borrow();
        let (scored, _) = follower.as_ref()?.last.as_ref()?;
        let at = scored.forecasts.binary_search_by_key(&chunk, |forecast| forecast.chunk).ok()?;
        Some(scored.forecasts[at])
    }

    /// Messages of the predictor that were not taken yet.
    pub fn predictor_queue(&self) -> u64 {
        let follower = self.follower.borrow();
        follower.as_ref().map_or(0, |follower| follower.link.untaken().into())
    }

    /// Looks at what the predictor found.
    pub fn with_follower<T>(&self, look: impl FnOnce(Option<&Follower>) -> T) -> T {
        look(self.follower.borrow().as_ref())
    }

    /// Takes the access records, unless there is a predictor that does.
    pub(super) fn watch_predictor(&self) {
        let (stalled, lost) = {
            let mut follower = self.follower.borrow_mut();
            let Some(follower) = follower.as_mut() else {
                drop(follower);
                return self.drain_records();
            };
            let stalls = now().since(follower.heard_at) > STALLED_US && !follower.stalled;
            follower.stalled |= stalls;
            if !follower.stalled {
                return;
            }
            (stalls, predictor::is_lost(follower.generation))
        };
        if stalled {
            tracing::warn!(
                volume = self.name(),
                "the predictor does not answer; chunks are staged by rest"
            );
            self.apply_settings();
        }
        if lost {
            tracing::warn!(volume = self.name(), "the predictor's thread has died; another begins");
            self.follow();
        }
        self.drain_records();
    }

    pub(super) fn told(self: &Rc<Self>, told: Told) {
        let recovered = {
            let mut follower = self.follower.borrow_mut();
            // The policy may have changed meanwhile.
            let Some(follower) = follower.as_mut() else { return };
            follower.heard_at = now();
            let scored = matches!(told, Told::Scored(_));
            scored && std::mem::replace(&mut follower.stalled, false)
        };
        if recovered {
            tracing::info!(volume = self.name(), "the predictor answers again");
            self.apply_settings();
        }
        match told {
            Told::News(news) => {
                {
                    let (mut engine, at) = (self.engine.borrow_mut(), now());
                    for chunk in news.written {
                        engine.observe_write(chunk, at);
                    }
                    if news.unfollowed {
                        engine.records_lost(at);
                    }
                }
                let mut counters = self.counters.borrow_mut();
                counters.records += news.records;
                counters.records_lost += news.lost;
            }
            Told::Scored(mut found) => {
                let scores = std::mem::take(&mut found.scores);
                let soonest = std::mem::take(&mut found.soonest);
                let room_is_short = self.engine.borrow().room_is_short();
                if let Some(follower) = self.follower.borrow_mut().as_mut() {
                    follower.link.room_is_short.store(room_is_short, Ordering::Relaxed);
                    follower.last = Some((found, now()));
                }
                self.drive(Event::Soonest(soonest));
                self.drive(Event::Scores(scores));
            }
        }
    }

    fn drain_records(&self) {
        let geometry = *self.device.gate.geometry();
        let mut engine = self.engine.borrow_mut();
        let at = now();
        let mut recorded = 0;
        let drained = self.device.rings.drain(|record| {
            recorded += 1;
            if record.kind == AccessKind::Modify {
                let range = LbaRange::new(record.lba, u64::from(record.blocks));
                for chunk in geometry.chunks(range) {
                    engine.observe_write(ChunkIndex(chunk), at);
                }
            }
        });
        if drained.lost > 0 {
            engine.records_lost(at);
        }
        let mut counters = self.counters.borrow_mut();
        counters.records += recorded;
        counters.records_lost += drained.lost;
    }
}
