//! A device in memory that can lose power.
//!
//! It keeps what a reader sees (the live image), what the last flush made durable, and every block
//! written since. A crash image is the durable one plus any choice of the later block writes:
//! each block independently has its durable content or one of those written since, which covers
//! lost, reordered and torn writes. All choices follow from a seed. Images share their pages, so a
//! test can take one at each of thousands of operations.

use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::device::Device;

const PAGE_BYTES: usize = 4096;
const PAGES_PER_TABLE: usize = 512;

type Page = Arc<[u8; PAGE_BYTES]>;
type Table = Arc<Vec<Option<Page>>>;

/// A sparse image in shared pages; absent pages read as zeros.
#[derive(Clone, Default)]
struct Image {
    tables: Vec<Option<Table>>,
}

impl Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset as usize + done;
            let (page, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let length = (PAGE_BYTES - start).min(buffer.len() - done);
            let target = &mut buffer[done..done + length];
            let table = self.tables.get(page / PAGES_PER_TABLE).and_then(Option::as_ref);
            match table.and_then(|table| table[page % PAGES_PER_TABLE].as_ref()) {
                Some(page) => target.copy_from_slice(&page[start..start + length]),
                None => target.fill(0),
            }
            done += length;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset as usize + done;
            let (page, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let length = (PAGE_BYTES - start).min(data.len() - done);
            let table_index = page / PAGES_PER_TABLE;
            if table_index >= self.tables.len() {
                self.tables.resize(table_index + 1, None);
            }
            let table = self.tables[table_index]
                .get_or_insert_with(|| Arc::new(vec![None; PAGES_PER_TABLE]));
            let page = Arc::make_mut(table)[page % PAGES_PER_TABLE]
                .get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[start..start + length].copy_from_slice(&data[done..done + length]);
            done += length;
        }
    }
}

/// What a power cut does to the writes that no flush has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// All of them are lost.
    LoseAll,
    /// None of them is lost.
    KeepAll,
    /// Each block keeps its durable content or gets one of those written since; the seed chooses.
    Scramble {
        /// Chooses.
        seed: u64,
    },
}

#[derive(Clone)]
struct State {
    live: Image,
    durable: Image,
    /// Block number to the contents written since the last flush, oldest first.
    unflushed: BTreeMap<u64, Vec<Arc<[u8]>>>,
    /// Writes and flushes so far.
    operations: u64,
    flushes: u64,
    bytes_written: u64,
    /// The operation at which power goes; it and all later calls fail.
    stop_at: Option<u64>,
    /// Operations that fail, the device staying alive.
    failing: Vec<Range<u64>>,
    read_errors: Vec<(u64, u64)>,
}

/// A [`Device`] in memory with faults; see the module.
pub struct SimDevice {
    block_bytes: u32,
    size_bytes: u64,
    state: Mutex<State>,
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDevice")
            .field("block_bytes", &self.block_bytes)
            .field("size_bytes", &self.size_bytes)
            .field("operations", &self.lock().operations)
            .finish_non_exhaustive()
    }
}

/// Splitmix64: small, seedable, good enough to choose faults.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn injected(what: &str) -> io::Error {
    io::Error::other(format!("simulated device: {what}"))
}

impl SimDevice {
    /// A device of zeros. Panics unless the size is a multiple of the block size.
    pub fn new(block_bytes: u32, size_bytes: u64) -> Self {
        assert!(block_bytes.is_power_of_two() && block_bytes as usize <= PAGE_BYTES);
        assert!(size_bytes.is_multiple_of(u64::from(block_bytes)));
        Self::with_image(block_bytes, size_bytes, Image::default())
    }

    fn with_image(block_bytes: u32, size_bytes: u64, image: Image) -> Self {
        let state = State {
            durable: image.clone(),
            live: image,
            unflushed: BTreeMap::new(),
            operations: 0,
            flushes: 0,
            bytes_written: 0,
            stop_at: None,
            failing: Vec::new(),
            read_errors: Vec::new(),
        };
        SimDevice { block_bytes, size_bytes, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes and flushes so far, those that failed included.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    /// Whether a power cut could lose anything.
    pub fn has_unflushed(&self) -> bool {
        !self.lock().unflushed.is_empty()
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.lock().bytes_written
    }

    /// Cuts power at operation number `operation` (writes and flushes count, from 0): a write then
    /// counts as submitted, so that any of its blocks may survive; a flush does not happen. That
    /// call and every later one fail.
    pub fn stop_at(&self, operation: u64) {
        self.lock().stop_at = Some(operation);
    }

    /// Lets the writes and flushes with these numbers fail; nothing of them is done.
    pub fn fail_operations(&self, operations: Range<u64>) {
        self.lock().failing.push(operations);
    }

    /// Lets reads that touch `[start, end)` fail until [`SimDevice::heal`].
    pub fn fail_reads(&self, start: u64, end: u64) {
        self.lock().read_errors.push((start, end));
    }

    /// Takes back all faults; power is on again, with the live image.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.stop_at = None;
        state.failing.clear();
        state.read_errors.clear();
    }

    /// A second device with the same images, without the faults. Cheap.
    #[must_use]
    pub fn fork(&self) -> SimDevice {
        let mut state = self.lock().clone();
        state.stop_at = None;
        state.failing.clear();
        state.read_errors.clear();
        SimDevice {
            block_bytes: self.block_bytes,
            size_bytes: self.size_bytes,
            state: Mutex::new(state),
        }
    }

    /// What is on the device after a power cut now, as a device of its own. Cheap.
    #[must_use]
    pub fn crash(&self, mode: CrashMode) -> SimDevice {
        let state = self.lock();
        let image = match mode {
            CrashMode::LoseAll => state.durable.clone(),
            CrashMode::KeepAll => state.live.clone(),
            CrashMode::Scramble { seed } => {
                let mut image = state.durable.clone();
                let mut random = seed;
                for (block, contents) in &state.unflushed {
                    let choices = contents.len() as u64 + 1;
                    let choice = (next_random(&mut random) % choices) as usize;
                    if let Some(content) = contents.get(choice) {
                        image.write(block * u64::from(self.block_bytes), content);
                    }
                }
                image
            }
        };
        Self::with_image(self.block_bytes, self.size_bytes, image)
    }

    /// The live image, whole. Panics if it does not fit into memory.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size_bytes).expect("fits into memory")];
        self.lock().live.read(0, &mut bytes);
        bytes
    }

    /// Writes anywhere, past all bookkeeping and faults, durable at once: for damage in tests.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.size_bytes);
        let mut state = self.lock();
        state.live.write(offset, data);
        state.durable.write(offset, data);
    }

    /// Reads anywhere, past all bookkeeping and faults.
    pub fn peek(&self, offset: u64, buffer: &mut [u8]) {
        assert!(offset + buffer.len() as u64 <= self.size_bytes);
        self.lock().live.read(offset, buffer);
    }

    fn check_range(&self, offset: u64, length: usize) -> io::Result<()> {
        let block_bytes = u64::from(self.block_bytes);
        let end = offset.checked_add(length as u64);
        if !offset.is_multiple_of(block_bytes)
            || !(length as u64).is_multiple_of(block_bytes)
            || end.is_none_or(|end| end > self.size_bytes)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("simulated device: {length} bytes at {offset}"),
            ));
        }
        Ok(())
    }
}

impl State {
    /// Counts an operation; says whether power goes at it.
    fn count(&mut self) -> io::Result<bool> {
        let operation = self.operations;
        self.operations += 1;
        match self.stop_at {
            Some(stop) if operation > stop => Err(injected("power is off")),
            Some(stop) if operation == stop => Ok(true),
            _ if self.failing.iter().any(|some| some.contains(&operation)) => {
                Err(injected("injected error"))
            }
            _ => Ok(false),
        }
    }
}

impl Device for SimDevice {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buffer.len())?;
        let state = self.lock();
        if state.stop_at.is_some_and(|stop| state.operations > stop) {
            return Err(injected("power is off"));
        }
        let end = offset + buffer.len() as u64;
        if state.read_errors.iter().any(|(from, to)| offset < *to && *from < end) {
            return Err(injected("injected read error"));
        }
        state.live.read(offset, buffer);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len())?;
        let mut state = self.lock();
        let stopping = state.count()?;
        state.live.write(offset, data);
        state.bytes_written += data.len() as u64;
        let first = offset / u64::from(self.block_bytes);
        for (block, content) in (first..).zip(data.chunks(self.block_bytes as usize)) {
            state.unflushed.entry(block).or_default().push(content.into());
        }
        if stopping { Err(injected("power went off")) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.count()? {
            return Err(injected("power went off"));
        }
        state.flushes += 1;
        state.durable = state.live.clone();
        state.unflushed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn block_at(device: &SimDevice, block: u64) -> u8 {
        let mut buffer = [0; BLOCK];
        device.peek(block * BLOCK as u64, &mut buffer);
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "a block is never torn");
        buffer[0]
    }

    #[test]
    fn a_crash_keeps_flushed_blocks_and_any_of_the_others() {
        let device = SimDevice::new(BLOCK as u32, 1 << 20);
        device.write(0, &[1; 4 * BLOCK]).unwrap();
        device.flush().unwrap();
        device.write(BLOCK as u64, &[2; 2 * BLOCK]).unwrap();
        device.write(2 * BLOCK as u64, &[3; 2 * BLOCK]).unwrap();
        assert_eq!(block_at(&device.crash(CrashMode::LoseAll), 1), 1);
        assert_eq!(block_at(&device.crash(CrashMode::KeepAll), 2), 3);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let crashed = device.crash(CrashMode::Scramble { seed });
            let blocks = [0, 1, 2, 3].map(|block| block_at(&crashed, block));
            assert_eq!(blocks, {
                let again = device.crash(CrashMode::Scramble { seed });
                [0, 1, 2, 3].map(|block| block_at(&again, block))
            });
            seen.insert(blocks);
        }
        // Block 0 is durable, 1 has two possible contents, 2 three, 3 two.
        assert_eq!(seen.len(), 2 * 3 * 2);
    }

    #[test]
    fn power_goes_at_the_named_operation_and_stays_away() {
        let device = SimDevice::new(4096, 1 << 20);
        device.stop_at(1);
        device.write(0, &[7; 4096]).unwrap();
        assert!(device.flush().is_err());
        assert!(device.write(4096, &[7; 4096]).is_err());
        assert!(device.read(0, &mut [0; 4096]).is_err());
        let mut buffer = [1; 4096];
        device.crash(CrashMode::LoseAll).read(0, &mut buffer).unwrap();
        assert_eq!(buffer[0], 0);
    }

    #[test]
    fn unaligned_access_is_refused() {
        let device = SimDevice::new(4096, 1 << 20);
        assert!(device.write(1, &[0; 4096]).is_err());
        assert!(device.write(0, &[0; 100]).is_err());
        assert!(device.read((1 << 20) - 512, &mut [0; 4096]).is_err());
    }

    #[test]
    fn forks_do_not_see_each_other() {
        let device = SimDevice::new(512, 1 << 20);
        device.write(0, &[1; 512]).unwrap();
        let fork = device.fork();
        fork.write(0, &[2; 512]).unwrap();
        assert_eq!((block_at(&device, 0), block_at(&fork, 0)), (1, 2));
    }
}
