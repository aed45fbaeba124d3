//! Says for which architecture's registers the probes' arguments are read.

fn main() {
    if let Err(error) = aya_build::emit_bpf_target_arch_cfg() {
        println!("cargo::error={error:#}");
    }
}
