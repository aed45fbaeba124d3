//! What the integration tests share.

pub(crate) mod image;
pub(crate) mod model;
pub(crate) mod world;
