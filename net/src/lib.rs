#![doc = include_str!("../README.md")]

mod name;
pub mod sessions;
mod socket;
pub mod tls;

pub use rustls;

pub use crate::{
    name::client_name,
    sessions::{Draining, End, Held, Life, Session, Sessions},
    socket::{Address, Link, Options, Socket, dial},
};
