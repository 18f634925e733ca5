//! The four backends, and what they say.

use std::{fmt, path::PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use winddown::{
    mysql::mysql_async::{Conn, Opts, prelude::Queryable as _},
    postgres::tokio_postgres::{self, NoTls},
    redis::redis::{self, Client},
    sqlite::rusqlite::Connection,
};
use winddown_testkit::containers::{Container, Setup};

use super::FUNCTION;

/// One of the four.
#[derive(Clone, Copy)]
pub(crate) enum Backend {
    PostgreSql,
    MySql,
    Redis,
    Sqlite,
}

impl Backend {
    pub(crate) const ALL: [Self; 4] = [Self::PostgreSql, Self::MySql, Self::Redis, Self::Sqlite];

    /// What it is called in the report.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgres",
            Self::MySql => "mysql",
            Self::Redis => "redis",
            Self::Sqlite => "sqlite",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PostgreSql => "PostgreSQL",
            Self::MySql => "MySQL",
            Self::Redis => "Redis",
            Self::Sqlite => "SQLite",
        })
    }
}

/// What is left of the function.
pub(crate) struct Left {
    pub(crate) backend: Backend,
    /// Sessions that are listed. For SQLite, which lists none: the files of an open database beside its own.
    pub(crate) sessions: u64,
    pub(crate) orders: u64,
}

/// Three servers and a file.
pub(crate) struct Servers {
    postgres: Container,
    mysql: Container,
    redis: Container,
    folder: TempDir,
}

impl Servers {
    /// Starts them, with a table for orders in each that has tables.
    pub(crate) async fn start() -> Result<Self> {
        let postgres = Setup::postgres("17").env("POSTGRES_PASSWORD", "example");
        let mysql = Setup::mysql("9.7").env("MYSQL_ROOT_PASSWORD", "root's").env("MYSQL_DATABASE", "shop");
        let mysql = mysql.env("MYSQL_USER", "app").env("MYSQL_PASSWORD", "example");
        let redis = Setup::redis("8");
        let (postgres, mysql, redis) = tokio::try_join!(postgres.start(), mysql.start(), redis.start())?;
        let servers = Self { postgres, mysql, redis, folder: TempDir::new()? };

        const TABLE: &str = "CREATE TABLE orders(id bigint PRIMARY KEY)";
        servers.ask_postgres().await?.batch_execute(TABLE).await?;
        let mut mysql = servers.ask_mysql().await?;
        mysql.query_drop(TABLE).await?;
        mysql.disconnect().await?;
        Connection::open(servers.file())?.execute_batch(TABLE)?;
        Ok(servers)
    }

    /// What the function finds them by.
    pub(crate) fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("DATABASE_URL", format!("postgres://postgres:example@{}/postgres", self.postgres.address(5432))),
            ("MYSQL_URL", format!("mysql://app:example@{}/shop", self.mysql.address(3306))),
            ("REDIS_URL", format!("redis://{}", self.redis.address(6379))),
            ("SQLITE_PATH", self.file().display().to_string()),
        ]
    }

    /// Asks each of them, in the order of [`Backend::ALL`].
    pub(crate) async fn left(&self) -> Result<[Left; 4]> {
        let left = |backend, sessions, orders| Left { backend, sessions, orders };

        let postgres = self.ask_postgres().await?;
        let sql =
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = $1), (SELECT count(*) FROM orders)";
        let row = postgres.query_one(sql, &[&FUNCTION]).await?;
        let postgres = left(Backend::PostgreSql, row.get::<_, i64>(0).try_into()?, row.get::<_, i64>(1).try_into()?);

        let mut mysql = self.ask_mysql().await?;
        let sql = "SELECT (SELECT COUNT(*) FROM information_schema.processlist WHERE USER = 'app'), \
                   (SELECT COUNT(*) FROM orders)";
        let (sessions, orders) = mysql.query_first(sql).await?.context("MySQL does not answer")?;
        mysql.disconnect().await?;
        let mysql = left(Backend::MySql, sessions, orders);

        let mut redis =
            Client::open(format!("redis://{}", self.redis.address(6379)))?.get_multiplexed_async_connection().await?;
        let (clients, orders): (String, Option<u64>) =
            redis::pipe().cmd("CLIENT").arg("LIST").cmd("GET").arg("orders").query_async(&mut redis).await?;
        let ours = clients.lines().filter(|client| client.contains(&format!("name={FUNCTION} "))).count();
        let redis = left(Backend::Redis, ours.try_into()?, orders.unwrap_or_default());

        // Before the file is opened: that would tidy up.
        let open = ["-wal", "-shm"]
            .iter()
            .filter(|suffix| PathBuf::from(format!("{}{suffix}", self.file().display())).exists());
        let open = open.count().try_into()?;
        let orders =
            Connection::open(self.file())?.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, i64>(0))?;
        Ok([postgres, mysql, redis, left(Backend::Sqlite, open, orders.try_into()?)])
    }

    /// Removes the containers.
    pub(crate) async fn remove(self) -> Result<()> {
        let Self { postgres, mysql, redis, folder } = self;
        tokio::try_join!(postgres.remove(), mysql.remove(), redis.remove())?;
        Ok(folder.close()?)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("orders.db")
    }

    async fn ask_postgres(&self) -> Result<tokio_postgres::Client> {
        let url = format!("postgres://postgres:example@{}/postgres", self.postgres.address(5432));
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn ask_mysql(&self) -> Result<Conn> {
        let url = format!("mysql://root:root%27s@{}/shop", self.mysql.address(3306));
        Ok(Conn::new(Opts::from_url(&url)?).await?)
    }
}
