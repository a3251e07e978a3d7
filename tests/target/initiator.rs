//! An NVMe/TCP initiator of a page: shows what is on the wire, which SPDK's own initiator keeps to
//! itself (Identify Namespace, status codes, refused connections).
//!
//! One command at a time, or two fused ones, in-capsule data only. NVMe over Fabrics 1.1, section 7.4.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The host's name, unless a test wants another.
pub const HOST: &str = "nqn.2016-06.io.spdk:test-host";

/// "Namespace is Write Protected" (generic).
pub const WRITE_PROTECTED: (u8, u8) = (0, 0x20);
/// "Connect Invalid Host" (command specific).
pub const INVALID_HOST: (u8, u8) = (1, 0x84);

/// "Compare Failure" (media).
pub const COMPARE_FAILURE: (u8, u8) = (2, 0x85);
/// "Command Aborted due to Failed Fused Command" (generic).
const ABORTED_FAILED_FUSED: (u8, u8) = (0, 9);

/// SPDK takes that much in a command capsule, unless told otherwise.
const IN_CAPSULE_BYTES: usize = 4096;
const ANSWER_MAX: Duration = Duration::from_secs(30);
const PDU_COMMAND: u8 = 4;
const PDU_RESPONSE: u8 = 5;
const PDU_DATA: u8 = 7;
/// Flag of a data PDU: the command has ended well, no response follows.
const DATA_SUCCESS: u8 = 8;
const FABRICS: u8 = 0x7f;
const CONTROLLER_ANY: u16 = 0xffff;

/// Why something did not work.
#[derive(Debug)]
pub enum Error {
    /// The connection ended.
    Io(#[expect(dead_code, reason = "shown by Debug")] io::Error),
    /// The command ended with this status code type and status code.
    Status(u8, u8),
}

impl Error {
    /// The status, if it is one.
    pub fn status(&self) -> Option<(u8, u8)> {
        match self {
            Self::Io(_) => None,
            Self::Status(sct, sc) => Some((*sct, *sc)),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A submission queue entry.
#[derive(Default)]
struct Command {
    opcode: u8,
    namespace: u32,
    /// Byte offset and value, little-endian.
    fields: Vec<(usize, Vec<u8>)>,
}

impl Command {
    fn new(opcode: u8, namespace: u32) -> Self {
        Self { opcode, namespace, fields: Vec::new() }
    }

    fn fabrics(function: u8) -> Self {
        Self::new(FABRICS, u32::from(function))
    }

    fn with(mut self, at: usize, value: &[u8]) -> Self {
        self.fields.push((at, value.to_vec()));
        self
    }
}

/// A connection as it is before the first PDU.
pub fn connection(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The PDU that asks for the connection to be initialized.
pub fn initialize_request() -> [u8; 128] {
    let mut request = [0; 128];
    request[2] = 128;
    request[4..8].copy_from_slice(&128_u32.to_le_bytes());
    request
}

/// A connection that waits for commands.
pub fn negotiated(port: u16) -> io::Result<TcpStream> {
    let mut stream = connection(port)?;
    stream.write_all(&initialize_request())?;
    stream.read_exact(&mut [0; 128])?;
    Ok(stream)
}

struct Queue {
    stream: TcpStream,
    next: u16,
}

impl Queue {
    fn connect(
        port: u16,
        subsystem: &str,
        host: &str,
        queue: u16,
        id: u16,
        keep_alive_ms: u32,
    ) -> Result<(Self, u16), Error> {
        let mut this = Self { stream: negotiated(port)?, next: 0 };
        let mut data = vec![0; 1024];
        data[..16].copy_from_slice(&[7; 16]);
        data[16..18].copy_from_slice(&id.to_le_bytes());
        data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        data[512..512 + host.len()].copy_from_slice(host.as_bytes());
        let command = Command::fabrics(1)
            .with(42, &queue.to_le_bytes())
            .with(44, &31_u16.to_le_bytes())
            .with(48, &keep_alive_ms.to_le_bytes());
        let (result, _) = this.run(&command, &data, 0)?;
        Ok((this, result as u16))
    }

    /// One command: its result and what was read.
    fn run(
        &mut self,
        command: &Command,
        data: &[u8],
        read: usize,
    ) -> Result<(u32, Vec<u8>), Error> {
        self.submit(command, data, read)?;
        self.answer(read)
    }

    fn submit(&mut self, command: &Command, data: &[u8], read: usize) -> Result<(), Error> {
        assert!(data.len() <= IN_CAPSULE_BYTES, "in-capsule data only");
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut entry = [0; 64];
        entry[0] = command.opcode;
        entry[1] = 0x40; // scatter-gather list
        entry[2..4].copy_from_slice(&id.to_le_bytes());
        entry[4..8].copy_from_slice(&command.namespace.to_le_bytes());
        let len = data.len().max(read);
        entry[32..36].copy_from_slice(&(len as u32).to_le_bytes());
        entry[39] = if data.is_empty() { 0x5a } else { 0x01 };
        for (at, value) in &command.fields {
            entry[*at..at + value.len()].copy_from_slice(value);
        }
        let mut pdu = vec![PDU_COMMAND, 0, 72, if data.is_empty() { 0 } else { 72 }];
        pdu.extend_from_slice(&(72 + data.len() as u32).to_le_bytes());
        pdu.extend_from_slice(&entry);
        pdu.extend_from_slice(data);
        Ok(self.stream.write_all(&pdu)?)
    }

    /// What came of the command that is answered next.
    fn answer(&mut self, read: usize) -> Result<(u32, Vec<u8>), Error> {
        let mut answer = vec![0; read];
        loop {
            let mut header = [0; 24];
            self.stream.read_exact(&mut header)?;
            let word =
                |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
            match header[0] {
                PDU_RESPONSE => {
                    let status = u16::from_le_bytes([header[22], header[23]]) >> 1;
                    let (sct, sc) = ((status >> 8 & 7) as u8, status as u8);
                    if (sct, sc) != (0, 0) {
                        return Err(Error::Status(sct, sc));
                    }
                    return Ok((word(8), answer));
                }
                PDU_DATA => {
                    let (at, len) = (word(12) as usize, word(16) as usize);
                    self.stream.read_exact(&mut vec![0; usize::from(header[3]) - 24])?;
                    self.stream.read_exact(&mut answer[at..at + len])?;
                    if header[1] & DATA_SUCCESS != 0 {
                        return Ok((0, answer));
                    }
                }
                other => return Err(io::Error::other(format!("a PDU of type {other}")).into()),
            }
        }
    }
}

/// What Identify Namespace says, as far as tests want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub blocks: u64,
    pub write_protected: bool,
    pub nguid: [u8; 16],
}

/// A connected host: one admin queue and one for I/O.
pub struct Initiator {
    admin: Queue,
    io: Queue,
}

/// Bytes of a logical block of the namespaces that tests use.
pub const BLOCK: usize = 512;

impl Initiator {
    /// Connects to a subsystem on this machine.
    pub fn connect(port: u16, subsystem: &str, host: &str) -> Result<Self, Error> {
        Self::connect_kept_alive(port, subsystem, host, 0)
    }

    /// The same; if it says nothing for that long the target may end it (0: never). SPDK rounds up to 10 s.
    pub fn connect_kept_alive(
        port: u16,
        subsystem: &str,
        host: &str,
        keep_alive_ms: u32,
    ) -> Result<Self, Error> {
        let (mut admin, id) =
            Queue::connect(port, subsystem, host, 0, CONTROLLER_ANY, keep_alive_ms)?;
        // Controller Configuration: 64-byte and 16-byte queue entries, enabled.
        let enable = Command::fabrics(0)
            .with(44, &0x14_u32.to_le_bytes())
            .with(48, &0x0046_0001_u64.to_le_bytes());
        admin.run(&enable, &[], 0)?;
        let (io, _) = Queue::connect(port, subsystem, host, 1, id, 0)?;
        Ok(Self { admin, io })
    }

    /// Identify Namespace.
    pub fn identify(&mut self, namespace: u32) -> Result<Namespace, Error> {
        let (_, data) = self.admin.run(&Command::new(6, namespace), &[], 4096)?;
        Ok(Namespace {
            blocks: u64::from_le_bytes(data[..8].try_into().expect("8 bytes")),
            write_protected: data[99] & 1 == 1,
            nguid: data[104..120].try_into().expect("16 bytes"),
        })
    }

    fn range(opcode: u8, lba: u64, blocks: usize) -> Command {
        Command::new(opcode, 1)
            .with(40, &lba.to_le_bytes())
            .with(48, &(blocks as u32 - 1).to_le_bytes())
    }

    /// Reads blocks of namespace 1.
    pub fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>, Error> {
        Ok(self.io.run(&Self::range(2, lba, blocks), &[], blocks * BLOCK)?.1)
    }

    /// Writes whole blocks of namespace 1.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Error> {
        self.io.run(&Self::range(1, lba, data.len() / BLOCK), data, 0).map(drop)
    }

    /// Submits writes of 4 KiB each, one after the other from there on, and waits for none.
    pub fn write_and_go_on(&mut self, lba: u64, commands: u64, fill: u8) -> Result<(), Error> {
        for number in 0..commands {
            let at = lba + number * (IN_CAPSULE_BYTES / BLOCK) as u64;
            let command = Self::range(1, at, IN_CAPSULE_BYTES / BLOCK);
            self.io.submit(&command, &[fill; IN_CAPSULE_BYTES], 0)?;
        }
        Ok(())
    }

    /// Submits a read, and comes back when some of its answer is there to be read.
    pub fn read_and_leave_it(&mut self, lba: u64, blocks: usize) -> Result<(), Error> {
        self.io.submit(&Self::range(2, lba, blocks), &[], blocks * BLOCK)?;
        self.io.stream.peek(&mut [0])?;
        Ok(())
    }

    /// The connection of the I/O queue, or of the admin queue, for what no command is.
    pub fn stream(&mut self, admin: bool) -> &mut TcpStream {
        let queue = if admin { &mut self.admin } else { &mut self.io };
        &mut queue.stream
    }

    /// Whether the target has ended both connections; waits for that, for a time.
    pub fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        let mut ended = |queue: &mut Queue| {
            let read = queue.stream.read_to_end(&mut rest);
            read.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true)
        };
        ended(&mut self.io) && ended(&mut self.admin)
    }

    /// Compares whole blocks and writes others if they are equal, as one command of two fused ones.
    pub fn compare_and_write(&mut self, lba: u64, was: &[u8], new: &[u8]) -> Result<(), Error> {
        for (opcode, flags, data) in [(5, 0x41, was), (1, 0x42, new)] {
            // The scatter-gather list, and first or second of two.
            let command = Self::range(opcode, lba, data.len() / BLOCK).with(1, &[flags]);
            self.io.submit(&command, data, 0)?;
        }
        let answers = [self.io.answer(0), self.io.answer(0)];
        // One status that is not "aborted for the other of the two" says why.
        let mut errors = answers.into_iter().filter_map(Result::err).collect::<Vec<_>>();
        errors.sort_by_key(|error| error.status() == Some(ABORTED_FAILED_FUSED));
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Writes zeroes.
    pub fn write_zeroes(&mut self, lba: u64, blocks: usize) -> Result<(), Error> {
        self.io.run(&Self::range(8, lba, blocks), &[], 0).map(drop)
    }

    /// Deallocates blocks.
    pub fn deallocate(&mut self, lba: u64, blocks: u32) -> Result<(), Error> {
        let mut range = [0; 16];
        range[4..8].copy_from_slice(&blocks.to_le_bytes());
        range[8..].copy_from_slice(&lba.to_le_bytes());
        let command = Command::new(9, 1).with(44, &4_u32.to_le_bytes());
        self.io.run(&command, &range, 0).map(drop)
    }
}
