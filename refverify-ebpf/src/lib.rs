#![no_std]
//! The eBPF programs.
