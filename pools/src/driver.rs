//! The drivers that this crate knows.

#[cfg(feature = "diesel")]
mod diesel;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(any(feature = "diesel", feature = "tokio-postgres"))]
mod postgres;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "diesel")]
pub use self::diesel::Establish;

/// What the driver of a connection can do: by the features of this crate, for `tokio_postgres::Client`,
/// `redis::aio::MultiplexedConnection`, `mysql_async::Conn` and `diesel_async::AsyncPgConnection`.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to say but its name")]
pub struct Driver;
