//! One monitor and one predictor for replays of the same trace side by side.
//!
//! What is known of chunks follows from the trace alone, and costs far more time than what each policy makes of
//! it. So replays that differ in threshold, limits or schedule share it: the first one that comes to a record or
//! to the end of a window does the work. [`super::run::replay_all`] keeps them in step.

use std::cell::RefCell;
use std::rc::Rc;

use crate::monitor::{Access, Monitor, MonitorOptions, Tick};
use crate::predict::{Context, Prediction, Predictor, Race};

/// A predictor that replays share.
#[derive(Clone)]
pub struct Companion(Rc<RefCell<Shared>>);

struct Shared {
    predictor: Box<dyn Predictor>,
    monitor: Option<Monitor>,
    /// Records taken.
    records: u64,
    /// End of the last window.
    now_us: u64,
    /// What was predicted in the last tick, by what it depends on.
    predicted: Vec<(Option<Race>, Prediction)>,
}

impl Companion {
    /// With a predictor that has seen nothing.
    pub fn new(predictor: Box<dyn Predictor>) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            predictor,
            monitor: None,
            records: 0,
            now_us: 0,
            predicted: vec![],
        })))
    }

    /// Begins to follow the trace, if no other replay had it do so.
    pub(super) fn start(&self, options: MonitorOptions) {
        self.0.borrow_mut().monitor.get_or_insert_with(|| Monitor::new(options));
    }

    /// Name of the predictor.
    pub(super) fn name(&self) -> &'static str {
        self.0.borrow().predictor.name()
    }

    /// Notes the record with this number, from 1 on, if it was not noted yet.
    pub(super) fn record(&self, number: u64, access: &Access) {
        let mut shared = self.0.borrow_mut();
        if number > shared.records {
            debug_assert_eq!(number, shared.records + 1, "replays are in step");
            shared.records = number;
            if let Some(monitor) = &mut shared.monitor {
                monitor.record(access);
            }
        }
    }

    /// Closes the window that ends now, if that was not done yet, and lets `look` make of it what to
    /// predict for and, with what is predicted, an answer.
    pub(super) fn tick<S, R>(
        &self,
        now_us: u64,
        look: impl FnOnce(&Tick<'_>) -> (S, Context),
        answer: impl FnOnce(S, &Tick<'_>, &Prediction) -> R,
    ) -> R {
        let shared = &mut *self.0.borrow_mut();
        let monitor = shared.monitor.as_mut().expect("it was started");
        let is_first = now_us > shared.now_us;
        let tick = if is_first {
            shared.now_us = now_us;
            shared.predicted.clear();
            monitor.tick(now_us)
        } else {
            assert_eq!(now_us, shared.now_us, "replays are in step");
            monitor.last_tick()
        };
        let (sight, context) = look(&tick);
        let race = shared.predictor.minds_race_only().then(|| context.race());
        let known = shared.predicted.iter().position(|(of, _)| of.is_some() && *of == race);
        let place = known.unwrap_or_else(|| {
            let mut prediction = Prediction::default();
            if is_first {
                shared.predictor.step(&tick, &context, &mut prediction);
            } else {
                shared.predictor.again(&tick, &context, &mut prediction);
            }
            shared.predicted.push((race, prediction));
            shared.predicted.len() - 1
        });
        answer(sight, &tick, &shared.predicted[place].1)
    }
}
