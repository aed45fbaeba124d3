//! The eBPF programs: they watch btrfs change extent references, and tell user space through
//! one ring buffer.
//!
//! Two sets of hooks do the same job, and user space attaches one of them: [`kprobes`] see
//! all, [`tracepoints`] serve on kernels without kprobes. What they share is in [`fs`] (whose
//! event is it), [`record`] (how it gets out) and [`kernel`] (how kernel memory is read). That the
//! kernel missed no kprobe is shown by [`second_count`] and [`cross_check`].
//!
//! A program never guesses: what it cannot read, and what finds the ring buffer full, is
//! counted, and user space then knows that it missed something.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "kernel words hold two 32-bit values, and sizes here are small constants"
)]
#![expect(
    clippy::inline_always,
    reason = "a call costs a program of a few dozen instructions more than its body, and the \
              kernel's verifier knows constants only within one function"
)]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros pass contexts by value")]

mod cross_check;
mod fs;
mod kernel;
mod kprobes;
mod maps;
mod record;
mod second_count;
mod tracepoints;

/// The helpers that read kernel memory are reserved to programs under the GPL.
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "license"))]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the kernel's verifier refuses a program that could get here.
    loop {}
}

/// On the host there is nothing to run; the programs are type-checked there only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
