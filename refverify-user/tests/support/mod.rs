//! What the integration tests share.

pub mod image;
pub mod model;
pub mod world;
