//! Decides whether a program no kernel has verified may run.
//!
//! All paths are explored, with what is known of every register and stack slot ([`state`],
//! [`scalar`]). A path ends at `exit`, or where an explored state admits everything the present
//! one does. Loops are explored turn by turn, so they must end by what is known, within
//! [`COMPLEXITY_INSNS_MAX`] steps. The rules are those of the kernel's verifier for a privileged
//! loader (what a program may compute from addresses is no secret here: they are virtual), except
//! that reading stack bytes never written is refused, as for an unprivileged one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;

use self::state::{Frame, Id, Match, Matters, Reg, State};
use super::decode::Code;
use super::error::VerifyError;
use super::insn::{FP, Insn, LD_IMM64, REG_COUNT, class, jmp, pseudo};
use super::interp::FRAMES_MAX;

mod access;
mod arith;
mod bits;
mod branch;
mod call;
mod graph;
mod matters;
mod refine;
mod scalar;
mod state;
#[cfg(test)]
mod tests;

/// Instructions explored over all paths: the kernel's `BPF_COMPLEXITY_LIMIT_INSNS`.
pub const COMPLEXITY_INSNS_MAX: usize = 1_000_000;
/// Branches waiting to be explored: the kernel's `BPF_COMPLEXITY_LIMIT_JMP_SEQ`.
const PENDING_MAX: usize = 8192;
/// Explored states kept at all points together. More would only save time, and each may take
/// some kilobytes.
const CHECKPOINTS_MAX: usize = 16_384;
/// A checkpoint is made no sooner than after this many steps and jumps since the last, since it
/// costs more than some straight-line code. The kernel waits as long.
const CHECKPOINT_STEPS: usize = 8;
const CHECKPOINT_JUMPS: usize = 2;

/// Checks a decoded program.
pub(super) fn verify(code: &Code) -> Result<(), VerifyError> {
    graph::check_reachable(code)?;
    let mut verifier = Verifier::new(code);
    while let Some(path) = verifier.pending.pop() {
        verifier.explore(path)?;
    }
    graph::check_stack_depth(code, &verifier.stack_bytes)
}

/// A path still to be explored.
struct Path {
    state: State,
    pc: usize,
    checkpoint: usize,
}

/// A node of the tree of checkpoints: while `open` paths below it are unfinished, it lies on the
/// present path, and meeting its state again means a loop that makes no progress.
struct Checkpoint {
    parent: usize,
    open: usize,
}

/// A state explored, or being explored, at some point of the program.
struct Seen {
    state: State,
    checkpoint: usize,
    hits: usize,
    misses: usize,
}

struct Verifier<'a> {
    code: &'a Code,
    matters: Vec<Matters>,
    /// Where states are compared: jump targets, function entries and returns.
    meeting_points: BTreeSet<usize>,
    seen: BTreeMap<usize, Vec<Seen>>,
    seen_count: usize,
    checkpoints: Vec<Checkpoint>,
    pending: Vec<Path>,
    steps: usize,
    jumps: usize,
    /// Steps and jumps when the last checkpoint was made.
    marked: (usize, usize),
    next_id: Id,
    /// Deepest stack use by function.
    stack_bytes: BTreeMap<usize, usize>,
    // The path being explored.
    state: State,
    pc: usize,
    checkpoint: usize,
}

/// How a path goes on after an instruction.
enum Next {
    At(usize),
    /// Two ways: the state of the second is given, the present one goes the first.
    Both(usize, State, usize),
    End,
}

impl<'a> Verifier<'a> {
    fn new(code: &'a Code) -> Self {
        let mut meeting_points: BTreeSet<usize> = code.functions.iter().copied().collect();
        for (pc, insn) in code.insns.iter().enumerate() {
            if insn.is_goto() || insn.is_branch() {
                meeting_points.extend(usize::try_from(insn.off));
            } else if insn.is_local_call() {
                meeting_points.insert(pc + 1);
            }
        }
        let entry = Path {
            state: State::entry(),
            pc: 0,
            checkpoint: 0,
        };
        Self {
            code,
            matters: matters::analyse(code),
            meeting_points,
            seen: BTreeMap::new(),
            seen_count: 0,
            checkpoints: alloc::vec![Checkpoint { parent: 0, open: 1 }],
            pending: alloc::vec![entry],
            steps: 0,
            jumps: 0,
            marked: (0, 0),
            next_id: 0,
            stack_bytes: BTreeMap::new(),
            state: State::entry(),
            pc: 0,
            checkpoint: 0,
        }
    }

    /// Follows one path to its end, leaving the other side of each branch for later.
    fn explore(&mut self, path: Path) -> Result<(), VerifyError> {
        Path {
            state: self.state,
            pc: self.pc,
            checkpoint: self.checkpoint,
        } = path;
        loop {
            if self.meeting_points.contains(&self.pc) && self.is_explored()? {
                break;
            }
            self.steps += 1;
            if self.steps > COMPLEXITY_INSNS_MAX {
                return Err(VerifyError::TooComplex);
            }
            match self.step()? {
                Next::At(pc) => self.pc = pc,
                Next::Both(pc, state, other) => {
                    if self.pending.len() >= PENDING_MAX {
                        return Err(VerifyError::TooComplex);
                    }
                    let checkpoint = self.checkpoint;
                    self.pending.push(Path {
                        state,
                        pc: other,
                        checkpoint,
                    });
                    if let Some(node) = self.checkpoints.get_mut(checkpoint) {
                        node.open += 1;
                    }
                    self.pc = pc;
                }
                Next::End => break,
            }
        }
        self.close();
        Ok(())
    }

    /// The present path is finished: so are the checkpoints nothing is left to explore below.
    fn close(&mut self) {
        let mut at = self.checkpoint;
        while let Some(node) = self.checkpoints.get_mut(at) {
            node.open -= 1;
            if node.open > 0 || at == 0 {
                break;
            }
            at = node.parent;
        }
    }

    /// Whether an explored state covers the present one; if not, remembers this one now and then.
    fn is_explored(&mut self) -> Result<bool, VerifyError> {
        let (pc, matters) = (self.pc, &self.matters);
        let matters = |pc: usize| matters.get(pc).copied().unwrap_or_default();
        let seen = self.seen.entry(pc).or_default();
        // The latest is the likeliest to match.
        for candidate in seen.iter_mut().rev() {
            let open = self
                .checkpoints
                .get(candidate.checkpoint)
                .is_some_and(|node| node.open > 0);
            if open {
                if candidate
                    .state
                    .admits(&self.state, pc, Match::Equal, matters)
                {
                    return Err(VerifyError::InfiniteLoop { pc });
                }
            } else if candidate
                .state
                .admits(&self.state, pc, Match::Covers, matters)
            {
                candidate.hits += 1;
                return Ok(true);
            }
            candidate.misses += 1;
        }
        // As in the kernel, a state that rarely matches is not worth comparing with.
        let before = seen.len();
        seen.retain(|candidate| candidate.misses <= 3 * candidate.hits + 3);
        self.seen_count -= before - seen.len();
        let due = self.steps - self.marked.0 >= CHECKPOINT_STEPS
            && self.jumps - self.marked.1 >= CHECKPOINT_JUMPS;
        if due && self.seen_count < CHECKPOINTS_MAX {
            self.marked = (self.steps, self.jumps);
            self.checkpoints.push(Checkpoint {
                parent: self.checkpoint,
                open: 1,
            });
            self.checkpoint = self.checkpoints.len() - 1;
            let (state, checkpoint) = (self.state.clone(), self.checkpoint);
            seen.push(Seen {
                state,
                checkpoint,
                hits: 0,
                misses: 0,
            });
            self.seen_count += 1;
        }
        Ok(false)
    }

    /// Checks one instruction and applies it to the state.
    fn step(&mut self) -> Result<Next, VerifyError> {
        let pc = self.pc;
        let insn = *self.code.insns.get(pc).ok_or(VerifyError::BadJump { pc })?;
        match insn.class() {
            class::ALU | class::ALU64 => self.arithmetic(&insn)?,
            class::JMP | class::JMP32 => return self.transfer(&insn),
            class::LD if insn.code == LD_IMM64 => {
                self.load_constant(&insn)?;
                return Ok(Next::At(pc + 2));
            }
            class::LD => self.packet_load(&insn)?,
            class::LDX => self.load(&insn)?,
            _ => self.store(&insn)?,
        }
        Ok(Next::At(pc + 1))
    }

    /// Jumps, calls and exit.
    fn transfer(&mut self, insn: &Insn) -> Result<Next, VerifyError> {
        self.jumps += 1;
        match insn.op() {
            jmp::JA => Ok(Next::At(insn.off as usize)),
            jmp::CALL if insn.src == pseudo::CALL => self.enter(insn.off as usize),
            jmp::CALL => {
                self.helper_call(insn.imm)?;
                Ok(Next::At(self.pc + 1))
            }
            jmp::EXIT => self.leave(),
            _ => self.branch(insn),
        }
    }

    /// Enters a function of the program, which sees the arguments and the callers' stacks.
    fn enter(&mut self, target: usize) -> Result<Next, VerifyError> {
        if self.state.frames.len() >= FRAMES_MAX {
            return Err(VerifyError::CallsTooDeep { pc: self.pc });
        }
        let mut callee = Frame::new(self.state.frames.len(), target, self.pc + 1);
        let caller = self.frame();
        for (argument, value) in callee.regs.iter_mut().zip(&caller.regs).skip(1).take(5) {
            *argument = *value;
        }
        self.clobber_caller_saved();
        self.state.frames.push(Rc::new(callee));
        Ok(Next::At(target))
    }

    /// `exit`: of the program, or back to the caller with r0.
    fn leave(&mut self) -> Result<Next, VerifyError> {
        let result = self.reg(0)?;
        if self.state.frames.len() == 1 {
            return Ok(Next::End);
        }
        if matches!(result, Reg::Pointer(state::Target::Stack(_), ..)) {
            return Err(VerifyError::ReturnsStackPointer { pc: self.pc });
        }
        let return_pc = self.frame().return_pc;
        self.state.frames.pop();
        self.set(0, result);
        Ok(Next::At(return_pc))
    }

    /// The running frame.
    fn frame(&self) -> &Frame {
        &self.state.frames[self.state.frames.len() - 1]
    }

    fn frame_mut(&mut self) -> &mut Frame {
        self.state.running_mut()
    }

    /// A register that is read.
    fn reg(&self, number: u8) -> Result<Reg, VerifyError> {
        match self.frame().regs.get(usize::from(number)) {
            Some(Reg::Uninit) | None => Err(VerifyError::UninitRegister {
                pc: self.pc,
                reg: number,
            }),
            Some(reg) => Ok(*reg),
        }
    }

    /// Overwrites a register.
    fn set(&mut self, number: u8, value: Reg) {
        if let Some(reg) = self.frame_mut().regs.get_mut(usize::from(number)) {
            *reg = value;
        }
    }

    /// Checks that an instruction may write a register.
    fn writable(&self, number: u8) -> Result<(), VerifyError> {
        if number == FP {
            Err(VerifyError::FramePointerWrite { pc: self.pc })
        } else {
            Ok(())
        }
    }

    /// r0 to r5 hold nothing after a call.
    fn clobber_caller_saved(&mut self) {
        self.frame_mut()
            .regs
            .iter_mut()
            .take(6)
            .for_each(|reg| *reg = Reg::Uninit);
    }

    /// A fresh name.
    fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }
}

const _: () = assert!(REG_COUNT == FP as usize + 1);
