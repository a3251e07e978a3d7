//! What a policy can be had for: the share of chunks it adopts against what that costs.
//!
//! A policy has a setting (a threshold, a time at rest), and each setting is one point. Settings that
//! adopt less and cost more than another one are of no use; what is left is the policy's frontier.
//! Between two of its points lies what is had by using one setting for a part of the time and the other
//! for the rest.

use serde::Serialize;

/// One setting of a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The policy with its setting.
    pub policy: String,
    /// Share of required chunks that were adopted.
    pub adopted: f64,
    /// What that cost.
    pub cost: f64,
}

/// The useful settings of a policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontier {
    /// Ascending by both.
    points: Vec<Point>,
}

impl Frontier {
    /// Of settings in any order.
    pub fn of(points: impl IntoIterator<Item = Point>) -> Self {
        let mut all: Vec<Point> = points.into_iter().collect();
        all.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(b.adopted.total_cmp(&a.adopted)));
        let mut points: Vec<Point> = vec![];
        for point in all {
            if points.last().is_none_or(|last| point.adopted > last.adopted) {
                points.push(point);
            }
        }
        Self { points }
    }

    /// The useful settings, ascending by share and cost.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The most that any setting adopts; `None`: there is none.
    pub fn most(&self) -> Option<&Point> {
        self.points.last()
    }

    /// What adopting at least this share costs; `None`: no setting adopts so much.
    pub fn cost_at(&self, adopted: f64) -> Option<f64> {
        let above = self.points.iter().position(|point| point.adopted >= adopted)?;
        let upper = &self.points[above];
        let Some(lower) = above.checked_sub(1).map(|below| &self.points[below]) else {
            return Some(upper.cost);
        };
        let part = (adopted - lower.adopted) / (upper.adopted - lower.adopted);
        Some(lower.cost + part * (upper.cost - lower.cost))
    }

    /// How this frontier lies to `other`, at each of the other's points.
    pub fn against(&self, other: &Self) -> Comparison {
        let mut comparison = Comparison::default();
        for point in &other.points {
            comparison.points += 1;
            let ratio = self.cost_at(point.adopted).map(|cost| ratio(cost, point.cost));
            comparison.above += usize::from(ratio.is_some_and(|ratio| ratio <= 1.0 + EQUAL));
            // Out of reach is worse than dear.
            let size = |ratio: Option<f64>| ratio.unwrap_or(f64::INFINITY);
            if comparison.worst.as_ref().is_none_or(|worst| size(ratio) > size(worst.ratio)) {
                comparison.worst = Some(Worst { point: point.clone(), ratio });
            }
        }
        comparison
    }
}

/// Costs that differ by less than this share are equal: rounding.
const EQUAL: f64 = 1e-9;

fn ratio(cost: f64, other: f64) -> f64 {
    if cost <= other {
        1.0_f64.min(cost / other.max(f64::MIN_POSITIVE))
    } else {
        cost / other.max(1e-12)
    }
}

/// How one frontier lies to others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Points of the others.
    pub points: usize,
    /// Those where as much is adopted for as little or less.
    pub above: usize,
    /// The point that compares worst.
    pub worst: Option<Worst>,
}

/// A point where a frontier lies worst to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    /// The other's point.
    pub point: Point,
    /// Cost for as much, in units of the other's; `None`: so much is not adopted.
    pub ratio: Option<f64>,
}

impl Comparison {
    /// Whether it lies above, or on, everywhere.
    pub fn is_above(&self) -> bool {
        self.points > 0 && self.above == self.points
    }

    /// Takes in another comparison of the same frontier.
    pub fn add(&mut self, other: Self) {
        self.points += other.points;
        self.above += other.above;
        let size = |worst: &Option<Worst>| {
            worst.as_ref().map_or(-1.0, |w| w.ratio.unwrap_or(f64::INFINITY))
        };
        if size(&other.worst) > size(&self.worst) {
            self.worst = other.worst;
        }
    }
}

/// Staged copies that are allowed where their number is limited to `share` of the dirty set: of the
/// mean number of chunks that a snapshot requires. At least one.
#[allow(clippy::cast_sign_loss, reason = "neither is negative")]
pub fn staging_limit(required: u64, snapshots: usize, share: f64) -> u64 {
    ((required as f64 / snapshots.max(1) as f64 * share).ceil() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontier(points: &[(f64, f64)]) -> Frontier {
        let point = |&(adopted, cost): &(f64, f64)| Point { policy: "p".into(), adopted, cost };
        Frontier::of(points.iter().map(point))
    }

    fn shares(frontier: &Frontier) -> Vec<(f64, f64)> {
        frontier.points().iter().map(|point| (point.adopted, point.cost)).collect()
    }

    #[test]
    fn settings_that_adopt_less_for_more_are_left_out() {
        let all = frontier(&[(0.9, 1.0), (0.5, 0.5), (0.8, 1.2), (0.95, 2.0), (0.9, 1.1)]);
        assert_eq!(shares(&all), [(0.5, 0.5), (0.9, 1.0), (0.95, 2.0)]);
        assert_eq!(all.most(), all.points().last());
        assert_eq!(frontier(&[]).most(), None);
    }

    #[test]
    fn cost_is_interpolated_and_not_extrapolated() {
        let some = frontier(&[(0.9, 1.0), (0.98, 1.2), (1.0, 2.0)]);
        let cost = |adopted| some.cost_at(adopted).map(|cost| (cost * 1e6).round() / 1e6);
        assert_eq!(cost(0.99), Some(1.6));
        assert_eq!(cost(0.94), Some(1.1));
        assert_eq!(cost(0.98), Some(1.2));
        assert_eq!(cost(0.5), Some(1.0), "more is adopted for the least that can be paid");
        assert_eq!(frontier(&[(0.98, 1.0)]).cost_at(0.99), None);
    }

    #[test]
    fn a_frontier_is_above_where_as_much_costs_as_little() {
        let better = frontier(&[(0.5, 0.4), (0.9, 0.9), (0.99, 1.0)]);
        let worse = frontier(&[(0.7, 0.8), (0.99, 1.5)]);
        let comparison = better.against(&worse);
        assert!(comparison.is_above(), "{comparison:?}");
        assert_eq!((comparison.points, comparison.above), (2, 2));
        assert!(better.against(&better).is_above(), "as good as itself");
        let comparison = worse.against(&better);
        assert!(!comparison.is_above() && comparison.above == 0, "{comparison:?}");
        let at = comparison.worst.unwrap();
        assert!((at.point.adopted - 0.5).abs() < 1e-9 && (at.ratio.unwrap() - 2.0).abs() < 1e-9);
        // What is not reached is worst of all.
        let further = frontier(&[(0.5, 0.1), (0.995, 9.0)]);
        let mut comparison = worse.against(&better);
        comparison.add(worse.against(&further));
        assert_eq!(comparison.points, 5);
        assert_eq!(comparison.worst.unwrap().ratio, None);
        assert!(!Comparison::default().is_above(), "of nothing");
    }

    #[test]
    fn the_staging_limit_is_a_share_of_what_a_snapshot_requires() {
        assert_eq!(staging_limit(4000, 10, 0.25), 100);
        assert_eq!(staging_limit(4001, 10, 0.25), 101, "rounded up");
        assert_eq!(staging_limit(3, 10, 0.25), 1);
        assert_eq!(staging_limit(0, 0, 0.25), 1);
    }
}
