//! Encryption, and who the server is.

use std::{env, process::ExitCode, sync::Arc};

use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpListener, runtime::Builder};
use winddown_core::{BoxError, Error, ErrorKind};
use winddown_postgres::{
    Config, Postgres,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use winddown_testkit::{
    Harness as _, ServerUse, Servers,
    certificates::{Authority, NAME},
    child::{self, Child},
    containers,
    proxy::Proxy,
};

use crate::{
    scene::{
        Scene, Speaks, assert_nothing_left, drain_under_a_statement, is_encrypted, ping, seventeen, start, text, until,
        url, written,
    },
    server::{PostgreSql, Server, Version},
};

/// PostgreSQL 17 with TLS. Its log says of each connection whether it is encrypted, also of those that only bring the
/// request to cancel a statement.
pub(crate) struct Encrypted;

impl Version for Encrypted {
    const NAME: &'static str = "postgres_17_tls";
    const IMAGE: &'static str = "postgres:17";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Encrypted::NAME, 1);
        &SERVERS
    }

    async fn start() -> Result<Server, BoxError> {
        encrypted(Authority::ours().certify(false)).await
    }
}

/// The same with a certificate that was valid once.
struct Expired;

impl Version for Expired {
    const NAME: &'static str = "postgres_17_tls_expired";
    const IMAGE: &'static str = "postgres:17";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Expired::NAME, 1);
        &SERVERS
    }

    async fn start() -> Result<Server, BoxError> {
        encrypted(Authority::ours().certify(true)).await
    }
}

/// The same with a certificate of X.509's first version.
struct FirstVersion;

impl Version for FirstVersion {
    const NAME: &'static str = "postgres_17_tls_v1";
    const IMAGE: &'static str = "postgres:17";

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(FirstVersion::NAME, 1);
        &SERVERS
    }

    async fn start() -> Result<Server, BoxError> {
        encrypted(Authority::ours().certify_v1()).await
    }
}

async fn encrypted((certificate, key): (String, String)) -> Result<Server, BoxError> {
    // Who is only let in encrypted comes before all others.
    let script = "chown postgres /tls/server.key && exec docker-entrypoint.sh postgres \"$@\" -c ssl=on \
                  -c ssl_cert_file=/tls/server.crt -c ssl_key_file=/tls/server.key -c ssl_ca_file=/tls/ca.crt -c hba_file=/tls/pg_hba.conf \
                  -c log_min_messages=debug2";
    let rules = "local all all trust\n\
                 hostnossl all encrypted_only all reject\n\
                 hostssl all certified all cert\n\
                 host all all all scram-sha-256\n";
    let setup = containers::Setup::image(Encrypted::IMAGE)
        .file("/tls/server.key", key, 0o600)
        .file("/tls/server.crt", certificate, 0o644)
        .file("/tls/ca.crt", Authority::ours().pem().to_owned(), 0o644)
        .file("/tls/pg_hba.conf", rules, 0o644)
        .args(["sh", "-c", script, "sh"]);
    Server::start(setup).await
}

/// Options for a URL whose host is [`NAME`].
fn at<V: Version>(server: &PostgreSql<V>, options: &str) -> String {
    at_name(server, NAME, options)
}

fn at_name<V: Version>(server: &PostgreSql<V>, name: &str, options: &str) -> String {
    let address = server.server.address;
    url(server, &format!("{name}:{}", address.port()), &format!("hostaddr={}&{options}", address.ip()))
}

/// Whether the session is encrypted, or why there is none.
async fn try_it(url: &str) -> Result<bool, Error> {
    let scene = Scene::new(Postgres::open(url).unwrap());
    let encrypted = match scene.db.get().await {
        Ok(client) => is_encrypted(&client).await,
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

const CERTIFICATE: &str = "see the server's certificate, the root certificates and sslmode";

/// A directory with the roots: ours and those of somebody else.
fn roots() -> (TempDir, String, String) {
    let directory = TempDir::new().unwrap();
    let ours = written(directory.path(), "ours.pem", Authority::ours().pem());
    let others = written(directory.path(), "others.pem", Authority::new("somebody else").pem());
    (directory, ours, others)
}

pub(crate) async fn the_mode_says_whether_a_session_is_encrypted() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    for (mode, encrypted) in
        [("disable", false), ("prefer", true), ("require", true), ("verify-ca", true), ("verify-full", true)]
    {
        let url = at(&server, &format!("sslmode={mode}&sslrootcert={ours}"));
        assert_eq!(try_it(&url).await.unwrap(), encrypted, "{mode}");
    }
    // Without one: the default, and the mode that checks if it can.
    assert!(try_it(&at(&server, "")).await.unwrap());
    assert!(try_it(&at(&server, "sslmode=require")).await.unwrap());
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn full_verification_wants_the_name_and_the_address_of_the_certificate() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    let full = format!("sslmode=verify-full&sslrootcert={ours}");
    let ca = format!("sslmode=verify-ca&sslrootcert={ours}");
    let require = format!("sslmode=require&sslrootcert={ours}");

    assert_refused(try_it(&at_name(&server, "other.winddown.test", &full)).await, CERTIFICATE);
    assert!(try_it(&at_name(&server, "other.winddown.test", &ca)).await.unwrap());
    assert!(try_it(&at_name(&server, "other.winddown.test", &require)).await.unwrap());

    // The certificate is for 127.0.0.1, where the proxy is, and not for the address of the server.
    let proxy = Proxy::start(server.server.address).await.unwrap();
    assert!(try_it(&url(&server, &proxy.address().to_string(), &full)).await.unwrap());
    assert_refused(try_it(&url(&server, &server.server.address.to_string(), &full)).await, CERTIFICATE);
    assert!(try_it(&url(&server, &server.server.address.to_string(), &ca)).await.unwrap());
    server.end().await.unwrap();
}

pub(crate) async fn another_authority_is_refused_wherever_roots_count() {
    let server = start::<Encrypted>().await;
    let (_directory, _, others) = roots();
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = at(&server, &format!("sslmode={mode}&sslrootcert={others}"));
        assert_refused(try_it(&url).await, CERTIFICATE);
    }
    assert!(try_it(&at(&server, &format!("sslmode=prefer&sslrootcert={others}"))).await.unwrap());
    // The system's know nothing of ours.
    for mode in ["verify-ca", "verify-full"] {
        let error = try_it(&at(&server, &format!("sslmode={mode}"))).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
    }
    server.end().await.unwrap();
}

pub(crate) async fn an_expired_certificate_is_refused_wherever_roots_count() {
    let server: PostgreSql<Expired> = PostgreSql::start(ServerUse::Own).await.unwrap();
    let (_directory, ours, _) = roots();
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = at(&server, &format!("sslmode={mode}&sslrootcert={ours}"));
        assert_refused(try_it(&url).await, CERTIFICATE);
    }
    assert!(try_it(&at(&server, "sslmode=require")).await.unwrap());
    server.end().await.unwrap();
}

pub(crate) async fn a_certificate_of_the_first_version_is_taken_where_nobody_checks_it() {
    let server: PostgreSql<FirstVersion> = PostgreSql::start(ServerUse::Own).await.unwrap();
    let (_directory, ours, _) = roots();
    for newest in ["TLSv1.3", "TLSv1.2"] {
        server.execute(&format!("ALTER SYSTEM SET ssl_max_protocol_version = '{newest}'")).await.unwrap();
        server.execute("SELECT pg_reload_conf()").await.unwrap();
        until("the server has read it", || async {
            let client = server.server.superuser("postgres").await.unwrap();
            let row = client.query_one("SHOW ssl_max_protocol_version", &[]).await.unwrap();
            row.get::<_, &str>(0) == newest
        })
        .await;
        for mode in ["prefer", "require"] {
            assert!(try_it(&at(&server, &format!("sslmode={mode}"))).await.unwrap(), "{mode} {newest}");
        }
        // The login is bound to it all the same.
        let bound = try_it(&at(&server, "sslmode=require&channel_binding=require")).await;
        assert!(bound.unwrap(), "{newest}");
        for mode in ["require", "verify-ca", "verify-full"] {
            let url = at(&server, &format!("sslmode={mode}&sslrootcert={ours}"));
            assert_refused(try_it(&url).await, CERTIFICATE);
        }
    }
    server.execute("ALTER SYSTEM RESET ssl_max_protocol_version").await.unwrap();
    server.end().await.unwrap();
}

/// As the application would build it: with ours as the only root, and with this certificate, if any, for the client.
fn own_tls(client: Option<(String, String)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(Authority::ours().pem().as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    Arc::new(match client {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    })
}

pub(crate) async fn a_client_may_log_in_with_a_certificate() {
    let server = start::<Encrypted>().await;
    let tenant = &server.tenant;
    server.execute(&format!("CREATE ROLE certified LOGIN IN ROLE {}", tenant.name)).await.unwrap();
    let url = at(&server, "sslmode=verify-full");
    let url = url.replace(&format!("//{}:{}@", tenant.name, tenant.password), "//certified@");
    let log_in = async |client| {
        let mut config: Config = url.parse().unwrap();
        config.tls = Some(own_tls(client));
        let scene = Scene::new(Postgres::new(config));
        let user = match scene.db.get().await {
            Ok(client) => Ok(text(&client, "SELECT current_user::text").await),
            Err(error) => Err(error),
        };
        let drained = scene.drain().await;
        if user.is_ok() {
            drained.assert_clean(1);
        }
        user
    };
    assert_eq!(log_in(Some(Authority::ours().certify_client("certified"))).await.unwrap(), "certified");
    for other in [None, Some(Authority::ours().certify_client("somebody else"))] {
        let error = log_in(other).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
    }
    assert_nothing_left(&server).await;
    server.execute("DROP ROLE certified").await.unwrap();
    server.end().await.unwrap();
}

/// The program that prints how its session is encrypted.
const CIPHER: &str = "cipher";

/// Where it finds the URL, and whether it is to have cryptography of its own.
const CIPHER_URL: &str = "WINDDOWN_TEST_CIPHER_URL";
const CIPHER_OWN: &str = "WINDDOWN_TEST_CIPHER_OWN";

/// What is process-wide is had in a process of its own.
pub(crate) fn program() -> Option<ExitCode> {
    (child::role()? == CIPHER).then(|| child::run(&mut Builder::new_current_thread(), print_cipher()))
}

async fn print_cipher() -> Result<(), BoxError> {
    if env::var(CIPHER_OWN)? == "true" {
        let ring = ring::default_provider();
        let only = vec![ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
        CryptoProvider { cipher_suites: only, ..ring }.install_default().map_err(|_| "there is another one")?;
    }
    let scene = Scene::new(Postgres::open(&env::var(CIPHER_URL)?)?);
    let client = scene.db.get().await?;
    println!("{}", text(&client, "SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await);
    drop(client);
    scene.drain().await.assert_clean(1);
    // Nothing was installed for others.
    println!("{}", CryptoProvider::get_default().is_some());
    Ok(())
}

pub(crate) async fn the_cryptography_is_that_which_the_process_has_installed() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    for options in ["sslmode=require".to_owned(), format!("sslmode=verify-full&sslrootcert={ours}")] {
        let url = at(&server, &options);
        for (own, printed) in
            [("false", "TLS_AES_256_GCM_SHA384\nfalse\n"), ("true", "TLS_CHACHA20_POLY1305_SHA256\ntrue\n")]
        {
            let ended = Child::start_with(CIPHER, &[(CIPHER_URL, url.as_str()), (CIPHER_OWN, own)]).end();
            assert_eq!(ended.stdout, printed, "{options}, {own}: {}", ended.stderr);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_server_without_tls_is_used_by_prefer_alone() {
    let server = seventeen().await;
    let (_directory, ours, _) = roots();
    assert!(!try_it(&at(&server, "")).await.unwrap());
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = at(&server, &format!("sslmode={mode}&sslrootcert={ours}"));
        assert_refused(try_it(&url).await, "the server does not offer TLS: configure it there");
    }
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_user_who_must_encrypt_is_told_so() {
    let server = start::<Encrypted>().await;
    let tenant = &server.tenant;
    let sql = format!("CREATE ROLE encrypted_only LOGIN PASSWORD '{}' IN ROLE {}", tenant.password, tenant.name);
    server.execute(&sql).await.unwrap();
    let user = |options: &str| at(&server, options).replace(&format!("//{}:", tenant.name), "//encrypted_only:");
    assert_refused(try_it(&user("sslmode=disable")).await, "see user, password and sslmode");
    assert!(try_it(&user("sslmode=prefer")).await.unwrap());
    server.execute("DROP ROLE encrypted_only").await.unwrap();
    server.end().await.unwrap();
}

pub(crate) async fn tls_can_be_negotiated_directly() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    let full = format!("sslmode=verify-full&sslrootcert={ours}");
    // What comes first: a question whether there is TLS, or TLS.
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    const HANDSHAKE: u8 = 22;
    for negotiation in ["postgres", "direct"] {
        let options = format!("{full}&sslnegotiation={negotiation}");
        let scene = Scene::new(Postgres::open(&at(&server, &options)).unwrap());
        let out = scene.out(2).await;
        assert!(is_encrypted(&out[1]).await);
        drop(out);
        scene.drain().await.assert_clean(2);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = listener.local_addr().unwrap().to_string();
        // Nobody listens any more when it is over: it is tried again.
        let said = async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut said = [0; 8];
            client.read_exact(&mut said).await.unwrap();
            said
        };
        let to_nobody = url(&server, &nobody, &options);
        let (said, refused) = tokio::join!(said, try_it(&to_nobody));
        refused.unwrap_err();
        match negotiation {
            "direct" => assert_eq!(said[0], HANDSHAKE, "{said:?}"),
            _ => assert_eq!(said, SSL_REQUEST),
        }
    }
    assert_nothing_left(&server).await;

    let error = try_it(&at(&server, "sslnegotiation=direct")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("set require, verify-ca or verify-full"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn channel_binding_can_be_required() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    let full = format!("sslmode=verify-full&sslrootcert={ours}&channel_binding=require");
    assert!(try_it(&at(&server, &full)).await.unwrap());
    assert!(try_it(&at(&server, &format!("{full}&sslnegotiation=direct"))).await.unwrap());
    // It needs nobody who checks the certificate.
    assert!(try_it(&at(&server, "sslmode=require&channel_binding=require")).await.unwrap());
    // There is nothing to bind to without TLS.
    let error = try_it(&at(&server, "sslmode=disable&channel_binding=require")).await.unwrap_err();
    assert!(error.to_string().contains("channel binding"), "{error}");
    server.end().await.unwrap();
}

/// What the log says of clients that went away badly, whether it knew who they were or not.
async fn broken(server: &PostgreSql<Encrypted>, from: usize) -> Vec<String> {
    let log = server.server.container.lock().await.logs().await.unwrap();
    let bad = ["unexpected EOF", "reset by peer", "SSL error", "SSL SYSCALL", "could not receive", "could not send"];
    let lines = log.lines().skip(from).filter(|line| bad.iter().any(|bad| line.contains(bad)));
    lines.filter(|line| line.contains(&server.tenant.name)).map(ToOwned::to_owned).collect()
}

pub(crate) async fn twenty_sessions_say_goodbye_over_tls() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    let mut config: Config = at(&server, &format!("sslmode=verify-full&sslrootcert={ours}")).parse().unwrap();
    config.pool.max_size = 20;
    let scene = Scene::new(Postgres::new(config));
    for client in scene.out(20).await {
        assert!(is_encrypted(&client).await);
    }
    assert_eq!(server.sessions().await.unwrap(), 20);
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    assert_eq!(broken(&server, 0).await, [""; 0]);
    server.end().await.unwrap();
}

pub(crate) async fn a_statement_is_cancelled_over_tls() {
    let server = start::<Encrypted>().await;
    let (_directory, ours, _) = roots();
    let scene =
        Scene::patient(Postgres::open(&at(&server, &format!("sslmode=verify-full&sslrootcert={ours}"))).unwrap());
    let client = scene.get().await;
    let pid = text(&client, "SELECT pg_backend_pid()::text").await;
    ping(&client).await;
    drop(client);
    let (result, drained) = drain_under_a_statement(&server, &scene).await;
    let error = result.unwrap_err();
    assert!(error.contains("due to user request"), "{error}");
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);
    assert_nothing_left(&server).await;
    assert_eq!(server.rows().await.unwrap(), 0);

    // The connection that brought the request.
    let log = server.server.container.lock().await.logs().await.unwrap();
    let request = format!("processing cancel request: sending SIGINT to process {pid}");
    let bearer = log.lines().find(|line| line.contains(&request)).unwrap_or_else(|| panic!("no request in: {log}"));
    let bearer = bearer.split_whitespace().find(|word| word.starts_with('[')).unwrap();
    assert!(
        log.lines().any(|line| line.contains(bearer) && line.contains("SSL connection from")),
        "{bearer} was not encrypted: {log}"
    );
    server.end().await.unwrap();
}
