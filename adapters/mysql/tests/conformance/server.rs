//! MySQL and MariaDB as harnesses: a user and a database of its own on a server in a container.

use std::{
    collections::HashSet,
    io,
    marker::PhantomData,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};
use winddown_core::BoxError;
use winddown_mysql::{
    Config, Mysql,
    mysql_async::{self, Conn, IoError, OptsBuilder, Row, prelude::Queryable},
};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers,
    containers::Container, gone, proxy::Proxy, scene::until,
};

/// A server there is an image of.
pub(crate) trait Version: Send + Sync + 'static {
    const NAME: &'static str;
    /// Those that the tests of this process use.
    fn servers() -> &'static Servers<Server>;

    /// What one is started with.
    fn setup() -> containers::Setup;
}

pub(crate) struct MySql;

impl Version for MySql {
    const NAME: &'static str = "mysql_9_7";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(MySql::NAME, LEASED);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        containers::Setup::image("mysql:9.7")
            .env("MYSQL_ROOT_PASSWORD", PASSWORD)
            // Says of each session that went away badly that it did.
            .args(["--log-error-verbosity=3", "--mysqlx=OFF"])
    }
}

pub(crate) struct MariaDb;

impl Version for MariaDb {
    const NAME: &'static str = "mariadb_11_8";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(MariaDb::NAME, LEASED);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        containers::Setup::image("mariadb:11.8")
            .env("MARIADB_ROOT_PASSWORD", PASSWORD)
            // The same; more, and it would say so of statements that were cancelled.
            .args(["--log-warnings=3"])
    }
}

/// How many servers of a kind are leased at the same time: each takes long to start, and has some hundred megabytes.
const LEASED: usize = 2;

/// The superuser's.
pub(crate) const PASSWORD: &str = "of the superuser";

const MOST_CONNECTIONS: usize = 400;

/// After how many seconds the server ends an idle session, if nothing else is said.
const IDLE_TIMEOUT: usize = 28_800;

/// A server in a container of its own.
pub(crate) struct Server {
    pub(crate) container: Mutex<Container>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(setup: containers::Setup) -> Result<Self, BoxError> {
        let container = setup
            .args(["--skip-name-resolve", "--skip-log-bin", "--innodb-flush-log-at-trx-commit=2", "--local-infile=ON"])
            // As MariaDB has it by itself: what exceeds MySQL's own 64 MiB takes a busy machine minutes.
            .args(["--max-allowed-packet=16M"])
            .args([format!("--max-connections={MOST_CONNECTIONS}")])
            .ready(["ready for connections"])
            .start()
            .await?;
        let address = container.address(3306);
        Ok(Self { container: Mutex::new(container), address })
    }

    /// A session of the superuser, on the runtime of the caller.
    pub(crate) async fn superuser(&self) -> Result<Conn, BoxError> {
        let opts = OptsBuilder::default().user(Some("root")).pass(Some(PASSWORD)).prefer_socket(false);
        let opts = opts.ip_or_hostname(self.address.ip().to_string()).tcp_port(self.address.port());
        let began = Instant::now();
        loop {
            match Conn::new(opts.clone()).await {
                // The host has given up looking for one that was cut off. It begins anew when it is asked again.
                Err(error) if is_unreachable(&error) && began.elapsed() < Duration::from_secs(10) => {}
                connected => return Ok(connected?),
            }
        }
    }

    /// The same once others have left a server that was full.
    async fn superuser_when_there_is_room(&self) -> Result<Conn, BoxError> {
        let began = Instant::now();
        loop {
            match self.superuser().await {
                Err(_) if began.elapsed() < Duration::from_secs(20) => sleep(Duration::from_millis(100)).await,
                connected => return connected,
            }
        }
    }
}

impl Leasable for Server {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.container.get_mut().restore().await?;
        let mut superuser = self.superuser_when_there_is_room().await?;
        for setting in [
            format!("max_connections = {MOST_CONNECTIONS}"),
            format!("wait_timeout = {IDLE_TIMEOUT}"),
            "local_infile = ON".to_owned(),
            "read_only = OFF".to_owned(),
            "max_prepared_stmt_count = 16382".to_owned(),
        ] {
            superuser.query_drop(format!("SET GLOBAL {setting}")).await?;
        }
        // The server's own have users of their own.
        let own = u64::from(superuser.id());
        let is_other = |line: &Line| line.id != own && !["event_scheduler", "system user"].contains(&&*line.user);
        let began = Instant::now();
        loop {
            let ids = listed(&mut superuser, is_other).await?;
            if ids.is_empty() {
                break;
            }
            if began.elapsed() > Duration::from_secs(30) {
                return Err(format!("{} sessions do not end", ids.len()).into());
            }
            for id in ids {
                // One that has gone meanwhile is an error.
                let _ = superuser.query_drop(format!("KILL {id}")).await;
            }
            // The server has no event for their end.
            sleep(Duration::from_millis(20)).await;
        }
        let databases = "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'tenant\\_%'";
        for name in superuser.query::<String, _>(databases).await? {
            superuser.query_drop(format!("DROP DATABASE {name}")).await?;
        }
        let users = "SELECT user FROM mysql.user WHERE user LIKE 'tenant\\_%'";
        for name in superuser.query::<String, _>(users).await? {
            superuser.query_drop(format!("DROP USER {name}@'%'")).await?;
        }
        // A new one can log in, and can write.
        let tenant = Tenant::create(self).await?;
        tenant.drop(self).await?;
        Ok(superuser.disconnect().await?)
    }

    async fn remove(self) -> Result<(), BoxError> {
        Ok(self.container.into_inner().remove().await?)
    }
}

fn is_unreachable(error: &mysql_async::Error) -> bool {
    matches!(error, mysql_async::Error::Io(IoError::Io(error)) if error.kind() == io::ErrorKind::HostUnreachable)
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    // ER_CON_COUNT_ERROR
    matches!(error.downcast_ref(), Some(mysql_async::Error::Server(error)) if error.code == 1040)
}

/// A user with a database of the same name.
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

    pub(crate) async fn create_on(&self, server: &Server) -> Result<(), BoxError> {
        let Self { name, password } = self;
        let mut superuser = server.superuser().await?;
        superuser.query_drop(format!("CREATE USER {name}@'%' IDENTIFIED BY '{password}'")).await?;
        superuser.query_drop(format!("CREATE DATABASE {name}")).await?;
        superuser.query_drop(format!("GRANT ALL ON {name}.* TO {name}@'%'")).await?;
        superuser.query_drop(format!("CREATE TABLE {name}.rows_left(slept INT)")).await?;
        Ok(superuser.disconnect().await?)
    }

    pub(crate) async fn drop(self, server: &Server) -> Result<(), BoxError> {
        let mut superuser = server.superuser().await?;
        superuser.query_drop(format!("DROP DATABASE {}", self.name)).await?;
        superuser.query_drop(format!("DROP USER {}@'%'", self.name)).await?;
        Ok(superuser.disconnect().await?)
    }

    pub(crate) fn config(&self, address: SocketAddr, setup: &Setup) -> Config {
        let driver = OptsBuilder::default().ip_or_hostname(address.ip().to_string()).tcp_port(address.port());
        let password = if setup.wrong_password { "not it" } else { &self.password };
        let driver = driver.user(Some(&self.name)).pass(Some(password)).db_name(Some(&self.name));
        let mut config = Config::from(driver);
        config.pool.max_size = setup.size;
        config.check_after = setup.check_after_idle.unwrap_or(config.check_after);
        config
    }
}

/// One tenant of a server, spoken to directly.
pub(crate) struct Tenancy<V> {
    pub(crate) server: Leased<Server>,
    pub(crate) tenant: Tenant,
    /// Between the resource and the server, where the case may want to slow it down.
    proxy: Option<Proxy>,
    superuser: Mutex<Conn>,
    /// The sessions that were listed when somebody asked.
    known: Mutex<HashSet<u64>>,
    /// What makes the server full.
    crowd: Mutex<Vec<Conn>>,
    version: PhantomData<V>,
}

impl<V: Version> Tenancy<V> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.server.address, Proxy::address)
    }

    /// Ends every session of the tenant that is not in this state, and returns when they are gone.
    async fn end_all_but(&self, state: &str) -> Result<(), BoxError> {
        let mut superuser = self.superuser.lock().await;
        let is_to_end = |line: &Line| line.is_of(&self.tenant) && line.state != state;
        let began = Instant::now();
        loop {
            let ids = listed(&mut superuser, is_to_end).await?;
            if ids.is_empty() {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(5) {
                return Err("a session was not ended within 5 s".into());
            }
            for id in ids {
                // One that has gone meanwhile is an error.
                let _ = superuser.query_drop(format!("KILL {id}")).await;
            }
        }
    }

    /// Ends every session of the tenant, whatever it does.
    pub(crate) async fn end_all(&self) -> Result<(), BoxError> {
        self.end_all_but("no state of any").await
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<(), BoxError> {
        Ok(self.superuser.lock().await.query_drop(sql).await?)
    }

    async fn connected(&self) -> Result<usize, BoxError> {
        let sql = "SHOW GLOBAL STATUS LIKE 'Threads_connected'";
        let row: Option<(String, usize)> = self.superuser.lock().await.query_first(sql).await?;
        Ok(row.ok_or("no such counter")?.1)
    }

    /// How many clients the server has lost so far, whoever they were.
    pub(crate) async fn aborted_clients(&self) -> Result<u64, BoxError> {
        let sql = "SHOW GLOBAL STATUS LIKE 'Aborted_clients'";
        let row: Option<(String, u64)> = self.superuser.lock().await.query_first(sql).await?;
        Ok(row.ok_or("no such counter")?.1)
    }
}

impl<V: Version> Harness for Tenancy<V> {
    type Resource = Mysql;

    const NAME: &'static str = V::NAME;
    const LACKS: &'static [(Need, &'static str)] = &[(
        Need::OutlivesRuntime,
        "the driver's sockets belong to the runtime: what becomes of them is in tests/mysql/blocked.rs",
    )];
    // What is cut stays with its holder where the server cannot be told.
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        let server = V::servers().get(use_of_it, || Server::start(V::setup())).await?;
        let proxy = match use_of_it {
            ServerUse::Shared => None,
            ServerUse::Own => Some(Proxy::start(server.address).await?),
        };
        let tenant = Tenant::create(&server).await?;
        let superuser = Mutex::new(server.superuser().await?);
        Ok(Self {
            server,
            tenant,
            proxy,
            superuser,
            known: Mutex::default(),
            crowd: Mutex::default(),
            version: PhantomData,
        })
    }

    fn resource(&self, setup: &Setup) -> Mysql {
        Mysql::new(self.tenant.config(self.address(), setup))
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(connection, takes).await
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(connection.query_drop("SELECT 1").await?)
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        stranger(&self.tenant, self.server.address).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        let sql = format!("SELECT COUNT(*) FROM {}.rows_left", self.tenant.name);
        let count: Option<usize> = self.superuser.lock().await.query_first(sql).await?;
        Ok(count.ok_or("no count")?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        let began = Instant::now();
        loop {
            let ids = listed(&mut *self.superuser.lock().await, |line| line.is_of(&self.tenant)).await?;
            let mut known = self.known.lock().await;
            if ids.iter().all(|id| known.contains(id)) || began.elapsed() > LEAVES_WITHIN {
                known.extend(&ids);
                return Ok(ids.len());
            }
            drop(known);
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn running(&self) -> Result<usize, BoxError> {
        let sleeps = |line: &Line| line.user == self.tenant.name && line.state == SLEEPS;
        Ok(listed(&mut *self.superuser.lock().await, sleeps).await?.len())
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        Some(&self.server.container)
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    async fn ask_anew(&self) -> Result<(), BoxError> {
        *self.superuser.lock().await = self.server.superuser().await?;
        Ok(())
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        // The least that MariaDB takes.
        let most = if full { 10 } else { MOST_CONNECTIONS };
        self.execute(&format!("SET GLOBAL max_connections = {most}")).await?;
        let mut crowd = self.crowd.lock().await;
        for conn in crowd.drain(..) {
            conn.disconnect().await?;
        }
        // The superuser is let in once more when it is full for everybody else.
        while full && self.connected().await? <= most {
            match self.server.superuser().await {
                Ok(conn) => crowd.push(conn),
                // Others came meanwhile.
                Err(error) if is_full(error.as_ref()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        self.end_all_but(SLEEPS).await
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let log = self.server.container.lock().await.logs().await?;
        let ours = format!("user: '{}'", self.tenant.name);
        let lines = log.lines().filter(|line| line.contains(&ours) && line.contains("Aborted connection"));
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
        self.superuser.into_inner().disconnect().await?;
        match left {
            0 => Ok(()),
            left => Err(format!("the server still lists {left} sessions").into()),
        }
    }
}

/// A session as a server lists it, with nothing where there is none.
pub(crate) struct Line {
    pub(crate) id: u64,
    pub(crate) user: String,
    database: String,
    pub(crate) state: String,
}

impl Line {
    /// The tenant's, and no stranger's.
    fn is_of(&self, tenant: &Tenant) -> bool {
        self.user == tenant.name && self.database != STRANGERS
    }
}

/// The numbers of those sessions that `is_meant` says it of, as far as this one is shown them.
///
/// By the statement: in MySQL a question to the table `information_schema.processlist` is error 3854 while anybody whose
/// sessions are shown runs a statement that has bytes in it which are no text.
pub(crate) async fn listed(conn: &mut Conn, is_meant: impl Fn(&Line) -> bool) -> Result<Vec<u64>, BoxError> {
    let line = |mut row: Row| {
        let mut text = |name| row.take::<Option<String>, _>(name).flatten().unwrap_or_default();
        let (user, database, state) = (text("User"), text("db"), text("State"));
        row.take("Id").map(|id| Line { id, user, database, state })
    };
    let lines: Option<Vec<_>> = conn.query::<Row, _>("SHOW PROCESSLIST").await?.into_iter().map(line).collect();
    Ok(lines.ok_or("no number")?.into_iter().filter(is_meant).map(|line| line.id).collect())
}

/// The database that strangers are in, and nobody else. Each user may be there.
const STRANGERS: &str = "information_schema";

/// A stranger with the tenant's user: one session holds a lock, the other one waits for it.
async fn stranger(tenant: &Tenant, address: SocketAddr) -> Result<Stranger, BoxError> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let lock = format!("{}_{}", tenant.name, NEXT.fetch_add(1, Ordering::Relaxed));
    let opts = OptsBuilder::default().ip_or_hostname(address.ip().to_string()).tcp_port(address.port());
    let opts = opts.user(Some(&tenant.name)).pass(Some(&tenant.password)).db_name(Some(STRANGERS));
    let opts = opts.prefer_socket(false);
    let mut holds = Conn::new(opts.clone()).await?;
    let mut waits = Conn::new(opts).await?;
    let granted = |granted: Option<Option<i64>>| match granted.flatten() {
        Some(1) => Ok(()),
        other => Err::<_, BoxError>(format!("the lock was not had: {other:?}").into()),
    };
    granted(holds.query_first(format!("SELECT GET_LOCK('{lock}', 10)")).await?)?;
    let id = waits.id();
    let wait = format!("SELECT GET_LOCK('{lock}', 600)");
    let waits = async move {
        granted(waits.query_first(wait).await?)?;
        Ok(waits.disconnect().await?)
    };
    let holds = Arc::new(Mutex::new(holds));
    let lets_go = {
        let holds = Arc::clone(&holds);
        async move { granted(holds.lock().await.query_first(format!("SELECT RELEASE_LOCK('{lock}')")).await?) }
    };
    let stranger = Stranger::new(waits, lets_go);
    let waits = |line: &Line| line.id == u64::from(id) && line.state == "User lock";
    until("the stranger waits", || async {
        listed(&mut *holds.lock().await, waits).await.is_ok_and(|waiting| waiting.len() == 1)
    })
    .await;
    Ok(stranger)
}

/// One that is listed for the first time may be the one by which a drain has asked about the others. It is the last, so nobody is
/// left to ask about it, and the server takes it off its list a moment after it has closed the socket. A session that stays
/// is counted, and one that was listed before is at once.
const LEAVES_WITHIN: Duration = Duration::from_millis(500);

/// What the server says of a session that runs [`run`]'s statement.
pub(crate) const SLEEPS: &str = "User sleep";

/// A statement that sleeps on the server and leaves a row. Cancelled, it leaves none.
pub(crate) async fn run(conn: &mut Conn, takes: Duration) -> Result<(), BoxError> {
    // From a table: in MySQL the end of the sleep alone would be no error, and the row would be written.
    let sql = "INSERT INTO rows_left SELECT slept FROM (SELECT SLEEP(?) AS slept) AS sleep";
    Ok(conn.exec_drop(sql, (takes.as_secs_f64(),)).await?)
}
