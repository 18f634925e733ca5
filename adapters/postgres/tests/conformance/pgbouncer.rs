//! PostgreSQL behind PgBouncer, pooling transactions, as a harness.
//!
//! The sessions of the resource are PgBouncer's clients, and its log is the witness of how they ended. What runs is what
//! PostgreSQL lists as running.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::Mutex;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use winddown_core::BoxError;
use winddown_postgres::Postgres;
use winddown_testkit::{
    CheckoutOf, Harness, ServerUse, Setup, Shared, containers, containers::Container, gone, proxy::Proxy,
};

use crate::server::{PASSWORD, Server, Seventeen, Tenant, connect, run};

/// PgBouncer in a container, in front of the PostgreSQL that is shared.
pub(crate) struct Bouncer {
    container: Mutex<Container>,
    address: SocketAddr,
}

static SHARED: Shared<Bouncer> = Shared::new();

impl Bouncer {
    async fn start(server: &Server) -> Result<Self, BoxError> {
        // Users and their secrets are PostgreSQL's, so a tenant needs nothing here.
        let settings = format!(
            "[databases]\n\
             * = host={host} port={port} auth_user=postgres auth_dbname=postgres\n\
             [pgbouncer]\n\
             listen_addr = 0.0.0.0\nlisten_port = 6432\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\n\
             auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1\n\
             admin_users = postgres\npool_mode = transaction\ndefault_pool_size = 20\nmax_client_conn = 400\n\
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

    async fn shared(server: &Server) -> Result<Arc<Self>, BoxError> {
        SHARED.get(|| Self::start(server)).await
    }

    async fn console(&self) -> Result<Client, BoxError> {
        connect(self.address, "postgres", PASSWORD, "pgbouncer").await
    }
}

pub(crate) struct PgBouncer {
    server: Arc<Server>,
    bouncer: Arc<Bouncer>,
    use_of_it: ServerUse,
    tenant: Tenant,
    proxy: Option<Proxy>,
    console: Mutex<Arc<Client>>,
    superuser: Client,
    owner: Client,
}

impl PgBouncer {
    async fn ask(&self, command: &str) -> Result<Vec<SimpleQueryRow>, BoxError> {
        let console = Arc::clone(&*self.console.lock().await);
        let answer = console.simple_query(command).await?;
        let rows = answer.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The clients that are the resource's.
    async fn clients(&self) -> Result<Vec<SimpleQueryRow>, BoxError> {
        let mut clients = self.ask("SHOW CLIENTS").await?;
        clients.retain(|client| client.get("user") == Some(&self.tenant.name));
        Ok(clients)
    }
}

impl Harness for PgBouncer {
    type Resource = Postgres;

    const NAME: &'static str = "pgbouncer";

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        // What a case breaks is PgBouncer: it is what the resource has its sessions with.
        let server = Server::shared::<Seventeen>().await?;
        let (bouncer, proxy) = match use_of_it {
            ServerUse::Shared => (Bouncer::shared(&server).await?, None),
            ServerUse::Own => {
                let bouncer = Arc::new(Bouncer::start(&server).await?);
                let proxy = Proxy::start(bouncer.address).await?;
                (bouncer, Some(proxy))
            }
        };
        let tenant = Tenant::create(&server).await?;
        let superuser = server.superuser("postgres").await?;
        let owner = server.superuser(&tenant.name).await?;
        let console = Mutex::new(Arc::new(bouncer.console().await?));
        Ok(Self { server, bouncer, use_of_it, tenant, proxy, console, superuser, owner })
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
        self.ask(&format!("SET max_client_conn = {}", if full { 1 } else { 400 })).await?;
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
        let bad = closing.filter(|line| !line.contains("client close request"));
        Ok(bad.map(ToOwned::to_owned).collect())
    }

    fn secret(&self) -> Option<&str> {
        Some(&self.tenant.password)
    }

    async fn end(self) -> Result<(), BoxError> {
        let left = match self.use_of_it {
            ServerUse::Shared => gone(|| self.sessions()).await?,
            ServerUse::Own => 0,
        };
        self.tenant.drop(&self.server).await?;
        if self.use_of_it == ServerUse::Own {
            // Whatever the case has done to it.
            return match Arc::into_inner(self.bouncer) {
                Some(bouncer) => Ok(bouncer.container.into_inner().remove().await?),
                None => Err("somebody still holds PgBouncer".into()),
            };
        }
        match left {
            0 => Ok(()),
            left => Err(format!("PgBouncer still lists {left} clients").into()),
        }
    }

    async fn stop_shared() -> Result<(), BoxError> {
        if let Some(bouncer) = SHARED.take().await {
            bouncer.container.into_inner().remove().await?;
        }
        Server::stop_shared::<Seventeen>().await
    }
}
