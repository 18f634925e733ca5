//! What a session is when it has just been opened, and how it becomes that again between two checkouts.
//!
//! `COM_RESET_CONNECTION` is not enough. It leaves the session in the database that its last user has chosen, and with the
//! roles. What was set when the session was opened is lost. And in MySQL the character set is the server's own then, whatever
//! the two have agreed upon at the login: a driver that goes on in UTF-8 is misunderstood.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use mysql_async::{ChangeUserOpts, Conn, Error as Failure, Opts, prelude::Queryable as _};

use crate::{sessions::read_out, watcher::rows};

/// What the driver says at each login that it speaks.
const NAMES: &str = "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci";

/// Whether the server takes no writes, in SQL: of itself, or of a storage that another one writes to.
const READ_ONLY: &str = "CONCAT(@@read_only) NOT IN ('0', 'OFF') OR @@innodb_read_only <> 0";

/// What a session was when it had just been opened: that it is to be again when it is given back.
#[derive(Debug)]
pub(crate) struct Home {
    database: Option<String>,
    /// The character sets and the collation, in SQL. Where nobody has asked for them they are as the driver says.
    names: Option<String>,
    /// In SQL, where the server has roles.
    roles: Option<String>,
    pub(crate) opened: Instant,
    /// Its server took no writes.
    pub(crate) is_read_only: bool,
}

/// The active roles as `SET ROLE` takes them: MySQL says them in its own quotes or `NONE`, MariaDB says one as it is or NULL.
fn in_sql(roles: Option<String>) -> String {
    match roles {
        None => "NONE".into(),
        Some(roles) if roles == "NONE" || roles.starts_with('`') => roles,
        Some(role) => quoted(&role),
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

impl Home {
    /// That of a session that has just been opened.
    pub(crate) async fn of(conn: &mut Conn) -> Result<Self, Failure> {
        let sql = |roles| {
            format!(
                "SELECT DATABASE(), {READ_ONLY}, @@character_set_client, @@character_set_results, \
                 @@collation_connection, {roles}"
            )
        };
        let (answer, has_roles) = match rows(conn, &sql("CURRENT_ROLE()")).await {
            // Servers before MySQL 8, and some proxies.
            Err(Failure::Server(_)) => (rows(conn, &sql("NULL")).await?, false),
            answer => (answer?, true),
        };
        type Answer = (Option<String>, Option<bool>, String, Option<String>, String, Option<String>);
        let answer: Option<Answer> = answer.into_iter().next();
        let Some((database, read_only, client, results, collation, role)) = answer else {
            return Ok(Self::by(conn.opts()));
        };
        let results = results.map_or_else(|| "NULL".into(), |results| format!("'{results}'"));
        let names = format!(
            "SET character_set_client = '{client}', character_set_results = {results}, collation_connection = '{collation}'"
        );
        let roles = has_roles.then(|| in_sql(role));
        let is_read_only = read_only.unwrap_or_default();
        Ok(Self { database, names: Some(names), roles, opened: Instant::now(), is_read_only })
    }

    /// As far as the options say it.
    pub(crate) fn by(opts: &Opts) -> Self {
        let database = opts.db_name().map(ToOwned::to_owned);
        Self { database, names: None, roles: None, opened: Instant::now(), is_read_only: false }
    }

    /// Has the session begin anew, or, without `reset`, ends what belongs to its last user alone: transactions, locks, the
    /// database. Whether its server takes no writes.
    ///
    /// What is left of results is read, and a transaction of the driver's rolled back, before anything is sent.
    ///
    /// # Errors
    /// Of a session that is not to be used any more.
    pub(crate) async fn restore(
        &self,
        conn: &mut Conn,
        opts: &Opts,
        reset: bool,
        separately: &Separately,
    ) -> Result<bool, Failure> {
        read_out(conn).await;
        // Servers that have no other way: before MySQL 5.7 and MariaDB 10.2.
        let anew = ChangeUserOpts::default;
        if reset && !conn.reset().await? {
            conn.change_user(anew()).await?;
        }
        let roles = self.roles.as_ref().filter(|_| reset);
        let role = if roles.is_some() { "CURRENT_ROLE()" } else { "NULL" };
        let state = format!("SELECT DATABASE(), {READ_ONLY}, @@character_set_client, {role}");
        let mut statements = Vec::new();
        if !reset {
            statements.extend(["ROLLBACK", "UNLOCK TABLES", "DO RELEASE_ALL_LOCKS()"].map(ToOwned::to_owned));
        }
        statements.extend(self.names.clone().filter(|_| reset));
        statements.extend(self.database.as_ref().map(|database| format!("USE {}", quoted(database))));
        let answer: Vec<Asked> = separately.ask(conn, state, statements).await?;
        let (database, read_only, spoken, role) = answer.into_iter().next().unwrap_or_default();
        if reset && self.names.is_none() && spoken != "utf8mb4" {
            conn.query_drop(NAMES).await?;
        }
        // Seldom: for its own sake, since a proxy may keep a session that has chosen roles from all others.
        if let Some(roles) = roles.filter(|roles| **roles != in_sql(role)) {
            conn.query_drop(format!("SET ROLE {roles}")).await?;
        }
        // No statement leaves a database.
        let is_to_leave = self.database.is_none() && database.is_some();
        if is_to_leave {
            conn.change_user(anew()).await?;
        }
        if reset || is_to_leave {
            set_up(conn, opts).await?;
        }
        Ok(read_only.unwrap_or_default())
    }
}

/// The database, whether the server takes no writes, the client's character set, and the roles.
type Asked = (Option<String>, Option<bool>, String, Option<String>);

/// Whether a server wants each statement in a message of its own, as TiDB does by default.
/// <https://docs.pingcap.com/tidb/stable/system-variables#tidb_multi_statement_mode-new-in-v4011>
#[derive(Debug, Default)]
pub(crate) struct Separately(AtomicBool);

impl Separately {
    /// Asks, and has these done, in one message if the server takes that.
    async fn ask(&self, conn: &mut Conn, asked: String, statements: Vec<String>) -> Result<Vec<Asked>, Failure> {
        // Relaxed: who has not seen it finds out by itself.
        if !self.0.load(Ordering::Relaxed) {
            let together =
                std::iter::once(&asked).chain(&statements).map(String::as_str).collect::<Vec<_>>().join("; ");
            match rows(conn, &together).await {
                // Which of them it was is not known.
                Err(Failure::Server(_)) if !statements.is_empty() => {}
                answer => return answer,
            }
        }
        let answer = rows(conn, &asked).await?;
        for statement in statements {
            conn.query_drop(statement).await?;
        }
        self.0.store(true, Ordering::Relaxed);
        Ok(answer)
    }
}

/// Does what the application wants done in each session, in the order of the driver.
pub(crate) async fn set_up(conn: &mut Conn, opts: &Opts) -> Result<(), Failure> {
    if let Some(callback) = opts.after_connect() {
        callback(conn).await?;
    }
    for statement in opts.init().iter().rev().chain(opts.setup().iter().rev()) {
        conn.query_drop(statement).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_taken_again_as_the_server_has_said_them() {
        assert_eq!(in_sql(None), "NONE");
        assert_eq!(in_sql(Some("NONE".into())), "NONE");
        assert_eq!(in_sql(Some("`a`@`%`,`b`@`%`".into())), "`a`@`%`,`b`@`%`");
        assert_eq!(in_sql(Some("a`b".into())), "`a``b`");
    }
}
