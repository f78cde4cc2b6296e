//! What the program text alone decides: reachability and the depth of all stacks together.

use alloc::collections::BTreeMap;

use super::super::decode::{Code, HOLE};
use super::super::error::VerifyError;
use super::super::insn::{Insn, LD_IMM64};
use super::super::interp::{FRAMES_MAX, STACK_BYTES};

/// Functions a program may have: the kernel's `BPF_MAX_SUBPROGS`.
const FUNCTIONS_MAX: usize = 256;
/// The kernel rounds each frame up to this.
const FRAME_ROUND_BYTES: usize = 16;

/// Refuses instructions no path leads to.
pub(super) fn check_reachable(code: &Code) -> Result<(), VerifyError> {
    if code.functions.len() > FUNCTIONS_MAX {
        return Err(VerifyError::TooManyFunctions);
    }
    let mut reached = alloc::vec![false; code.insns.len()];
    let mut open = alloc::vec![0];
    while let Some(pc) = open.pop() {
        let (Some(insn), Some(flag)) = (code.insns.get(pc), reached.get_mut(pc)) else {
            return Err(VerifyError::BadJump { pc });
        };
        if core::mem::replace(flag, true) {
            continue;
        }
        if insn.is_goto() || insn.is_branch() || insn.is_local_call() {
            open.push(insn.off as usize);
        }
        if insn.code == LD_IMM64 {
            open.push(pc + 2);
        } else if !insn.is_goto() && !insn.is_exit() {
            open.push(pc + 1);
        }
    }
    let reached = reached.iter().zip(&code.insns);
    match reached
        .enumerate()
        .find(|(_, (reached, insn))| !**reached && **insn != HOLE)
    {
        Some((pc, _)) => Err(VerifyError::Unreachable { pc }),
        None => Ok(()),
    }
}

/// What a function and everything it calls needs.
#[derive(Clone, Copy)]
struct Need {
    stack_bytes: usize,
    frames: usize,
}

/// Refuses programs whose deepest chain of calls needs more than one stack in all.
pub(super) fn check_stack_depth(
    code: &Code,
    used: &BTreeMap<usize, usize>,
) -> Result<(), VerifyError> {
    let mut needs = BTreeMap::new();
    let need = need_of(0, code, used, &mut needs, 1)?;
    if need.stack_bytes > STACK_BYTES {
        return Err(VerifyError::StacksTooDeep {
            bytes: need.stack_bytes,
        });
    }
    Ok(())
}

/// The need of one function. `depth` bounds the recursion where the program itself recurses.
fn need_of(
    function: usize,
    code: &Code,
    used: &BTreeMap<usize, usize>,
    needs: &mut BTreeMap<usize, Need>,
    depth: usize,
) -> Result<Need, VerifyError> {
    if depth > FRAMES_MAX {
        return Err(VerifyError::CallsTooDeep { pc: function });
    }
    if let Some(need) = needs.get(&function) {
        if depth + need.frames - 1 > FRAMES_MAX {
            return Err(VerifyError::CallsTooDeep { pc: function });
        }
        return Ok(*need);
    }
    let own = used
        .get(&function)
        .copied()
        .unwrap_or(0)
        .next_multiple_of(FRAME_ROUND_BYTES);
    let mut deepest = Need {
        stack_bytes: 0,
        frames: 0,
    };
    let end = code
        .functions
        .iter()
        .copied()
        .find(|&start| start > function);
    let body = code
        .insns
        .get(function..end.unwrap_or(code.insns.len()))
        .unwrap_or_default();
    for call in body.iter().filter(|insn| Insn::is_local_call(insn)) {
        let need = need_of(call.off as usize, code, used, needs, depth + 1)?;
        deepest.stack_bytes = deepest.stack_bytes.max(need.stack_bytes);
        deepest.frames = deepest.frames.max(need.frames);
    }
    let need = Need {
        stack_bytes: own + deepest.stack_bytes,
        frames: 1 + deepest.frames,
    };
    needs.insert(function, need);
    Ok(need)
}
