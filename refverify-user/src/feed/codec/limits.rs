//! The bounds of everything that has a length.
//!
//! They hold on both ends: what is encoded keeps them, and what is decoded is refused where it
//! does not. The longest list of each kind fits into one frame at its worst.

/// The payload of a frame.
pub const FRAME_LEN_MAX: usize = 2 << 20;

/// The events of one frame; more go into several frames. The longest event takes 1,453 bytes.
pub const EVENTS_MAX: usize = 1024;

/// The frames of one stack. The kernel's own limit is 127, unless an administrator raises it.
pub const STACK_DEPTH_MAX: usize = 128;

/// The stacks that both ends remember. A workload makes some thousands.
pub const STACKS_MAX: usize = 8192;

/// The addresses, or the addresses with their texts, of one frame; more go into several.
pub const SYMBOLS_MAX: usize = 1024;

/// The text of one address, in bytes: the kernel's longest symbol (512) and what goes with it.
pub const SYMBOL_LEN_MAX: usize = 1024;

/// Any other text, in bytes: the longest path.
pub const TEXT_LEN_MAX: usize = 4096;

/// The hooks, the sentences on what they cannot see, and the devices of a hello: each.
pub const HELLO_LIST_MAX: usize = 256;

/// The product version and the kernel release in a header, in bytes: each.
pub const HEADER_TEXT_LEN_MAX: usize = 127;
