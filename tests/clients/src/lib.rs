#![doc = include_str!("../../../docs/clients.md")]

#[doc = include_str!("../../../docs/quickstarts.md")]
pub mod quickstarts {}
