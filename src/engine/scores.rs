//! What a predictor, outside the engine, thinks of chunks.

use super::limits::FixedHashMap;
use crate::gate::ChunkIndex;

/// A probability in steps of 1/65535, so that settings can be compared and scores be sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(pub u16);

impl Score {
    /// The score of `probability`; what is no probability becomes the nearest one, not a number 0.
    #[allow(clippy::cast_sign_loss, reason = "clamped to 0 and above")]
    pub fn of(probability: f32) -> Self {
        Score((probability.clamp(0.0, 1.0) * f32::from(u16::MAX)).round() as u16)
    }

    /// As a probability.
    pub fn probability(self) -> f32 {
        f32::from(self.0) / f32::from(u16::MAX)
    }
}

/// The scores of one moment.
///
/// Memory: 28 bytes and a map's overhead per chunk scored.
#[derive(Debug, Default)]
pub(super) struct Scores {
    threshold: Score,
    by_chunk: FixedHashMap<ChunkIndex, Score>,
    /// At least as high as the threshold, the highest last.
    due: Vec<(Score, ChunkIndex)>,
    /// Staged when the scores came, the lowest last.
    staged: Vec<(Score, ChunkIndex)>,
}

impl Scores {
    pub fn new(
        scores: Vec<(ChunkIndex, Score)>,
        threshold: Score,
        is_staged: impl Fn(ChunkIndex) -> bool,
    ) -> Self {
        let pairs = || scores.iter().map(|&(chunk, score)| (score, chunk));
        let mut due: Vec<_> = pairs().filter(|&(score, _)| score >= threshold).collect();
        due.sort_unstable();
        let mut staged: Vec<_> = pairs().filter(|&(_, chunk)| is_staged(chunk)).collect();
        staged.sort_unstable_by(|a, b| b.cmp(a));
        Self { threshold, due, staged, by_chunk: scores.into_iter().collect() }
    }

    pub fn of(&self, chunk: ChunkIndex) -> Option<Score> {
        self.by_chunk.get(&chunk).copied()
    }

    /// The chunk with the highest score that is wanted and was not given before.
    pub fn next(&mut self, wanted: impl Fn(ChunkIndex) -> bool) -> Option<ChunkIndex> {
        loop {
            let (_, chunk) = self.due.pop()?;
            if wanted(chunk) {
                return Some(chunk);
            }
        }
    }

    /// The staged chunk with the lowest score, not given before, if it is lower than that of `chunk`
    /// by half the threshold: the gain has to pay for the copy that it costs.
    pub fn victim(&mut self, chunk: ChunkIndex) -> Option<ChunkIndex> {
        let score = self.of(chunk)?;
        let &(lowest, victim) = self.staged.last()?;
        if score.0.saturating_sub(lowest.0) < (self.threshold.0 / 2).max(1) {
            return None;
        }
        self.staged.pop();
        Some(victim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_probabilities() {
        assert_eq!(Score::of(0.0), Score(0));
        assert_eq!(Score::of(1.0), Score(u16::MAX));
        assert_eq!((Score::of(-1.0), Score::of(2.0)), (Score(0), Score(u16::MAX)));
        assert_eq!(Score::of(f32::NAN), Score(0));
        assert!((Score::of(0.37).probability() - 0.37).abs() < 1e-4);
    }

    #[test]
    fn the_best_first_and_the_worst_make_room() {
        let scores = [(1, 300), (2, 900), (3, 650), (4, 100), (5, 200), (6, 800)];
        let scores = scores.map(|(chunk, score)| (ChunkIndex(chunk), Score(score)));
        let is_staged = |chunk: ChunkIndex| [1, 4, 5].contains(&chunk.0);
        let mut scores = Scores::new(scores.to_vec(), Score(600), is_staged);
        assert_eq!(scores.next(|chunk| chunk.0 != 2), Some(ChunkIndex(6)));
        assert_eq!(scores.victim(ChunkIndex(2)), Some(ChunkIndex(4)));
        assert_eq!(scores.next(|_| true), Some(ChunkIndex(3)));
        assert_eq!(scores.victim(ChunkIndex(3)), Some(ChunkIndex(5)));
        assert_eq!(scores.victim(ChunkIndex(3)), Some(ChunkIndex(1)), "350 better");
        assert_eq!(scores.next(|_| true), None, "the others are below the threshold");
        assert_eq!(scores.victim(ChunkIndex(7)), None, "unknown");
    }
}
