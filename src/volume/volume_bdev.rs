//! The data path of a volume: every command goes through here, on whatever reactor it came.
//!
//! Nothing here waits, locks or allocates, but for commands that have to be parked.

use std::sync::Arc;

use super::access::{AccessKind, AccessRing, AccessRings, CommandKind};
use super::volume;
use crate::gate::{ChunkIndex, Entry, Gate, Lane, LbaRange, Passage};
use crate::spdk::bdev::{Desc, IoChannel, IoType};
use crate::spdk::bdev_module::{BdevDevice, BdevIo, ParkedIo, Status};
use crate::spdk::clock;
use crate::spdk::error::{Errno, IoError};
use crate::spdk::executor::LocalFuture;
use crate::spdk::json::JsonWriter;
use crate::spdk::thread::Thread;

/// Digits of the clock that are 0 in commands that are timed.
const TIMED_MASK: u64 = 0xf0;

/// A volume as its reactors see it.
pub struct VolumeDevice {
    /// Names the volume on the app thread.
    pub key: u64,
    /// The write gate.
    pub gate: Arc<Gate>,
    /// The master, opened for writing and claimed.
    pub master: Desc,
    /// What the master does.
    pub io_types: u64,
    /// Access records.
    pub rings: Arc<AccessRings>,
}

/// A reactor's part of a volume.
pub struct VolumeChannel {
    master: IoChannel,
    lane: Lane,
    ring: Arc<AccessRing>,
}

/// What a command carries along.
#[derive(Default)]
pub struct CommandState {
    /// How it came in through the gate.
    passage: Option<Passage>,
    /// When it was parked for the first time, in ticks.
    parked_at: Option<u64>,
}

impl BdevDevice for VolumeDevice {
    type Channel = VolumeChannel;
    type IoState = CommandState;

    fn io_type_supported(&self, io_type: IoType) -> bool {
        match io_type {
            IoType::Abort => false,
            other => self.io_types >> (other as u32) & 1 == 1,
        }
    }

    fn create_channel(&self) -> Result<VolumeChannel, Errno> {
        let master = self.master.channel()?;
        Ok(VolumeChannel { master, lane: self.gate.lane(), ring: self.rings.add() })
    }

    #[inline]
    fn submit(&self, channel: &VolumeChannel, io: BdevIo<Self>) {
        let kind = io.kind();
        if kind == IoType::Zcopy {
            if let Some(kind) = zcopy_kind(&io) {
                channel.ring.count(kind, io.num_blocks());
            }
            return zcopy(io);
        }
        channel.ring.count(command_kind(kind), io.num_blocks());
        match kind {
            IoType::Read => {
                self.rings.record(&channel.ring, range(&io), AccessKind::Read, io.submit_ticks());
                if is_timed(&io) {
                    io.forward_via(|channel| &channel.master, timed);
                } else {
                    io.pass_via(|channel| &channel.master, ended);
                }
            }
            IoType::Write => {
                let is_timed = is_timed(&io);
                admit(io, is_timed);
            }
            IoType::WriteZeroes | IoType::Unmap | IoType::CompareAndWrite | IoType::Copy => {
                admit(io, false);
            }
            IoType::Flush | IoType::Compare => io.pass_via(|channel| &channel.master, ended),
            IoType::Reset => reset(io),
            IoType::Zcopy | IoType::Abort => io.complete(Status::Failed),
        }
    }

    fn write_config_json(&self, w: &mut JsonWriter) {
        volume::write_config(self.key, w);
    }

    fn dump_info_json(&self, w: &mut JsonWriter) {
        volume::dump_info(self.key, w);
    }

    fn destruct(self: Arc<Self>) -> LocalFuture<()> {
        volume::destructed(self.key)
    }
}

fn command_kind(io_type: IoType) -> CommandKind {
    match io_type {
        IoType::Read => CommandKind::Read,
        IoType::Write => CommandKind::Write,
        IoType::WriteZeroes => CommandKind::WriteZeroes,
        IoType::Unmap => CommandKind::Unmap,
        IoType::Flush => CommandKind::Flush,
        IoType::Reset => CommandKind::Reset,
        IoType::Compare | IoType::CompareAndWrite => CommandKind::Compare,
        IoType::Zcopy | IoType::Abort | IoType::Copy => CommandKind::Other,
    }
}

/// What a zero copy counts as: one that shows data is a read, and one that takes data a write.
fn zcopy_kind(io: &BdevIo<VolumeDevice>) -> Option<CommandKind> {
    let zcopy = io.zcopy();
    match (zcopy.start, zcopy.populate) {
        (true, true) => Some(CommandKind::Read),
        (true, false) => Some(CommandKind::Write),
        // Counted at its start.
        (false, _) if io.state().passage.is_some() => None,
        (false, _) => zcopy.commit.then_some(CommandKind::Write),
    }
}

/// The master is done with a command that changes nothing.
fn ended(io: &mut BdevIo<VolumeDevice>, result: Result<(), IoError>) {
    if result.is_err() {
        io.channel().ring.count_failure();
    }
}

/// Whether it is noted what the command takes: one in sixteen, by digits of the clock that are as good as
/// chance.
#[inline]
fn is_timed(io: &BdevIo<VolumeDevice>) -> bool {
    io.submit_ticks() & TIMED_MASK == 0
}

/// As [`ended`], for a command that is timed.
fn timed(io: &mut BdevIo<VolumeDevice>, result: Result<(), IoError>) {
    io.channel().ring.time(clock::now_ticks().saturating_sub(io.submit_ticks()));
    ended(io, result);
}

fn range(io: &BdevIo<VolumeDevice>) -> LbaRange {
    LbaRange::new(io.offset_blocks(), io.num_blocks())
}

/// Brings a modifying command into the gate and to the master, or parks it.
fn admit(mut io: BdevIo<VolumeDevice>, is_timed: bool) {
    if io.num_blocks() == 0 {
        return io.complete(Status::Success);
    }
    let (range, ticks) = (range(&io), io.submit_ticks());
    let (device, channel, state) = io.parts();
    match channel.lane.enter(range) {
        Ok(passage) => {
            state.passage = Some(passage);
            device.rings.record(&channel.ring, range, AccessKind::Modify, ticks);
            if is_timed {
                io.forward_via(|channel| &channel.master, landed_timed);
            } else {
                io.forward_via(|channel| &channel.master, landed);
            }
        }
        Err(chunk) => park(io, chunk),
    }
}

/// The master is done with a command that had entered.
fn landed(io: &mut BdevIo<VolumeDevice>, result: Result<(), IoError>) {
    // Well or not: a failed write may have changed some of its blocks.
    let range = range(io);
    let (_, channel, state) = io.parts();
    if let Some(passage) = state.passage.take() {
        channel.lane.leave(passage, range);
    }
    ended(io, result);
}

/// As [`landed`], for a command that is timed.
fn landed_timed(io: &mut BdevIo<VolumeDevice>, result: Result<(), IoError>) {
    io.channel().ring.time(clock::now_ticks().saturating_sub(io.submit_ticks()));
    landed(io, result);
}

#[cold]
fn park(mut io: BdevIo<VolumeDevice>, chunk: ChunkIndex) {
    let key = io.device().key;
    let range = range(&io);
    // A command on many chunks may be parked on one after the other; its time does not begin anew.
    let since_ticks = *io.state_mut().parked_at.get_or_insert_with(clock::now_ticks);
    let parked = io.park();
    Thread::app().send(move || volume::parked(key, chunk, range, since_ticks, parked));
}

/// Sends a parked command to its reactor to enter again.
pub fn wake(parked: ParkedIo<VolumeDevice>) {
    // Not timed: what it waited for is not that copies took the devices.
    parked.resume_with(|io| if io.kind() == IoType::Zcopy { zcopy(io) } else { admit(io, false) });
}

/// A zero copy comes twice: its start gets a buffer, its end gives that back.
///
/// One that is to be written gets the master's own buffer, and is in the gate from its start to its
/// end. One that shows what is on the master gets a copy: reads do not wait at the gate, and in the
/// master's own buffer its user could change things unseen. Should it be committed, that is a write.
fn zcopy(mut io: BdevIo<VolumeDevice>) {
    let zcopy = io.zcopy();
    if zcopy.start && zcopy.populate {
        let (device, ring) = (io.device(), &io.channel().ring);
        device.rings.record(ring, range(&io), AccessKind::Read, io.submit_ticks());
        io.use_own_buffer();
        io.forward_via(|channel| &channel.master, ended);
    } else if zcopy.start {
        lend(io);
    } else if io.state().passage.is_some() {
        io.forward_via(|channel| &channel.master, landed);
    } else if zcopy.commit {
        admit(io, false);
    } else {
        io.complete(Status::Success);
    }
}

/// Brings a zero copy into the gate and has the master lend its buffer, or parks it.
fn lend(mut io: BdevIo<VolumeDevice>) {
    if io.num_blocks() == 0 {
        return io.complete(Status::Success);
    }
    let (range, ticks) = (range(&io), io.submit_ticks());
    let (device, channel, state) = io.parts();
    // Not by the lane: how long the buffer is out is its user's affair, and all chunks of the volume
    // would have to wait for the end of its turn. Nor need the end come on the thread of the start.
    match device.gate.enter(range) {
        Entry::Entered { epoch, .. } => {
            state.passage = Some(Passage::Counted(epoch));
            device.rings.record(&channel.ring, range, AccessKind::Modify, ticks);
            io.forward_via(|channel| &channel.master, lent);
        }
        Entry::Parked { chunk } | Entry::Saturated { chunk } => park(io, chunk),
    }
}

/// The master has lent its buffer, and the command stays in the gate until its end; or it has not.
fn lent(io: &mut BdevIo<VolumeDevice>, result: Result<(), IoError>) {
    if result.is_err() {
        landed(io, result);
    }
}

/// Ends a parked command on its reactor.
pub fn abort(parked: ParkedIo<VolumeDevice>) {
    parked.resume_with(|io| io.complete(Status::Aborted));
}

/// A reset ends every command: parked ones are aborted, then the master resets what it has.
fn reset(io: BdevIo<VolumeDevice>) {
    let key = io.device().key;
    let parked = io.park();
    Thread::app().send(move || {
        volume::abort_parked(key);
        parked.resume_with(|io| {
            io.forward_via(|channel| &channel.master, ended);
        });
    });
}
