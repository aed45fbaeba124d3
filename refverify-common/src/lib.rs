//! What crosses from the kernel to user space.
#![no_std]
