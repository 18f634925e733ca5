//! PostgreSQL behind PgBouncer, pooling transactions, as a harness.
//!
//! The sessions of the resource are PgBouncer's clients, and its log is the witness of how they ended. What runs is what
//! PostgreSQL lists as running.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use winddown_core::BoxError;
use winddown_postgres::{Config, Postgres};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers,
    containers::Container, gone, proxy::Proxy,
};

use crate::server::{PASSWORD, STRANGER, Server, Seventeen, Tenant, connect, run, stranger};

/// PgBouncer in a container, in front of the PostgreSQL that is shared.
pub(crate) struct Bouncer {
    container: Mutex<Container>,
    address: SocketAddr,
}

static BOUNCERS: Servers<Bouncer> = Servers::new(PgBouncer::NAME, 3);

/// How many clients it takes.
const MOST_CLIENTS: usize = 400;

impl Bouncer {
    async fn start() -> Result<Self, BoxError> {
        let server = Server::get::<Seventeen>(ServerUse::Shared).await?;
        // Users and their secrets are PostgreSQL's, so a tenant needs nothing here.
        let settings = format!(
            "[databases]\n\
             * = host={host} port={port} auth_user=postgres auth_dbname=postgres\n\
             [pgbouncer]\n\
             listen_addr = 0.0.0.0\nlisten_port = 6432\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\n\
             auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1\n\
             admin_users = postgres\npool_mode = transaction\ndefault_pool_size = 60\nmax_client_conn = {MOST_CLIENTS}\n\
             server_fast_close = 1\nlog_connections = 1\nlog_disconnections = 1\n",
            host = server.address.ip(),
            port = server.address.port(),
        );
        let users = format!("\"postgres\" \"{PASSWORD}\"\n");
        let container = containers::Setup::image("pgbouncer:1.24")
            .file("/etc/pgbouncer/pgbouncer.ini", settings, 0o644)
            .file("/etc/pgbouncer/userlist.txt", users, 0o644)
            .ready(["process up: PgBouncer"])
            .network(server.container.lock().await.network())
            .start()
            .await?;
        let address = container.address(6432);
        Ok(Self { container: Mutex::new(container), address })
    }

    async fn console(&self) -> Result<Client, BoxError> {
        connect(self.address, "postgres", PASSWORD, "pgbouncer").await
    }
}

impl Leasable for Bouncer {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.container.get_mut().restore().await?;
        let console = self.console().await?;
        console.simple_query(&format!("SET max_client_conn = {MOST_CLIENTS}")).await?;
        let clients = async || {
            let mut clients = rows(console.simple_query("SHOW CLIENTS").await?);
            clients.retain(|client| client.get("user") != Some("postgres"));
            Ok::<_, BoxError>(clients)
        };
        for client in clients().await? {
            let id = client.get("id").ok_or("SHOW CLIENTS has no id")?;
            // One that has gone meanwhile is an error.
            let _ = console.simple_query(&format!("KILL_CLIENT {id}")).await;
        }
        match gone(async || Ok(clients().await?.len())).await? {
            0 => {}
            left => return Err(format!("{left} clients do not end").into()),
        }
        // What it asks PostgreSQL for is answered.
        let through = connect(self.address, "postgres", PASSWORD, "postgres").await?;
        through.simple_query("SELECT 1").await?;
        Ok(())
    }

    async fn remove(self) -> Result<(), BoxError> {
        Ok(self.container.into_inner().remove().await?)
    }
}

fn rows(answer: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let rows = answer.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.collect()
}

pub(crate) struct PgBouncer {
    server: Leased<Server>,
    bouncer: Leased<Bouncer>,
    pub(crate) tenant: Tenant,
    proxy: Option<Proxy>,
    console: Mutex<Arc<Client>>,
    superuser: Client,
    owner: Client,
}

impl PgBouncer {
    async fn ask(&self, command: &str) -> Result<Vec<SimpleQueryRow>, BoxError> {
        let console = Arc::clone(&*self.console.lock().await);
        Ok(rows(console.simple_query(command).await?))
    }

    /// The clients that are the resource's.
    async fn clients(&self) -> Result<Vec<SimpleQueryRow>, BoxError> {
        let mut clients = self.ask("SHOW CLIENTS").await?;
        clients.retain(|client| {
            client.get("user") == Some(&self.tenant.name) && client.get("application_name") != Some(STRANGER)
        });
        Ok(clients)
    }
}

impl PgBouncer {
    /// Its address, and the resource there, without a proxy.
    pub(crate) fn direct(&self) -> (SocketAddr, Postgres) {
        (self.bouncer.address, Postgres::new(self.config()))
    }

    /// The configuration of that.
    pub(crate) fn config(&self) -> Config {
        self.tenant.config(self.bouncer.address, &Setup::default())
    }
}

impl Harness for PgBouncer {
    type Resource = Postgres;

    const NAME: &'static str = "pgbouncer";
    const LACKS: &'static [(Need, &'static str)] = &[];

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        // What a case breaks is PgBouncer: it is what the resource has its sessions with.
        let server = Server::get::<Seventeen>(ServerUse::Shared).await?;
        let bouncer = BOUNCERS.get(use_of_it, Bouncer::start).await?;
        let proxy = match use_of_it {
            ServerUse::Shared => None,
            ServerUse::Own => Some(Proxy::start(bouncer.address).await?),
        };
        let tenant = Tenant::create(&server).await?;
        let superuser = server.superuser("postgres").await?;
        let owner = server.superuser(&tenant.name).await?;
        let console = Mutex::new(Arc::new(bouncer.console().await?));
        Ok(Self { server, bouncer, tenant, proxy, console, superuser, owner })
    }

    fn resource(&self, setup: &Setup) -> Postgres {
        let address = self.proxy.as_ref().map_or(self.bouncer.address, Proxy::address);
        Postgres::new(self.tenant.config(address, setup))
    }

    async fn run(&self, client: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(client, takes).await
    }

    async fn ping(&self, client: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        client.query_one("SELECT 1", &[]).await?;
        Ok(())
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        stranger(&self.tenant, self.bouncer.address).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        Ok(usize::try_from(self.owner.query_one("SELECT count(*) FROM rows", &[]).await?.get::<_, i64>(0))?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.clients().await?.len())
    }

    async fn running(&self) -> Result<usize, BoxError> {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event = 'PgSleep'";
        Ok(usize::try_from(self.superuser.query_one(sql, &[&self.tenant.name]).await?.get::<_, i64>(0))?)
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        Some(&self.bouncer.container)
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    async fn ask_anew(&self) -> Result<(), BoxError> {
        *self.console.lock().await = Arc::new(self.bouncer.console().await?);
        Ok(())
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        // The console does not count.
        self.ask(&format!("SET max_client_conn = {}", if full { 1 } else { MOST_CLIENTS })).await?;
        Ok(())
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        for client in self.clients().await? {
            let id = client.get("id").ok_or("SHOW CLIENTS has no id")?;
            self.ask(&format!("KILL_CLIENT {id}")).await?;
        }
        match gone(|| self.sessions()).await? {
            0 => Ok(()),
            left => Err(format!("{left} clients were not ended").into()),
        }
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let log = self.bouncer.container.lock().await.logs().await?;
        let ours = format!("/{}@", self.tenant.name);
        let closing = log.lines().filter(|line| line.contains(&ours) && line.contains("closing because"));
        // As a client said, or what it was told to stop was passed on.
        let good = ["client close request", "successfully sent cancel request"];
        let bad = closing.filter(|line| !good.iter().any(|good| line.contains(good)));
        Ok(bad.map(ToOwned::to_owned).collect())
    }

    fn secret(&self) -> Option<&str> {
        Some(&self.tenant.password)
    }

    async fn end(self) -> Result<(), BoxError> {
        // One that the case had alone is put back, whatever the case has done to it.
        let left = if self.bouncer.is_shared() { gone(|| self.sessions()).await? } else { 0 };
        self.tenant.drop(&self.server).await?;
        match left {
            0 => Ok(()),
            left => Err(format!("PgBouncer still lists {left} clients").into()),
        }
    }
}
