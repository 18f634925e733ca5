//! Encryption, and who the server is.

use std::path::PathBuf;

use redis::{ConnectionAddr, cmd};
use tempfile::TempDir;
use winddown_core::{BoxError, Error, ErrorKind};
use winddown_redis::{Config, Redis, Roots, redis};
use winddown_testkit::{Harness as _, Servers, certificates::Authority, containers};

use crate::{
    scene::{Scene, Server, Speaks as _, assert_nothing_left, drain_under_a_command, start, url},
    server::{Server as Started, Version},
};

/// Redis 8 with TLS on a port of its own.
pub(crate) struct Encrypted;

impl Version for Encrypted {
    const IMAGE: &'static str = "redis:8";
    const NAMES: [&'static str; 2] = ["redis_8_tls", "redis_8_tls_shared"];

    fn servers() -> &'static Servers<Started> {
        static SERVERS: Servers<Started> = Servers::new(Encrypted::NAMES[0], 1);
        &SERVERS
    }

    async fn start() -> Result<Started, BoxError> {
        encrypted(Authority::ours().certify(false)).await
    }
}

/// The same with a certificate that was valid once.
pub(crate) struct Expired;

impl Version for Expired {
    const IMAGE: &'static str = "redis:8";
    const NAMES: [&'static str; 2] = ["redis_8_tls_expired", "redis_8_tls_expired_shared"];

    fn servers() -> &'static Servers<Started> {
        static SERVERS: Servers<Started> = Servers::new(Expired::NAMES[0], 1);
        &SERVERS
    }

    async fn start() -> Result<Started, BoxError> {
        encrypted(Authority::ours().certify(true)).await
    }
}

async fn encrypted((certificate, key): (String, String)) -> Result<Started, BoxError> {
    let setup = containers::Setup::image(Encrypted::IMAGE)
        .file("/tls/server.key", key, 0o644)
        .file("/tls/server.crt", certificate, 0o644)
        .args(["--tls-port", &PORT.to_string(), "--tls-cert-file", "/tls/server.crt"])
        .args([
            "--tls-key-file",
            "/tls/server.key",
            "--tls-auth-clients",
            "no",
            "--tls-ca-cert-file",
            "/tls/server.crt",
        ]);
    Started::start(setup).await
}

const PORT: u16 = 6380;

/// A configuration for the port with TLS, reached through a proxy at an address that the certificate has.
async fn config<V: Version>(server: &Server<V>, rest: &str) -> (Config, winddown_testkit::proxy::Proxy) {
    let address = (server.server.address.ip(), PORT).into();
    let proxy = winddown_testkit::proxy::Proxy::start(address).await.unwrap();
    let config: Config = url(server, "rediss", &format!("{}{rest}", proxy.address())).parse().unwrap();
    (config.pooled(20), proxy)
}

/// A file with the certificate of this authority.
fn root(authority: &Authority) -> (TempDir, Roots) {
    let directory = TempDir::new().unwrap();
    let path: PathBuf = directory.path().join("root.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    (directory, Roots::File(path))
}

async fn refusal(config: Config) -> Error {
    let scene = Scene::new(Redis::new(config));
    let error = scene.db.get().await.unwrap_err();
    scene.drain().await;
    error
}

/// What is no use trying again, in one line that says where to look.
#[track_caller]
fn assert_refused(error: &Error) {
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false), "{error}");
    let said = error.to_string();
    assert!(said.contains("see the server's certificate") && !said.contains('\n'), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

pub(crate) async fn the_scheme_says_whether_a_session_is_encrypted() {
    let server = start::<Encrypted>().await;
    let (_directory, ours) = root(Authority::ours());
    let (mut encrypted, _proxy) = config(&server, "").await;
    encrypted.roots = Some(ours);
    let (insecure, _other) = config(&server, "/#insecure").await;
    let plain: Config = url(&server, "redis", &server.server.address.to_string()).parse().unwrap();
    for (config, expected) in [(encrypted.clone(), true), (insecure, true), (plain, false)] {
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(1).await);
        let info: String = cmd("CLIENT").arg("LIST").query_async(&mut server.superuser().await).await.unwrap();
        let ours = info.lines().find(|line| line.contains(&format!("user={}", server.tenant.name))).unwrap();
        // The port of the server that the session is with.
        let is_encrypted = ours.split(' ').any(|field| field.starts_with("laddr=") && field.ends_with(":6380"));
        assert_eq!(is_encrypted, expected, "{ours}");
        scene.drain().await.assert_clean(1);
        assert_nothing_left(&server).await;
    }
    // The other port waits for the rest of what is none of its commands.
    encrypted.driver = encrypted.driver.clone().set_addr(ConnectionAddr::TcpTls {
        host: server.server.address.ip().to_string(),
        port: server.server.address.port(),
        insecure: false,
        tls_params: None,
    });
    let error = refusal(encrypted).await;
    assert!(error.to_string().contains("TLS was not over within the connect_timeout"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn the_certificate_must_be_for_the_name_and_from_a_root() {
    let server = start::<Encrypted>().await;
    let (_directory, ours) = root(Authority::ours());
    // The container's own address is in no certificate.
    let mut config: Config = url(&server, "rediss", &format!("{}:{PORT}", server.server.address.ip())).parse().unwrap();
    config.roots = Some(ours);
    assert_refused(&refusal(config.clone()).await);
    // The system knows nothing of our authority.
    let (system, _proxy) = self::config(&server, "").await;
    assert_refused(&refusal(system).await);
    config.roots = Some(Roots::File("/nowhere/root.pem".into()));
    let error = refusal(config).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("/nowhere/root.pem: give a PEM file as Config::roots"), "{error}");
    server.end().await.unwrap();
}

pub(crate) async fn another_authority_and_an_expired_certificate_are_refused() {
    let server = start::<Encrypted>().await;
    let (_directory, others) = root(&Authority::new("somebody else"));
    let (mut config, _proxy) = config(&server, "").await;
    config.roots = Some(others);
    assert_refused(&refusal(config).await);
    server.end().await.unwrap();

    let server = start::<Expired>().await;
    let (_directory, ours) = root(Authority::ours());
    let (mut config, _proxy) = self::config(&server, "").await;
    config.roots = Some(ours);
    assert_refused(&refusal(config).await);
    server.end().await.unwrap();
}

pub(crate) async fn twenty_sessions_say_goodbye_over_tls() {
    let server = start::<Encrypted>().await;
    let (_directory, ours) = root(Authority::ours());
    let (mut config, _proxy) = config(&server, "").await;
    config.roots = Some(ours);
    let scene = Scene::new(Redis::new(config));
    drop(scene.out(20).await);
    assert_eq!(server.sessions().await.unwrap(), 20);
    scene.drain().await.assert_clean(20);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_command_that_waits_is_ended_over_tls() {
    let server = start::<Encrypted>().await;
    let (_directory, ours) = root(Authority::ours());
    let (mut config, _proxy) = config(&server, "").await;
    config.roots = Some(ours);
    let scene = Scene::patient(Redis::new(config));
    let (result, drained) = drain_under_a_command(&server, &scene).await;
    assert!(result.unwrap_err().contains("UNBLOCKED"));
    drained.assert_in_time();
    assert_eq!((drained.ended(), drained.row().sessions.cancelled), ((1, 0), 1), "{}", drained.report);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
