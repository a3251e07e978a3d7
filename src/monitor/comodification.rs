//! Which chunks are modified together: a few partners per active chunk, learned from the order in
//! which chunks were modified within a window and across the border to its neighbours.

use super::{Monitor, RowId};

/// Partners kept per active chunk: an update of a file system or database touches data, journal,
/// bitmap, inode table and directory, and rarely more places that are far apart.
pub const PARTNERS: usize = 6;

/// Counts shrink by this share at each modification of their chunk, so that a partner which
/// stopped coming is replaced after some tens of modifications.
const FORGET: f32 = 1.0 / 32.0;

/// Added to the number of modifications: one joint modification is no habit yet.
const DOUBT: f32 = 2.0;

/// Proposals kept of one window.
const PROPOSALS_MAX: usize = 1024;

/// A chunk that is usually modified with one that just was, and is not active itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// The chunk.
    pub chunk: u32,
    /// Share of its partner's modifications that it took part in.
    pub confidence: f32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Partner {
    pub chunk: u32,
    /// Joint modifications, decayed with each modification of the chunk that keeps this; 0: none.
    pub hits: f32,
}

impl Partner {
    pub const NONE: Self = Self { chunk: super::NO_CHUNK, hits: 0.0 };

    pub fn confidence(self, modifications: f32) -> f32 {
        (self.hits / (modifications + DOUBT)).min(1.0)
    }
}

/// Modifications of the last windows, in order, and what was found from them.
#[derive(Debug, Default)]
pub(super) struct Comodification {
    /// The end of what came before `waiting`.
    before: Vec<(RowId, u32)>,
    /// Modifications of the window before: learned from once what followed is known.
    waiting: Vec<(RowId, u32)>,
    /// One sequence of the three, to look around in.
    sequence: Vec<(RowId, u32)>,
    proposals: Vec<Proposal>,
}

impl Comodification {
    pub fn proposals(&self) -> &[Proposal] {
        &self.proposals
    }

    pub fn memory_bytes(&self) -> usize {
        (self.before.capacity() + self.waiting.capacity() + self.sequence.capacity())
            * size_of::<(RowId, u32)>()
            + self.proposals.capacity() * size_of::<Proposal>()
    }
}

impl Monitor {
    /// Learns from the window before the one that is being closed, then lets what was modified in
    /// this one point at its partners.
    pub(super) fn learn_partners(&mut self) {
        let within = self.options.comodified_within;
        let mut table = std::mem::take(&mut self.comodification);
        table.sequence.clear();
        table.sequence.extend_from_slice(&table.before);
        let first = table.sequence.len();
        table.sequence.extend_from_slice(&table.waiting);
        let end = table.sequence.len();
        let ahead = self.modified_now.len().min(within);
        table.sequence.extend_from_slice(&self.modified_now[..ahead]);
        for place in first..end {
            let around =
                place.saturating_sub(within)..(place + within + 1).min(table.sequence.len());
            self.learn(table.sequence[place], &table.sequence[around]);
        }
        table.before.clear();
        table.before.extend_from_slice(&table.sequence[end.saturating_sub(within)..end]);
        table.waiting.clear();
        table.waiting.extend_from_slice(&self.modified_now);
        table.proposals.clear();
        self.point_at_partners(&mut table.proposals);
        self.comodification = table;
    }

    fn learn(&mut self, (row_id, chunk): (RowId, u32), around: &[(RowId, u32)]) {
        let row = &mut self.rows[row_id as usize];
        if row.chunk != chunk {
            return; // evicted since
        }
        self.learned += 1;
        row.modifications = row.modifications * (1.0 - FORGET) + 1.0;
        for partner in &mut row.partners {
            partner.hits *= 1.0 - FORGET;
        }
        // A chunk next to this one is followed by features of its own.
        let others = || around.iter().map(|other| other.1).filter(|o| o.abs_diff(chunk) > 1);
        // Those that are known first: a habit must not give way to a coincidence.
        let mut met = [false; PARTNERS];
        for other in others() {
            if let Some(known) = row.partners.iter().position(|p| p.hits > 0.0 && p.chunk == other)
                && !met[known]
            {
                met[known] = true;
                row.partners[known].hits += 1.0;
            }
        }
        // Of those that are not known one may replace the weakest partner that did not come this
        // time, whatever its past; each in its turn, as the true one may be far down the line.
        let known = |other: u32| row.partners.iter().any(|p| p.hits > 0.0 && p.chunk == other);
        let newcomers = others().filter(|&other| !known(other)).count();
        if newcomers == 0 {
            return;
        }
        let turn = self.learned as usize % newcomers;
        let newcomer = others().filter(|&other| !known(other)).nth(turn);
        let weakest = (0..PARTNERS)
            .filter(|&place| !met[place])
            .min_by(|&a, &b| row.partners[a].hits.total_cmp(&row.partners[b].hits));
        if let (Some(chunk), Some(place)) = (newcomer, weakest) {
            row.partners[place] = Partner { chunk, hits: 1.0 };
        }
    }

    fn point_at_partners(&mut self, proposals: &mut Vec<Proposal>) {
        for place in 0..self.modified_now.len() {
            let (row_id, chunk) = self.modified_now[place];
            let row = &self.rows[row_id as usize];
            if row.chunk != chunk {
                continue;
            }
            let (partners, modifications) = (row.partners, row.modifications);
            for partner in partners.iter().filter(|partner| partner.hits > 0.0) {
                let confidence = partner.confidence(modifications);
                if let Some(&other) = self.index.get(&partner.chunk) {
                    self.rows[other as usize].pointed_now += confidence;
                } else if confidence >= self.options.proposal_confidence_min {
                    proposals.push(Proposal { chunk: partner.chunk, confidence });
                }
            }
        }
        proposals
            .sort_by(|a, b| (a.chunk.cmp(&b.chunk)).then(b.confidence.total_cmp(&a.confidence)));
        proposals.dedup_by_key(|proposal| proposal.chunk);
        proposals.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.chunk.cmp(&b.chunk)));
        proposals.truncate(PROPOSALS_MAX);
        proposals.shrink_to(PROPOSALS_MAX);
    }
}
