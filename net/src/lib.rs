#![doc = include_str!("../README.md")]

pub mod sessions;
mod socket;
pub mod tls;

pub use rustls;

pub use crate::{
    sessions::{Draining, End, Held, Life, Session, Sessions},
    socket::{Address, Link, Options, Socket, dial},
};
