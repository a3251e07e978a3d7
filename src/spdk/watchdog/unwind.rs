//! Callers of a function that an OS thread was in, found in a copy of its registers and its stack.
//!
//! By the tables that are there for exceptions (`.eh_frame`), which compilers write for all code. Frame pointers would be simpler
//! to follow, also in a signal handler, but SPDK, DPDK, the C library and Rust's are built without. Assembly without such tables ends the
//! walk, and so do places that a table describes by an expression: the stubs through which libraries are called.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, NativeEndian, Pointer, Register,
    RegisterRule, UnwindContext, UnwindSection,
};
use spdk_sys as sys;

const REGISTERS: usize = sys::PSC_STACK_REGISTERS as usize;
const BYTES_PER_WORD: u64 = 8;
/// The stack pointer's number in DWARF.
const SP: usize = if cfg!(target_arch = "aarch64") { 31 } else { 7 };
/// More frames are not looked for.
const FRAMES_MAX: usize = 48;

/// What an OS thread was doing.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Where it was.
    pub pc: u64,
    /// By their numbers in DWARF.
    pub registers: [u64; REGISTERS],
    /// Address of the first word.
    pub from: u64,
    /// Of its stack, innermost first.
    pub words: Vec<u64>,
}

impl Copied {
    fn word(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.from)?;
        let index = usize::try_from(offset / BYTES_PER_WORD).ok()?;
        if offset.is_multiple_of(BYTES_PER_WORD) { self.words.get(index).copied() } else { None }
    }
}

/// A function that has called another, or where the thread was.
struct Frame {
    pc: u64,
    /// `pc` is where it goes on: what belongs to the call is before that.
    is_caller: bool,
    registers: [Option<u64>; REGISTERS],
}

/// Where the thread was, then where each caller goes on, outermost last.
pub fn walk(copied: &Copied) -> Vec<u64> {
    let registers = copied.registers.map(Some);
    let mut frame = Frame { pc: copied.pc, is_caller: false, registers };
    let mut found = vec![copied.pc];
    while found.len() < FRAMES_MAX {
        let Some(caller) = caller_of(&frame, copied) else { break };
        found.push(caller.pc);
        frame = caller;
    }
    found
}

fn caller_of(frame: &Frame, copied: &Copied) -> Option<Frame> {
    let at = frame.pc.checked_sub(u64::from(frame.is_caller))?;
    let tables = Tables::at(at)?;
    let header = EhFrameHdr::new(tables.header, NativeEndian);
    let bases = BaseAddresses::default().set_eh_frame_hdr(tables.header_at);
    let header = header.parse(&bases, BYTES_PER_WORD as u8).ok()?;
    let Pointer::Direct(frames_at) = header.eh_frame_ptr() else { return None };
    let offset = usize::try_from(frames_at.checked_sub(tables.segment_at)?).ok()?;
    #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut, reason = "for the other"))]
    let mut frames = EhFrame::new(tables.segment.get(offset..)?, NativeEndian);
    #[cfg(target_arch = "aarch64")]
    frames.set_vendor(gimli::Vendor::AArch64);
    let bases = bases.set_eh_frame(frames_at);
    let find_cie = EhFrame::<EndianSlice<'_, NativeEndian>>::cie_from_offset;
    let entry = header.table()?.fde_for_address(&frames, &bases, at, find_cie).ok()?;
    let mut context = UnwindContext::new();
    let row = entry.unwind_info_for_address(&frames, &bases, &mut context, at).ok()?;

    let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
    let known = |register: Register| *frame.registers.get(usize::from(register.0))?;
    let cfa = known(*register)?.wrapping_add_signed(*offset);
    // Stacks grow downwards; only a function that has put nothing there, and called none, may share its caller's.
    let sp = frame.registers[SP]?;
    if cfa < sp || (frame.is_caller && cfa == sp) {
        return None;
    }
    let mut registers = [None; REGISTERS];
    for (number, value) in registers.iter_mut().enumerate() {
        let same = frame.registers[number];
        *value = match row.register(Register(number as u16)) {
            None if number == SP => Some(cfa),
            None | Some(RegisterRule::SameValue) => same,
            Some(RegisterRule::Offset(offset)) => copied.word(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => known(other),
            Some(_) => None,
        };
    }
    let pc = registers[usize::from(entry.cie().return_address_register().0)]?;
    // The upper bits may be a signature.
    let pc = if cfg!(target_arch = "aarch64") { pc & ((1 << 48) - 1) } else { pc };
    let is_caller = !entry.is_signal_trampoline();
    (pc != 0).then_some(Frame { pc, is_caller, registers })
}

/// The tables of the program or of a library.
struct Tables {
    header: &'static [u8],
    header_at: u64,
    segment: &'static [u8],
    segment_at: u64,
}

impl Tables {
    /// Those for code at an address.
    fn at(pc: u64) -> Option<Self> {
        let mut found = sys::psc_unwind_tables::default();
        // SAFETY: writes what it finds; legal on any OS thread, and this is no signal handler.
        if !unsafe { sys::psc_unwind_tables_at(pc, &raw mut found) } {
            return None;
        }
        let len = usize::try_from(found.segment_len).ok()?;
        // SAFETY: the loader has mapped all of the segment, for reading only; nothing in this process is unloaded.
        let segment = unsafe { std::slice::from_raw_parts(found.segment as *const u8, len) };
        let start = usize::try_from(found.header.checked_sub(found.segment)?).ok()?;
        let end = start.checked_add(usize::try_from(found.header_len).ok()?)?;
        let header = segment.get(start..end)?;
        Some(Self { header, header_at: found.header, segment, segment_at: found.segment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_at(pc: u64) -> Copied {
        Copied { pc, registers: [0; REGISTERS], from: 0, words: Vec::new() }
    }

    #[test]
    fn what_is_not_code_has_no_callers() {
        for pc in [0, 1, 0xdead_beef, u64::MAX] {
            assert_eq!(walk(&nothing_at(pc)), [pc]);
        }
        let here = walk as *const () as u64;
        assert_eq!(walk(&nothing_at(here)), [here], "no stack, no callers");
    }

    /// Fails when what lies outside the copy is read, and when a walk has no end.
    #[test]
    fn a_stack_of_anything_is_walked_to_an_end() {
        let pc = walk as *const () as u64;
        for sp in [0x1000, 0x1008, 0x1ff8, 0x2000, 0x3000, 0x1001, u64::MAX - 7] {
            for word in [0, pc, pc + 1, 0x1000, u64::MAX] {
                let words = vec![word; 512];
                let copied = Copied { pc, registers: [sp; REGISTERS], from: 0x1000, words };
                let found = walk(&copied);
                assert!(found.len() <= FRAMES_MAX && found[0] == pc, "{found:x?}");
            }
        }
    }
}
