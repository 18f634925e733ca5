// The README's example needs the features it shows.
#![cfg_attr(
    all(feature = "buffer", feature = "lambda", feature = "postgres", feature = "sqlite"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(feature = "buffer", feature = "lambda", feature = "postgres", feature = "sqlite")),
    doc = "Resources that are initialised once and drained on SIGTERM. The whole page is there with the features `buffer`, `lambda`, `postgres` and `sqlite`."
)]

pub use winddown_core::{
    BUDGET_VARIABLE, BoxError, Budget, Builder, CancellationToken, Capabilities, Checkout, Checkouts, Client,
    Credentials, CredentialsFuture, CredentialsProvider, EXIT_AT_DEADLINE, Error, ErrorKind, Hook, HookResult, Itself,
    Lifecycle, Outcome, PLATFORMS, Platform, Reason, Records, Report, ReportFormat, Resource, ResourceId,
    ResourceReport, Retry, SessionCounts, ShutdownGuard, SignalKind, State, Status, Step, Straggler, Tracked,
    TrackedBody, adapter, listen_address, memory,
};

/// The write buffer: records in, batches out, flushed before its pool is drained.
#[cfg(feature = "buffer")]
pub use winddown_buffer as buffer;

/// AWS Lambda: `run` a function that drains on SIGTERM.
#[cfg(feature = "lambda")]
pub use winddown_lambda as lambda;

/// MySQL and MariaDB through `mysql_async`.
#[cfg(feature = "mysql")]
pub use winddown_mysql as mysql;

/// PostgreSQL through `deadpool-postgres`.
#[cfg(feature = "postgres")]
pub use winddown_postgres as postgres;

/// Redis and Valkey through `redis`.
#[cfg(feature = "redis")]
pub use winddown_redis as redis;

/// A local AWS Lambda lifecycle, to run functions under.
#[cfg(feature = "sim")]
pub use winddown_sim as sim;

/// SQLite through `deadpool-sqlite`.
#[cfg(feature = "sqlite")]
pub use winddown_sqlite as sqlite;

/// PostgreSQL, MySQL, MariaDB and SQLite through `sqlx`. Needs Rust 1.94, as `sqlx` does.
#[cfg(any(feature = "sqlx-mysql", feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub use winddown_sqlx as sqlx;

/// Telemetry, which is drained last: OpenTelemetry providers, and the non-blocking writer of `tracing-appender`.
#[cfg(any(feature = "otel", feature = "tracing-appender"))]
pub use winddown_telemetry as telemetry;
