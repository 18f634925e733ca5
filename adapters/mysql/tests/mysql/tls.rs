//! Encryption, and who the server is.

use tempfile::TempDir;
use winddown_core::{Error, ErrorKind};
use winddown_mysql::{Config, Mysql, mysql_async::OptsBuilder};
use winddown_testkit::{
    Harness as _, ServerUse, Servers,
    certificates::{Authority, NAME},
    containers,
    proxy::Proxy,
};

use crate::{
    scene::{Scene, Speaks, assert_nothing_left, drain_under_a_statement, is_encrypted, mysql, own, url, written},
    server::{MariaDb, MySql, Server, Tenancy, Version},
};

fn encrypted(setup: containers::Setup, expired: bool) -> containers::Setup {
    let (certificate, key) = Authority::ours().certify(expired);
    setup
        .file("/tls/server.key", key, 0o644)
        .file("/tls/server.crt", certificate, 0o644)
        .file("/tls/ca.crt", Authority::ours().pem(), 0o644)
        .args(["--ssl-ca=/tls/ca.crt", "--ssl-cert=/tls/server.crt", "--ssl-key=/tls/server.key"])
}

/// MySQL with a certificate of ours.
pub(crate) struct EncryptedMySql;

impl Version for EncryptedMySql {
    const NAME: &'static str = "mysql_9_7_tls";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(EncryptedMySql::NAME, 1);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        encrypted(MySql::setup(), false)
    }
}

/// MariaDB with a certificate of ours.
pub(crate) struct EncryptedMariaDb;

impl Version for EncryptedMariaDb {
    const NAME: &'static str = "mariadb_11_8_tls";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(EncryptedMariaDb::NAME, 1);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        encrypted(MariaDb::setup(), false)
    }
}

/// The same with a certificate that was valid once.
struct Expired;

impl Version for Expired {
    const NAME: &'static str = "mariadb_11_8_tls_expired";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Expired::NAME, 1);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        encrypted(MariaDb::setup(), true)
    }
}

/// A server that does not offer it.
struct Plain;

impl Version for Plain {
    const NAME: &'static str = "mariadb_11_8_plain";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Plain::NAME, 1);
        &SERVERS
    }

    fn setup() -> containers::Setup {
        MariaDb::setup().args(["--disable-ssl"])
    }
}

/// Encrypted, with the server under this name, and with what signs certificates in this file.
fn at_name<V: Version>(server: &Tenancy<V>, name: &str, parameters: &str) -> Config {
    let address = server.server.address;
    let mut config: Config =
        url(server, &format!("{name}:{}", address.port()), &format!("require_ssl=true&{parameters}")).parse().unwrap();
    config.driver = OptsBuilder::from_opts(config.driver).resolved_ips(Some(vec![address.ip()])).into();
    config
}

/// Whether the session is encrypted, or why there is none.
async fn try_it(config: Config) -> Result<bool, Error> {
    let scene = Scene::new(Mysql::new(config));
    let encrypted = match scene.db.get().await {
        Ok(mut connection) => is_encrypted(&mut connection).await,
        Err(error) => {
            scene.drain().await;
            return Err(error);
        }
    };
    scene.drain().await.assert_clean(1);
    Ok(encrypted)
}

/// What is no use trying again, in one line that says where to look.
#[track_caller]
fn assert_refused(result: Result<bool, Error>, why: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
    let said = error.to_string();
    assert!(said.contains(why) && !said.contains('\n') && !said.contains("s3cret"), "{said}");
}

const CERTIFICATE: &str = "see the server's certificate and the root certificates";

/// A directory with the roots: ours and those of somebody else.
fn roots() -> (TempDir, String, String) {
    let directory = TempDir::new().unwrap();
    let ours = written(directory.path(), "ours.pem", Authority::ours().pem());
    let others = written(directory.path(), "others.pem", Authority::new("somebody else").pem());
    (directory, ours, others)
}

async fn twenty_say_goodbye<V: Version>(server: Tenancy<V>) {
    let (_directory, ours, _) = roots();
    let mut config = at_name(&server, NAME, &format!("ssl_ca={ours}"));
    config.pool.max_size = 20;
    let scene = Scene::new(Mysql::new(config));
    for mut connection in scene.out(20).await {
        assert!(is_encrypted(&mut connection).await);
    }
    assert_eq!(server.sessions().await.unwrap(), 20);
    let aborted = server.aborted_clients().await.unwrap();
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    assert_eq!(server.aborted_clients().await.unwrap(), aborted);
    server.end().await.unwrap();
}

pub(crate) async fn sessions_are_encrypted_and_say_goodbye() {
    twenty_say_goodbye(own::<EncryptedMySql>().await).await;
    twenty_say_goodbye(own::<EncryptedMariaDb>().await).await;
}

pub(crate) async fn a_statement_is_cancelled_over_tls() {
    let server = own::<EncryptedMySql>().await;
    // Whoever logs in must do so over TLS: the session that cancels, too.
    server.execute(&format!("ALTER USER {}@'%' REQUIRE SSL", server.tenant.name)).await.unwrap();
    let (_directory, ours, _) = roots();
    let scene = Scene::patient(Mysql::new(at_name(&server, NAME, &format!("ssl_ca={ours}"))));
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("Query execution was interrupted"), "{error}");
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);
    server.end().await.unwrap();
}

pub(crate) async fn the_name_and_the_authority_of_the_certificate_are_checked() {
    let server = own::<EncryptedMariaDb>().await;
    let (_directory, ours, others) = roots();
    assert!(try_it(at_name(&server, NAME, &format!("ssl_ca={ours}"))).await.unwrap());
    assert_refused(try_it(at_name(&server, "other.winddown.test", &format!("ssl_ca={ours}"))).await, CERTIFICATE);
    assert_refused(try_it(at_name(&server, NAME, &format!("ssl_ca={others}"))).await, CERTIFICATE);
    // The authorities that the driver has with it know nothing of ours.
    assert_refused(try_it(at_name(&server, NAME, "")).await, CERTIFICATE);
    // Nobody checks.
    assert!(try_it(at_name(&server, "other.winddown.test", "verify_ca=false")).await.unwrap());

    // The certificate is for 127.0.0.1, where the proxy is, and not for the address of the server.
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let parameters = format!("require_ssl=true&ssl_ca={ours}");
    assert!(try_it(url(&server, &proxy.address().to_string(), &parameters).parse().unwrap()).await.unwrap());
    let refused = try_it(url(&server, &server.server.address.to_string(), &parameters).parse().unwrap()).await;
    assert_refused(refused, CERTIFICATE);

    let missing = try_it(at_name(&server, NAME, "ssl_ca=/nowhere/ca.pem")).await.unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn an_expired_certificate_is_refused() {
    let server: Tenancy<Expired> = Tenancy::start(ServerUse::Own).await.unwrap();
    let (_directory, ours, _) = roots();
    assert_refused(try_it(at_name(&server, NAME, &format!("ssl_ca={ours}"))).await, CERTIFICATE);
    server.end().await.unwrap();
}

pub(crate) async fn a_server_without_tls_is_refused() {
    let server: Tenancy<Plain> = Tenancy::start(ServerUse::Own).await.unwrap();
    assert_refused(try_it(at_name(&server, NAME, "")).await, "the server does not offer TLS: configure it there");
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_user_who_must_encrypt_is_told_so() {
    let server = mysql().await;
    server.execute(&format!("ALTER USER {}@'%' REQUIRE SSL", server.tenant.name)).await.unwrap();
    let plain = url(&server, &server.server.address.to_string(), "").parse().unwrap();
    assert_refused(try_it(plain).await, "see user, password and require_ssl");
    // With the certificate that MySQL has made for itself.
    assert!(try_it(at_name(&server, NAME, "verify_ca=false")).await.unwrap());
    server.end().await.unwrap();
}
