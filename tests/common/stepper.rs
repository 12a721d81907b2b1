//! Runs code one instruction at a time and notes which memory it touches.
//!
//! Hardware counters and `perf c2c` are missing in most virtual machines, so this asks the processor
//! in the one way that works everywhere: a child process is traced with ptrace(2), and every
//! instruction between [`watched`]'s beginning and its end is decoded before it is made. That finds
//! each atomic operation and each byte read or written, those of the allocator and of libc included;
//! what the kernel does in system calls is not seen.
//!
//! x86-64 only.
#![allow(unsafe_code, dead_code)] // fork(2) and ptrace(2) of our own child

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::Write as _;

/// What two threads must not share, in bytes: processors fetch lines of 64 in pairs.
pub const LINE_BYTES: u64 = 128;

/// What was seen between the beginning and the end of one [`watched`] call.
#[derive(Debug, Default)]
pub struct Seen {
    /// Instructions made.
    pub instructions: usize,
    /// Atomic read-modify-writes (`lock …`, `xchg`) by line.
    pub atomics: HashMap<u64, usize>,
    /// Lines written, atomics included.
    pub written: HashSet<u64>,
    /// Lines read or written.
    pub touched: HashSet<u64>,
}

impl Seen {
    /// How many atomic operations there were.
    pub fn atomics_len(&self) -> usize {
        self.atomics.values().sum()
    }
}

/// In the child: has `work` watched. Each thread's calls are seen in the order in which they begin;
/// only one may be under way at a time.
pub fn watched<T>(work: impl FnOnce() -> T) -> T {
    thread_local!(static IS_TRACED: Cell<bool> = const { Cell::new(false) });
    if !IS_TRACED.replace(true) {
        // SAFETY: no pointers are followed; our parent is the process that called `see`.
        let answer = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        assert_eq!(answer, 0, "ptrace is forbidden here");
    }
    stop_with(BEGIN);
    let result = work();
    stop_with(END);
    result
}

/// Runs `child` in a process of its own and answers what was seen of each [`watched`] call.
///
/// # Panics
/// When the child does.
pub fn see(child: impl FnOnce()) -> Vec<Seen> {
    // One core for both, so that a step is a switch and not a message between two cores.
    let cores = campanile::sys::available_cores().expect("/proc tells them");
    campanile::sys::pin_to_core(cores[0]).expect("one of our own cores");
    // SAFETY: the child begins with one thread, ours, and ends by `_exit`, whatever `child` does.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // Whichever thread panics ends them all: the others wait for it.
        std::panic::set_hook(Box::new(|why| {
            let _ = writeln!(std::io::stderr(), "in the child: {why}");
            exit(101);
        }));
        child();
        exit(0);
    }
    let mut seen = Vec::new();
    while let Some((tid, status)) = wait(-1) {
        if libc::WIFSTOPPED(status) {
            let signal = libc::WSTOPSIG(status);
            if signal == BEGIN {
                seen.push(step(tid));
            }
            let pass_on = if signal == BEGIN { 0 } else { signal };
            trace(libc::PTRACE_CONT, tid, pass_on as usize);
        } else if tid == pid {
            let ended_well = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
            assert!(ended_well, "the child failed: status {status:#x}");
        }
    }
    seen
}

fn exit(status: i32) -> ! {
    // SAFETY: ends this process at once; nothing of it is used any more.
    unsafe { libc::_exit(status) }
}

const BEGIN: i32 = libc::SIGUSR1;
const END: i32 = libc::SIGUSR2;

fn stop_with(signal: i32) {
    // SAFETY: system calls without pointers; the signal never arrives, because the tracer keeps it.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal) };
}

/// The next thing that happened to `tid` (-1: to any child of this thread); `None`: none is left.
fn wait(tid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: one writable integer. `__WNOTHREAD`: other tests' children are not ours.
    let tid = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::__WNOTHREAD) };
    (tid > 0).then_some((tid, status))
}

fn trace(request: libc::c_uint, tid: i32, data: usize) {
    // SAFETY: requests that take numbers only, for a thread of our child that stands still.
    let answer = unsafe { libc::ptrace(request, tid, 0, data) };
    assert_eq!(answer, 0, "ptrace: {}", std::io::Error::last_os_error());
}

/// Makes one instruction after the other until [`END`].
fn step(tid: i32) -> Seen {
    let mut seen = Seen::default();
    let mut known: HashMap<u64, Instruction> = HashMap::new();
    loop {
        let registers = registers(tid);
        let at = registers.rip;
        known.entry(at).or_insert_with(|| Instruction::at(tid, at)).note(&registers, &mut seen);
        trace(libc::PTRACE_SINGLESTEP, tid, 0);
        let (_, status) = wait(tid).expect("it is traced");
        assert!(libc::WIFSTOPPED(status), "the child ended while it was watched: {status:#x}");
        match libc::WSTOPSIG(status) {
            libc::SIGTRAP => {}
            END => return seen,
            other => panic!("signal {other} in the child"),
        }
    }
}

fn registers(tid: i32) -> libc::user_regs_struct {
    // SAFETY: all zeros are valid registers, and the kernel fills in exactly this structure.
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let answer = libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &mut registers);
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        registers
    }
}

/// One instruction of the child.
struct Instruction {
    is_atomic: bool,
    is_repeated: bool,
    memory: Vec<iced_x86::UsedMemory>,
}

impl Instruction {
    fn at(tid: i32, address: u64) -> Instruction {
        // An instruction has at most 15 bytes; a page may end before them.
        let word = |at: u64| {
            // SAFETY: reads the child's memory by address; what cannot be read is answered with -1.
            let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, tid, at, 0) };
            word.to_le_bytes()
        };
        let code = [word(address), word(address + 8)].concat();
        let decoded = Decoder::with_ip(64, &code, address, DecoderOptions::NONE).decode();
        assert!(!decoded.is_invalid(), "unknown instruction {code:x?}");
        let memory = InstructionInfoFactory::new().info(&decoded).used_memory().to_vec();
        // xchg with memory locks without being asked to.
        let locks = decoded.has_lock_prefix() || decoded.mnemonic() == Mnemonic::Xchg;
        Instruction {
            is_atomic: locks && !memory.is_empty(),
            is_repeated: decoded.has_rep_prefix() || decoded.has_repne_prefix(),
            memory,
        }
    }

    fn note(&self, registers: &libc::user_regs_struct, seen: &mut Seen) {
        seen.instructions += 1;
        if self.is_repeated && registers.rcx == 0 {
            return;
        }
        for memory in &self.memory {
            let access = memory.access();
            if matches!(access, OpAccess::None | OpAccess::NoMemAccess) {
                continue;
            }
            let address = memory.virtual_address(0, |register, _, _| value(registers, register));
            let address = address.expect("its registers are whole ones");
            let last = address + (memory.memory_size().size() as u64).max(1) - 1;
            for line in address / LINE_BYTES..=last / LINE_BYTES {
                seen.touched.insert(line);
                if !matches!(access, OpAccess::Read | OpAccess::CondRead) {
                    seen.written.insert(line);
                }
            }
            if self.is_atomic {
                *seen.atomics.entry(address / LINE_BYTES).or_default() += 1;
            }
        }
    }
}

fn value(registers: &libc::user_regs_struct, register: Register) -> Option<u64> {
    let whole = match register.full_register() {
        Register::RAX => registers.rax,
        Register::RBX => registers.rbx,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::RBP => registers.rbp,
        Register::RSP => registers.rsp,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::FS => registers.fs_base,
        Register::GS => registers.gs_base,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    };
    Some(if register.is_gpr32() { whole & 0xffff_ffff } else { whole })
}
