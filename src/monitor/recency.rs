//! Row ids in order of their last access: a linked list in two flat tables.

use super::RowId;

const NONE: RowId = RowId::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    older: RowId,
    newer: RowId,
}

#[derive(Debug)]
pub(super) struct Recency {
    links: Vec<Links>,
    oldest: RowId,
    newest: RowId,
}

impl Default for Recency {
    fn default() -> Self {
        Self { links: Vec::new(), oldest: NONE, newest: NONE }
    }
}

impl Recency {
    /// A row that is not in the list becomes its newest.
    pub fn add(&mut self, row: RowId) {
        let place = row as usize;
        if place >= self.links.len() {
            self.links.resize(place + 1, Links { older: NONE, newer: NONE });
        }
        self.links[place] = Links { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = row,
            newest => self.links[newest as usize].newer = row,
        }
        self.newest = row;
    }

    /// A row of the list leaves it.
    pub fn remove(&mut self, row: RowId) {
        let Links { older, newer } = self.links[row as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
    }

    /// A row of the list becomes its newest.
    pub fn touch(&mut self, row: RowId) {
        if self.newest != row {
            self.remove(row);
            self.add(row);
        }
    }

    /// The row that was not touched for longest.
    pub fn oldest(&self) -> Option<RowId> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Links>()
    }
}
