//! The reader of the extent tree against real images, moving ones and broken ones.

#[path = "../support/dump_tree.rs"]
mod dump_tree;
#[path = "../support/image.rs"]
mod written;

mod chunk_tree;
mod hazards;
mod image;
mod living;
mod mirrors;
mod moving;
mod privileged;
mod random_bytes;
mod real_images;
mod since;
mod synthetic;
