//! C variadic functions. Stable Rust cannot define one, so each is a few instructions that store the
//! argument registers where `va_start` would (System V ABI of x86-64 §3.5.7, AAPCS64 appendix B) and
//! call a Rust function with the `va_list`.
//!
//! A `va_list` is passed as a pointer by both: on x86-64 it is an array, on aarch64 a structure above
//! 16 bytes. So [`VaList`] is what C functions that take one, such as vdprintf(3), are declared with.

#![allow(unsafe_code)]

use core::ffi::c_void;

/// A `va_list` as an argument.
pub(crate) type VaList = *mut c_void;

/// The next argument of a list, a pointer; as `va_arg(list, void *)`.
///
/// # Safety
/// `list` is a `va_list` whose next argument is there, and a pointer.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn next_pointer(list: VaList) -> *mut c_void {
    #[repr(C)]
    struct List {
        gp_offset: u32,
        fp_offset: u32,
        overflow_arg_area: *mut *mut c_void,
        reg_save_area: *mut c_void,
    }
    /// Bytes of the six integer registers.
    const GP_BYTES: u32 = 48;
    // SAFETY: a va_list has this layout (System V ABI §3.5.7), and the caller vouches for its argument.
    unsafe {
        let list = &mut *list.cast::<List>();
        if list.gp_offset < GP_BYTES {
            let at = list.reg_save_area.byte_add(list.gp_offset as usize);
            list.gp_offset += 8;
            return at.cast::<*mut c_void>().read();
        }
        let at = list.overflow_arg_area;
        list.overflow_arg_area = at.add(1);
        at.read()
    }
}

/// The next argument of a list, a pointer; as `va_arg(list, void *)`.
///
/// # Safety
/// `list` is a `va_list` whose next argument is there, and a pointer.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn next_pointer(list: VaList) -> *mut c_void {
    #[repr(C)]
    struct List {
        stack: *mut *mut c_void,
        gr_top: *mut c_void,
        vr_top: *mut c_void,
        gr_offs: i32,
        vr_offs: i32,
    }
    // SAFETY: a va_list has this layout (AAPCS64 appendix B), and the caller vouches for its argument.
    unsafe {
        let list = &mut *list.cast::<List>();
        if list.gr_offs < 0 {
            let at = list.gr_top.byte_offset(list.gr_offs as isize);
            list.gr_offs += 8;
            return at.cast::<*mut c_void>().read();
        }
        let at = list.stack;
        list.stack = at.add(1);
        at.read()
    }
}

/// Defines `extern "C" fn NAME() -> int`, which calls `PREPARE() -> address` and goes on at that address
/// as if its caller had called it: the function there may return twice, as vfork(2) does.
macro_rules! forwarded {
    ($(#[$meta:meta])* fn $name:ident() => $prepare:path) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The duties of the C function of this name.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        #[allow(unreachable_pub, reason = "the symbol is what is reached")]
        pub unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "call {prepare}",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "jmp rax",
                ".cfi_endproc",
                prepare = sym $prepare,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                ".cfi_startproc",
                "stp x29, x30, [sp, #-16]!",
                ".cfi_def_cfa_offset 16",
                ".cfi_offset w29, -16",
                ".cfi_offset w30, -8",
                "bl {prepare}",
                "mov x16, x0",
                "ldp x29, x30, [sp], #16",
                ".cfi_def_cfa_offset 0",
                ".cfi_restore w29",
                ".cfi_restore w30",
                "br x16",
                ".cfi_endproc",
                prepare = sym $prepare,
            );
        }
    };
}
pub(crate) use forwarded;

/// Defines `extern "C" fn NAME(…named…, ...)`, which calls `TARGET(…named…, VaList)`. `named` counts
/// the named arguments, all of them pointers or integers; the list goes into the register after
/// theirs.
macro_rules! variadic {
    ($(#[$meta:meta])* fn $name:ident($named:literal named) => $target:path, list in $x86:literal or
     $arm:literal) => {
        $(#[$meta])*
        #[cfg(target_arch = "x86_64")]
        ///
        /// # Safety
        /// The duties of the C function of this name.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        #[allow(unreachable_pub, reason = "the symbol is what is reached")]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc", // a cancelled thread unwinds through here
                // The list at rsp, six integer and eight vector registers at rsp + 32.
                "sub rsp, 216",
                ".cfi_adjust_cfa_offset 216",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2:",
                concat!("mov dword ptr [rsp], 8 * ", $named),
                "mov dword ptr [rsp + 4], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 8], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 16], rax",
                concat!("mov ", $x86, ", rsp"),
                "call {target}",
                "add rsp, 216",
                ".cfi_adjust_cfa_offset -216",
                "ret",
                ".cfi_endproc",
                target = sym $target,
            )
        }

        $(#[$meta])*
        #[cfg(target_arch = "aarch64")]
        ///
        /// # Safety
        /// The duties of the C function of this name.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        #[allow(unreachable_pub, reason = "the symbol is what is reached")]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                // Frame 16, list 32, eight vector registers 128, eight integer registers 64.
                "stp x29, x30, [sp, #-240]!",
                ".cfi_def_cfa_offset 240",
                ".cfi_offset w29, -240",
                ".cfi_offset w30, -232",
                "mov x29, sp",
                "stp q0, q1, [sp, #48]",
                "stp q2, q3, [sp, #80]",
                "stp q4, q5, [sp, #112]",
                "stp q6, q7, [sp, #144]",
                "stp x0, x1, [sp, #176]",
                "stp x2, x3, [sp, #192]",
                "stp x4, x5, [sp, #208]",
                "stp x6, x7, [sp, #224]",
                "add x9, sp, #240",
                "str x9, [sp, #16]",
                "str x9, [sp, #24]",
                "add x9, sp, #176",
                "str x9, [sp, #32]",
                concat!("mov w9, #(8 * ", $named, " - 64)"),
                "str w9, [sp, #40]",
                "mov w9, #-128",
                "str w9, [sp, #44]",
                concat!("add ", $arm, ", sp, #16"),
                "bl {target}",
                "ldp x29, x30, [sp], #240",
                ".cfi_def_cfa_offset 0",
                ".cfi_restore w29",
                ".cfi_restore w30",
                "ret",
                ".cfi_endproc",
                target = sym $target,
            )
        }
    };
}
pub(crate) use variadic;
