//! PostgreSQL as a harness: a role and a database of its own on a server in a container.

use std::{
    error::Error as _,
    io,
    marker::PhantomData,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls};
use winddown_core::BoxError;
use winddown_postgres::{Config, Postgres, SslMode};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers,
    containers::Container, gone, proxy::Proxy, scene::until,
};

/// A version of PostgreSQL there is an image of.
pub(crate) trait Version: Send + Sync + 'static {
    const NAME: &'static str;
    const IMAGE: &'static str;
    /// Those that the tests of this process use.
    fn servers() -> &'static Servers<Server>;

    /// One more.
    fn start() -> impl Future<Output = Result<Server, BoxError>> + Send {
        Server::start(containers::Setup::image(Self::IMAGE))
    }
}

pub(crate) struct Seventeen;

impl Version for Seventeen {
    const NAME: &'static str = "postgres_17";
    const IMAGE: &'static str = "postgres:17";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Seventeen::NAME, LEASED);
        &SERVERS
    }
}

pub(crate) struct Eighteen;

impl Version for Eighteen {
    const NAME: &'static str = "postgres_18";
    const IMAGE: &'static str = "postgres:18";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Eighteen::NAME, LEASED);
        &SERVERS
    }
}

/// How many servers of a version are leased at the same time.
const LEASED: usize = 3;

/// The superuser's.
pub(crate) const PASSWORD: &str = "of the superuser";

/// A server in a container of its own.
pub(crate) struct Server {
    pub(crate) container: Mutex<Container>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(setup: containers::Setup) -> Result<Self, BoxError> {
        let container = setup
            .env("POSTGRES_PASSWORD", PASSWORD)
            // Each line says whose session it is about, and nothing about a client that went away is left out.
            .args(["-c", "log_line_prefix=%m [%p] %u@%d ", "-c", "log_min_messages=debug1"])
            .args(["-c", "max_connections=400"])
            // The kernel keeps what is written, also when the server is killed.
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            // Checking a password is made to be slow, and the tests open thousands of sessions.
            .args(["-c", "scram_iterations=1"])
            .ready(["listening on IPv4 address", "database system is ready to accept connections"])
            .start()
            .await?;
        let address = container.address(5432);
        Ok(Self { container: Mutex::new(container), address })
    }

    /// One for this use.
    pub(crate) async fn get<V: Version>(use_of_it: ServerUse) -> Result<Leased<Self>, BoxError> {
        V::servers().get(use_of_it, V::start).await
    }

    /// A session of the superuser, on the runtime of the caller.
    pub(crate) async fn superuser(&self, database: &str) -> Result<Client, BoxError> {
        connect(self.address, "postgres", PASSWORD, database).await
    }

    /// Whether it lets nobody write, as one that a failover has left behind. So it is for new sessions when this returns, and a
    /// moment later for all.
    pub(crate) async fn read_only(&self, read_only: bool) -> Result<(), BoxError> {
        let superuser = self.superuser("postgres").await?;
        let (setting, expected) = if read_only {
            ("SET default_transaction_read_only = on", "on")
        } else {
            ("RESET default_transaction_read_only", "off")
        };
        superuser.batch_execute(&format!("ALTER SYSTEM {setting}")).await?;
        superuser.batch_execute("SELECT pg_reload_conf()").await?;
        until("the server has read it", || async {
            let Ok(another) = self.superuser("postgres").await else { return false };
            let shown = another.query_one("SHOW default_transaction_read_only", &[]).await;
            shown.is_ok_and(|row| row.get::<_, &str>(0) == expected)
        })
        .await;
        Ok(())
    }
}

impl Leasable for Server {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.container.get_mut().restore().await?;
        let superuser = self.superuser("postgres").await?;
        let is_read_only: String = superuser.query_one("SHOW default_transaction_read_only", &[]).await?.get(0);
        if is_read_only == "on" {
            self.read_only(false).await?;
        }
        // Returns when they are gone, or after these milliseconds.
        let others = "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity \
                      WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        if !superuser.query(others, &[]).await?.iter().all(|row| row.get(0)) {
            return Err("a session does not end".into());
        }
        for row in superuser.query("SELECT datname FROM pg_database WHERE datname LIKE 'tenant\\_%'", &[]).await? {
            superuser.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", row.get::<_, &str>(0))).await?;
        }
        for row in superuser.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'tenant\\_%'", &[]).await? {
            superuser.batch_execute(&format!("DROP ROLE {}", row.get::<_, &str>(0))).await?;
        }
        // A new one can log in, and can write.
        let tenant = Tenant::create(self).await?;
        tenant.drop(self).await
    }

    async fn remove(self) -> Result<(), BoxError> {
        Ok(self.container.into_inner().remove().await?)
    }
}

/// A session that is not one of those that are counted.
pub(crate) async fn connect(
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, BoxError> {
    connect_as("harness", address, user, password, database).await
}

/// The same under this name.
async fn connect_as(
    name: &str,
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, BoxError> {
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port());
    config.user(user).password(password).dbname(database).application_name(name);
    let began = Instant::now();
    let (client, connection) = loop {
        match config.connect(NoTls).await {
            // The host has given up looking for one that was cut off. It begins anew when it is asked again.
            Err(error) if is_unreachable(&error) && began.elapsed() < Duration::from_secs(10) => {}
            connected => break connected?,
        }
    };
    tokio::spawn(connection);
    Ok(client)
}

fn is_unreachable(error: &tokio_postgres::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|error| error.kind() == io::ErrorKind::HostUnreachable)
}

/// What a stranger's sessions are called.
pub(crate) const STRANGER: &str = "stranger";

/// A stranger with the tenant's role: one session holds a lock in a transaction of its own, the other one waits for it.
pub(crate) async fn stranger(tenant: &Tenant, address: SocketAddr) -> Result<Stranger, BoxError> {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let Tenant { name, password } = tenant;
    let holds = connect_as(STRANGER, address, name, password, name).await?;
    let waits = connect_as(STRANGER, address, name, password, name).await?;
    let lock = format!("SELECT pg_advisory_xact_lock({number})");
    holds.batch_execute(&format!("BEGIN; {lock}")).await?;
    let waits = async move { Ok(waits.batch_execute(&lock).await?) };
    let holds = Arc::new(holds);
    let lets_go = {
        let holds = Arc::clone(&holds);
        // Where its transaction had been ended meanwhile this would warn alone: the lock tells.
        let is_held = format!("DO $$ BEGIN ASSERT pg_try_advisory_xact_lock({number}); END $$; COMMIT");
        async move { Ok(holds.batch_execute(&is_held).await?) }
    };
    let stranger = Stranger::new(waits, lets_go);
    let waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1::bigint::oid \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("the stranger waits", || async { holds.query_opt(waiting, &[&number]).await.is_ok_and(|row| row.is_some()) })
        .await;
    Ok(stranger)
}

/// A role that owns a database of the same name.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl Tenant {
    pub(crate) async fn create(server: &Server) -> Result<Self, BoxError> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Nobody logs on as one of another case, no log has it by chance, and no name begins with another.
        let tenant = Self {
            name: format!("tenant_{number:05}"),
            password: format!("s3cret-{number}-{:016x}", fastrand::u64(..)),
        };
        tenant.create_on(server).await?;
        Ok(tenant)
    }

    async fn create_on(&self, server: &Server) -> Result<(), BoxError> {
        let Self { name, password } = self;
        let superuser = server.superuser("postgres").await?;
        superuser.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'")).await?;
        superuser.batch_execute(&format!("CREATE DATABASE {name} OWNER {name}")).await?;
        server
            .superuser(name)
            .await?
            .batch_execute(&format!("CREATE TABLE rows(at timestamptz); ALTER TABLE rows OWNER TO {name}"))
            .await?;
        Ok(())
    }

    pub(crate) async fn drop(self, server: &Server) -> Result<(), BoxError> {
        let superuser = server.superuser("postgres").await?;
        superuser.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await?;
        superuser.batch_execute(&format!("DROP ROLE {}", self.name)).await?;
        Ok(())
    }

    pub(crate) fn config(&self, address: SocketAddr, setup: &Setup) -> Config {
        let mut driver = tokio_postgres::Config::new();
        driver.host(address.ip().to_string()).port(address.port()).dbname(&self.name).user(&self.name);
        driver.password(if setup.wrong_password { "not it" } else { &self.password });
        let mut config = Config::from(driver);
        config.ssl_mode = SslMode::Disable;
        config.pool.max_size = setup.size;
        config.check_after = setup.check_after_idle.unwrap_or(config.check_after);
        config
    }
}

/// PostgreSQL, spoken to directly.
pub(crate) struct PostgreSql<V> {
    pub(crate) server: Leased<Server>,
    pub(crate) tenant: Tenant,
    /// Between the resource and the server, where the case may want to slow it down.
    proxy: Option<Proxy>,
    superuser: Mutex<Arc<Client>>,
    owner: Mutex<Arc<Client>>,
    version: PhantomData<V>,
}

impl<V: Version> PostgreSql<V> {
    /// The server that is shared, with a tenant that another server has too.
    pub(crate) async fn start_with(tenant: &Tenant) -> Result<Self, BoxError> {
        let server = Server::get::<V>(ServerUse::Shared).await?;
        tenant.create_on(&server).await?;
        Self::of(server, tenant.clone(), None).await
    }

    async fn of(server: Leased<Server>, tenant: Tenant, proxy: Option<Proxy>) -> Result<Self, BoxError> {
        let superuser = Mutex::new(Arc::new(server.superuser("postgres").await?));
        let owner = Mutex::new(Arc::new(server.superuser(&tenant.name).await?));
        Ok(Self { server, tenant, proxy, superuser, owner, version: PhantomData })
    }

    /// The sessions that wait for this in the server, or all.
    async fn listed(&self, wait_event: &str) -> Result<usize, BoxError> {
        let superuser = Arc::clone(&*self.superuser.lock().await);
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND backend_type = 'client backend' \
                   AND ($2 = '' OR wait_event = $2) AND application_name <> $3";
        let row = superuser.query_one(sql, &[&self.tenant.name, &wait_event, &STRANGER]).await?;
        Ok(usize::try_from(row.get::<_, i64>(0))?)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.server.address, Proxy::address)
    }

    /// Ends every session of the tenant, whatever it does.
    pub(crate) async fn end_all(&self) -> Result<(), BoxError> {
        let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                   WHERE usename = $1 AND application_name <> $2";
        let superuser = Arc::clone(&*self.superuser.lock().await);
        superuser.query(sql, &[&self.tenant.name, &STRANGER]).await?;
        Ok(())
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<(), BoxError> {
        let superuser = Arc::clone(&*self.superuser.lock().await);
        Ok(superuser.batch_execute(sql).await?)
    }
}

impl<V: Version> Harness for PostgreSql<V> {
    type Resource = Postgres;

    const NAME: &'static str = V::NAME;
    const LACKS: &'static [(Need, &'static str)] = &[];

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        let server = Server::get::<V>(use_of_it).await?;
        let proxy = match use_of_it {
            ServerUse::Shared => None,
            ServerUse::Own => Some(Proxy::start(server.address).await?),
        };
        let tenant = Tenant::create(&server).await?;
        Self::of(server, tenant, proxy).await
    }

    fn resource(&self, setup: &Setup) -> Postgres {
        Postgres::new(self.tenant.config(self.address(), setup))
    }

    async fn run(&self, client: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(client, takes).await
    }

    async fn ping(&self, client: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        client.query_one("SELECT 1", &[]).await?;
        Ok(())
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        stranger(&self.tenant, self.server.address).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        let owner = Arc::clone(&*self.owner.lock().await);
        Ok(usize::try_from(owner.query_one("SELECT count(*) FROM rows", &[]).await?.get::<_, i64>(0))?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.listed("").await
    }

    async fn running(&self) -> Result<usize, BoxError> {
        // Active is also who has answered a moment ago; only what `run` runs sleeps.
        self.listed("PgSleep").await
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        Some(&self.server.container)
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    async fn ask_anew(&self) -> Result<(), BoxError> {
        *self.superuser.lock().await = Arc::new(self.server.superuser("postgres").await?);
        *self.owner.lock().await = Arc::new(self.server.superuser(&self.tenant.name).await?);
        Ok(())
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        let limit = if full { 0 } else { -1 };
        self.execute(&format!("ALTER ROLE {} CONNECTION LIMIT {limit}", self.tenant.name)).await
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        // Returns when they are gone, or after these milliseconds.
        let sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                   WHERE usename = $1 AND state = 'idle' AND backend_type = 'client backend' AND application_name <> $2";
        let superuser = Arc::clone(&*self.superuser.lock().await);
        let ended = superuser.query(sql, &[&self.tenant.name, &STRANGER]).await?;
        match ended.iter().all(|row| row.get(0)) {
            true => Ok(()),
            false => Err("a session was not ended within 5 s".into()),
        }
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let log = self.server.container.lock().await.logs().await?;
        let ours = format!(" {}@", self.tenant.name);
        let bad = ["unexpected EOF", "reset by peer", "Broken pipe", "could not send", "did not match any process"];
        let lines = log.lines().filter(|line| line.contains(&ours) && bad.iter().any(|bad| line.contains(bad)));
        Ok(lines.map(ToOwned::to_owned).collect())
    }

    fn secret(&self) -> Option<&str> {
        Some(&self.tenant.password)
    }

    async fn end(self) -> Result<(), BoxError> {
        if !self.server.is_shared() {
            // It is put back, whatever the case has done to it.
            return Ok(());
        }
        let left = gone(|| self.sessions()).await?;
        self.tenant.drop(&self.server).await?;
        match left {
            0 => Ok(()),
            left => Err(format!("the server still lists {left} sessions").into()),
        }
    }
}

/// A statement that sleeps on the server and leaves a row. Cancelled, it leaves none.
pub(crate) async fn run(client: &deadpool_postgres::Client, takes: Duration) -> Result<(), BoxError> {
    let sql = "INSERT INTO rows SELECT now() FROM pg_sleep($1)";
    client.execute(sql, &[&takes.as_secs_f64()]).await?;
    Ok(())
}
