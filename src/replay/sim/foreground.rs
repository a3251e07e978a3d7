//! Logical clients: modifying commands through the real gate, as a volume's channel sends them.

use super::disks::Tag;
use super::marks::Mark;
use super::random::mix;
use super::world::{Happening, LANES, World, trace};
use crate::engine::events::{Event, Micros};
use crate::gate::{ChunkIndex, ChunkState, Epoch, LbaRange, OperationNumber, Passage};

/// A command between submission and acknowledgement.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub client: usize,
    pub range: LbaRange,
    /// What it writes; 0 for write zeroes and unmap.
    pub tag: Tag,
    pub passage: Option<Passage>,
    pub epoch: Epoch,
    pub operation: OperationNumber,
    /// It lands in so many parts, scattered over its range.
    pub parts: u64,
    pub landed: u64,
    pub stuck: bool,
    pub parked_times: u32,
    /// When it was parked for the first time, and what the process took for that moment.
    pub parked_at: Option<(u64, Micros)>,
}

/// A command that waits for a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkedCommand {
    pub id: u32,
    pub chunk: ChunkIndex,
    /// Since when it waits, for other chunks before included.
    pub since: u64,
}

impl World {
    pub fn client(&mut self, client: usize) {
        if self.commands_left == 0 || self.ending || self.node().draining {
            return;
        }
        self.commands_left -= 1;
        self.command_count += 1;
        let id = self.command_count;
        let zeroes = self.random.chance(self.swarm.zeroes_per_mille);
        let command = Command {
            client,
            range: self.draw_range(zeroes),
            tag: if zeroes { 0 } else { id },
            passage: None,
            epoch: Epoch(0),
            operation: OperationNumber(0),
            parts: self.random.between(1, 3),
            landed: 0,
            stuck: self.random.chance(self.swarm.stuck_per_mille),
            parked_times: 0,
            parked_at: None,
        };
        self.commands.insert(id, command);
        self.submit(id);
    }

    fn draw_range(&mut self, zeroes: bool) -> LbaRange {
        let chunks = u64::from(self.geometry.chunk_count());
        let hot = self.random.chance(self.swarm.hot_per_mille);
        let chunk = self.random.below(if hot { chunks.min(2) } else { chunks });
        let per_chunk = self.geometry.chunk_lbas();
        let lbas = self.geometry.volume_lbas();
        let (lba, count) = if self.random.chance(self.swarm.spanning_per_mille) {
            let chunks = self.random.between(2, 3);
            (chunk * per_chunk + self.random.below(per_chunk), chunks * per_chunk - per_chunk / 2)
        } else if zeroes && self.random.chance(500) {
            (chunk * per_chunk, per_chunk)
        } else {
            let first = self.random.below(per_chunk);
            let count = if self.random.chance(500) { 1 } else { per_chunk - first };
            (chunk * per_chunk + first, self.random.between(1, count))
        };
        let lba = lba.min(lbas - 1);
        LbaRange::new(lba, count.clamp(1, lbas - lba))
    }

    /// Enters the gate, or parks, as the volume does.
    fn submit(&mut self, id: u32) {
        let now = (self.now, self.micros());
        let gate = self.node().gate.clone();
        let range = self.commands[&id].range;
        match self.node().lanes[id as usize % LANES].enter(range) {
            Ok(passage) => {
                // Nobody else is in the gate between its entry and here.
                let epoch = gate.epoch();
                let operation = OperationNumber(gate.next_operation().0 - 1);
                trace!(
                    self,
                    "command {id} {range:?} entered as {operation} in {epoch}, {passage:?}"
                );
                let command = self.commands.get_mut(&id).expect("submitted");
                command.passage = Some(passage);
                (command.epoch, command.operation) = (epoch, operation);
                if matches!(passage, Passage::Open(_)) {
                    self.mark(Mark::PassedOpen);
                }
                if gate.is_cut_active() {
                    let old_epoch = Epoch(epoch.0 - 1);
                    let adopted = |&chunk: &u32| {
                        let chunk = ChunkIndex(chunk);
                        gate.classify(chunk, old_epoch) == ChunkState::Adopted
                            && gate.in_flight(chunk) == 1
                    };
                    if self.geometry.chunks(range).any(|chunk| adopted(&chunk)) {
                        self.mark(Mark::AdoptedInline);
                    }
                }
                let stuck = self.commands[&id].stuck;
                let delay = if stuck {
                    self.mark(Mark::SlowCommand);
                    self.statistics.faults += 1;
                    self.swarm.parked_us_max * self.random.between(1, 3)
                } else {
                    self.delay(self.swarm.command_us_max)
                };
                self.after(delay, Happening::CommandStep(id));
            }
            Err(chunk) => {
                trace!(self, "command {id} {range:?} parked on {chunk}");
                let command = self.commands.get_mut(&id).expect("submitted");
                command.parked_times += 1;
                let (since, since_clock) = *command.parked_at.get_or_insert(now);
                let again = command.parked_times > 1;
                self.mark(if again { Mark::ParkedTwice } else { Mark::Parked });
                self.node().parked.push_back(ParkedCommand { id, chunk, since });
                let delay = self.random.below(self.swarm.message_us_max + 1);
                self.after(delay, Happening::ParkedMessage(chunk, since_clock));
                if self.swarm.parks_all {
                    for other in self.geometry.chunks(range).filter(|other| *other > chunk.0) {
                        let message = Happening::ParkedMessage(ChunkIndex(other), since_clock);
                        self.after(delay, message);
                    }
                }
            }
        }
    }

    pub fn parked_message(&mut self, chunk: ChunkIndex, since: Micros) {
        if !self.node().gate.is_cut_active() {
            self.mark(Mark::ParkedLate);
        }
        self.apply(Event::Parked { chunk, since });
    }

    pub fn wake_message(&mut self, chunk: Option<ChunkIndex>) {
        let node = self.node();
        node.wakes_under_way -= 1;
        let (woken, left): (Vec<ParkedCommand>, Vec<ParkedCommand>) =
            std::mem::take(&mut node.parked)
                .into_iter()
                .partition(|parked| chunk.is_none_or(|chunk| parked.chunk == chunk));
        node.parked = left.into();
        for parked in woken {
            self.submit(parked.id);
        }
    }

    pub fn command_step(&mut self, id: u32) {
        let command = &self.commands[&id];
        let (range, tag) = (command.range, command.tag);
        let (parts, part) = (command.parts, command.landed);
        let (epoch, operation, client) = (command.epoch, command.operation, command.client);
        if part < parts {
            for lba in range.lba..range.lba + range.count {
                if mix(u64::from(id) << 40 ^ lba) % parts == part {
                    self.landed(lba, tag, epoch, operation);
                }
            }
            self.commands.get_mut(&id).expect("looked up above").landed += 1;
            let delay = self.delay(self.swarm.command_us_max / 2);
            self.after(delay, Happening::CommandStep(id));
            return;
        }
        trace!(self, "command {id} is done");
        let now = self.micros();
        let node = self.node.as_mut().expect("a process is running");
        let passage = self.commands[&id].passage.expect("it entered");
        node.lanes[id as usize % LANES].leave(passage, range);
        for chunk in self.geometry.chunks(range) {
            node.engine.observe_write(ChunkIndex(chunk), now);
        }
        self.commands.remove(&id);
        self.statistics.commands += 1;
        let delay = self.delay(self.swarm.think_us_max);
        self.after(delay, Happening::Client(client));
    }
}
