#![doc = include_str!("../../../docs/clients.md")]

#[doc = include_str!("../../../docs/quickstarts.md")]
pub mod quickstarts {}

#[doc = include_str!("../../../docs/getting-started.md")]
pub mod getting_started {}
