//! Policies by name, as a command line has them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::companion::Companion;
use super::run::Policy;
use super::schedule::Schedule;
use super::scorer::ScoredPolicy;
use super::trace::{Survey, Trace, TraceError, TraceKind};
use crate::predict::Predictor;
use crate::predict::baseline::{Deadline, Likely, Oracle, Rate};
use crate::predict::logistic::Logistic;
use crate::predict::model::Model;
#[cfg(feature = "lstm")]
use crate::predict::{
    Lstm,
    tune::{TuneOptions, Tuned},
};

/// A policy and its setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicySpec {
    /// Stage nothing.
    Off,
    /// Stage what rested so long.
    Idle {
        /// Time in microseconds.
        rest_us: u64,
    },
    /// Stage what [`Rate`] scores so high.
    Rate {
        /// The score.
        threshold: f32,
    },
    /// Stage what [`Likely`] scores so high.
    Likely {
        /// The score.
        threshold: f32,
    },
    /// Stage what the linear part of the model scores so high.
    Logistic {
        /// The score.
        threshold: f32,
    },
    /// Stage what the LSTM scores so high.
    #[cfg(feature = "lstm")]
    Lstm {
        /// The score.
        threshold: f32,
    },
    /// The same, learning on meanwhile.
    #[cfg(feature = "lstm")]
    Tuned {
        /// The score.
        threshold: f32,
    },
    /// [`Deadline`].
    Deadline,
    /// [`Oracle`].
    Oracle,
}

/// What a policy needs to know of the replay it is for.
#[derive(Clone, Copy, Debug)]
pub struct PolicyContext<'a> {
    /// The trace.
    pub path: &'a Path,
    /// Which disk or file of it.
    pub disk: Option<&'a str>,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// When snapshots are taken.
    pub schedule: Schedule,
    /// Snapshots are announced to the predictor.
    pub schedule_known: bool,
    /// What predictors that were trained know.
    pub model: &'a Model,
}

impl PolicySpec {
    /// Makes the policy.
    ///
    /// # Errors
    /// The oracle reads the trace, which may fail.
    pub fn policy(self, context: &PolicyContext<'_>) -> Result<Policy, TraceError> {
        let companion = self.companion(context)?;
        Ok(self.policy_with(companion.as_ref(), context))
    }

    /// Makes the policy with a predictor that others of its kind may have as well.
    pub fn policy_with(self, companion: Option<&Companion>, context: &PolicyContext<'_>) -> Policy {
        match (self, companion) {
            (PolicySpec::Idle { rest_us }, _) => Policy::Idle(rest_us),
            (PolicySpec::Off, _) | (_, None) => Policy::Off,
            (_, Some(companion)) => Policy::Scored(ScoredPolicy {
                companion: companion.clone(),
                threshold: self.threshold(),
                schedule_known: context.schedule_known,
            }),
        }
    }

    /// What scores so high is staged, if anything is scored.
    fn threshold(self) -> f32 {
        match self {
            PolicySpec::Rate { threshold }
            | PolicySpec::Likely { threshold }
            | PolicySpec::Logistic { threshold } => threshold,
            #[cfg(feature = "lstm")]
            PolicySpec::Lstm { threshold } | PolicySpec::Tuned { threshold } => threshold,
            _ => 0.5,
        }
    }

    /// The predictor, if it has one.
    ///
    /// # Errors
    /// The oracle reads the trace, which may fail.
    pub fn companion(self, context: &PolicyContext<'_>) -> Result<Option<Companion>, TraceError> {
        let model = || context.model.clone();
        let predictor: Box<dyn Predictor> = match self {
            PolicySpec::Off | PolicySpec::Idle { .. } => return Ok(None),
            PolicySpec::Rate { .. } => Box::new(Rate),
            PolicySpec::Likely { .. } => Box::new(Likely),
            PolicySpec::Logistic { .. } => Box::new(Logistic::new(model())),
            #[cfg(feature = "lstm")]
            PolicySpec::Lstm { .. } => Box::new(Lstm::new(model())),
            #[cfg(feature = "lstm")]
            PolicySpec::Tuned { .. } => Box::new(Tuned::new(model(), TuneOptions::default())),
            PolicySpec::Deadline => Box::new(Deadline),
            PolicySpec::Oracle => Box::new(oracle(context)?),
        };
        Ok(Some(Companion::new(predictor)))
    }
}

fn oracle(context: &PolicyContext<'_>) -> Result<Oracle, TraceError> {
    let survey = Survey::of(Trace::open(context.path, context.disk)?)?;
    let mut modifications_us: HashMap<u32, Vec<u64>> = HashMap::new();
    for record in Trace::open(context.path, context.disk)? {
        let record = record?;
        if record.kind == TraceKind::Read {
            continue;
        }
        let chunk_bytes = u64::from(context.chunk_bytes);
        let last = (record.offset_bytes + record.length_bytes - 1) / chunk_bytes;
        for chunk in record.offset_bytes / chunk_bytes..=last {
            modifications_us.entry(chunk as u32).or_default().push(record.time_us);
        }
    }
    Ok(Oracle::new(modifications_us, context.schedule.times_us(survey.span_us)))
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicySpec::Off => f.write_str("off"),
            PolicySpec::Idle { rest_us } => write!(f, "idle:{}s", *rest_us as f64 / 1e6),
            PolicySpec::Rate { threshold } => write!(f, "rate:{threshold}"),
            PolicySpec::Likely { threshold } => write!(f, "likely:{threshold}"),
            PolicySpec::Logistic { threshold } => write!(f, "logistic:{threshold}"),
            #[cfg(feature = "lstm")]
            PolicySpec::Lstm { threshold } => write!(f, "lstm:{threshold}"),
            #[cfg(feature = "lstm")]
            PolicySpec::Tuned { threshold } => write!(f, "tuned:{threshold}"),
            PolicySpec::Deadline => f.write_str("deadline"),
            PolicySpec::Oracle => f.write_str("oracle"),
        }
    }
}

impl FromStr for PolicySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, setting) = match text.split_once(':') {
            Some((name, setting)) => (name, Some(setting)),
            None => (text, None),
        };
        let threshold = |default: f32| match setting {
            None => Ok(default),
            Some(setting) => (setting.parse().ok())
                .filter(|threshold| (0.0..=1.0).contains(threshold))
                .ok_or_else(|| format!("{setting:?} is no probability, such as 0.9")),
        };
        let spec = match name {
            "off" => PolicySpec::Off,
            "idle" => PolicySpec::Idle { rest_us: duration_us(setting.unwrap_or("1s"))? },
            "rate" => PolicySpec::Rate { threshold: threshold(0.5)? },
            "likely" => PolicySpec::Likely { threshold: threshold(0.5)? },
            "logistic" => PolicySpec::Logistic { threshold: threshold(0.5)? },
            #[cfg(feature = "lstm")]
            "lstm" => PolicySpec::Lstm { threshold: threshold(0.5)? },
            #[cfg(feature = "lstm")]
            "tuned" => PolicySpec::Tuned { threshold: threshold(0.5)? },
            #[cfg(not(feature = "lstm"))]
            "lstm" | "tuned" => {
                return Err(format!(
                    "this presnap was built without its network, which {name} needs; build it with \
                     --features lstm, or take another policy"
                ));
            }
            "deadline" => PolicySpec::Deadline,
            "oracle" => PolicySpec::Oracle,
            _ => {
                return Err(format!(
                    "{name:?} is no policy; there are off, idle[:TIME], rate[:SCORE], \
                     likely[:SCORE], logistic[:SCORE], lstm[:SCORE], tuned[:SCORE], deadline and oracle"
                ));
            }
        };
        match spec {
            PolicySpec::Off | PolicySpec::Deadline | PolicySpec::Oracle if setting.is_some() => {
                Err(format!("{name} has no setting"))
            }
            spec => Ok(spec),
        }
    }
}

/// A time such as `15s`, `500ms`, `10m` or `2h`; a number alone is seconds.
///
/// # Errors
/// What a time looks like.
pub fn duration_us(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time, such as 500ms, 15s, 10m or 2h");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "us" => 1,
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|&us| us > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_read_as_they_are_written() {
        for text in ["off", "idle:15s", "rate:0.9", "likely:0.25", "deadline", "oracle"] {
            assert_eq!(text.parse::<PolicySpec>().unwrap().to_string(), text);
        }
        assert_eq!("idle".parse(), Ok(PolicySpec::Idle { rest_us: 1_000_000 }));
        assert_eq!("idle:500ms".parse(), Ok(PolicySpec::Idle { rest_us: 500_000 }));
        for text in ["", "off:1", "idle:", "idle:1y", "rate:2", "rate:x", "oracle:0.5", "idle:0s"] {
            assert!(text.parse::<PolicySpec>().is_err(), "{text}");
        }
        assert_eq!(duration_us("2h"), Ok(7_200_000_000));
        assert!(duration_us("99999999999999999h").is_err());
    }
}
