//! Users who may not run everything, and servers that do not know everything.

use std::time::Duration;

use redis::{AsyncCommands as _, RedisConnectionInfo, cmd};
use winddown_core::ErrorKind;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{Harness as _, Setup, containers, proxy::Proxy};

use crate::{
    scene::{
        QUICK, Scene, Server, Speaks as _, assert_nothing_left, config_at, drain_under_a_command, in_full, redis_8,
        until,
    },
    server::{Listed, Redis8, Tenant, Version as _},
};

async fn rules(server: &Server, rules: &[&str]) {
    let mut set = cmd("ACL");
    set.arg("SETUSER").arg(&server.tenant.name).arg(rules);
    set.exec_async(&mut server.superuser().await).await.unwrap();
}

/// One round trip that everybody may make.
async fn write(scene: &Scene, key: &str) {
    let () = scene.get().await.set(key, 1).await.unwrap();
}

/// With one connection for all, and with a pool of one.
fn both(config: Config) -> [Config; 2] {
    let mut pooled = config.clone().pooled(1);
    pooled.response_timeout = config.response_timeout;
    [config, pooled]
}

pub(crate) async fn a_user_who_may_not_ping_is_let_in_and_keeps_its_connections() {
    let server = redis_8().await;
    // A command that is refused is an answer, and so it is where nothing else is allowed.
    for refused in [&["-ping"][..], &["-@all", "+set"], &["-@all", "+set", "-select"]] {
        rules(&server, &["+@all"]).await;
        rules(&server, refused).await;
        let proxy = Proxy::start(server.server.address).await.unwrap();
        for mut config in both(config_at(&server, proxy.address())) {
            // Nobody is asked in vain by a server that answers.
            (config.check_after, config.check_timeout) = (Duration::ZERO, QUICK);
            let scene = Scene::new(Redis::new(config));
            let key = server.tenant.key("key");
            write(&scene, &key).await;
            let before = proxy.accepted();
            for _ in 0..10 {
                write(&scene, &key).await;
            }
            assert_eq!(proxy.accepted(), before, "{refused:?}: connections were replaced");
            scene.drain().await.assert_clean(1);
            assert_nothing_left(&server).await;
        }
    }
    server.end().await.unwrap();
}

pub(crate) async fn what_cannot_be_cancelled_is_known_from_the_start() {
    const CANNOT: &str = "cancel statements";
    let server = redis_8().await;
    for (refused, can) in [("-wait", true), ("-client", false), ("-client|unblock", false)] {
        rules(&server, &["+@all"]).await;
        rules(&server, &[refused]).await;
        for config in both(config_at(&server, server.server.address)) {
            let scene = Scene::new(Redis::new(config));
            write(&scene, &server.tenant.key("key")).await;
            let drained = scene.drain().await;
            drained.assert_clean(1);
            assert_eq!(!drained.row().cannot.iter().any(|cannot| cannot == CANNOT), can, "{}", drained.report);
            assert_eq!(drained.row().error, None, "{}", drained.report);
            assert_nothing_left(&server).await;
        }
    }
    // What waits for ever is cut, and the report has said why.
    let mut config = config_at(&server, server.server.address);
    config.response_timeout = None;
    let scene = Scene::patient(Redis::new(config));
    let (straggler, drained) = drain_under_a_command(&server, &scene).await;
    straggler.unwrap_err();
    drained.assert_in_time();
    assert!(drained.row().cannot.iter().any(|cannot| cannot == CANNOT), "{}", drained.report);
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

/// Redis 8 without some of its commands, and a user of it.
struct Old {
    server: crate::server::Server,
    tenant: Tenant,
}

impl Old {
    /// As one of the time before `HELLO`, or a proxy that knows little.
    async fn without(commands: &[&str]) -> Self {
        let gone = commands.iter().flat_map(|command| ["--rename-command", command, ""]);
        let setup = containers::Setup::image(Redis8::IMAGE).args(gone);
        let server = crate::server::Server::start(setup).await.unwrap();
        let tenant = Tenant::create(&mut server.superuser().await.unwrap()).await.unwrap();
        Self { server, tenant }
    }

    fn config(&self) -> Config {
        self.tenant.config(self.server.address, &Setup::default())
    }

    async fn end(self) {
        self.server.container.into_inner().remove().await.unwrap();
    }
}

pub(crate) async fn a_server_that_does_not_know_hello_is_logged_on_to_as_of_old() {
    let old = Old::without(&["HELLO"]).await;
    let listed = async || Listed::of(&old.tenant, &mut old.server.superuser().await.unwrap()).await.unwrap();
    for mut config in both(old.config()) {
        config.response_timeout = None;
        config.client_name = Some("of old".into());
        let settings = config.driver.redis_settings().clone().set_db(2);
        config.driver = config.driver.set_redis_settings(settings);
        let scene = Scene::patient(Redis::new(config));
        scene.ping().await;
        let sessions = listed().await;
        assert_eq!(sessions.iter().map(|session| &*session.name).collect::<Vec<_>>(), ["of_old"]);
        // It is known by its number, and so what waits on it can be ended.
        let mut held = scene.get().await;
        let key = old.tenant.key("never");
        let waits = async move { held.blpop::<_, ()>(key, 0.0).await.unwrap_err().to_string() };
        let (ended, drained) = tokio::join!(waits, async {
            until("it waits", || async { listed().await.iter().any(|session| session.is_blocked()) }).await;
            scene.drain().await
        });
        assert!(ended.contains("UNBLOCKED"), "{ended}");
        assert_eq!(drained.row().cannot.len(), 0, "{}", drained.report);
        assert_eq!(listed().await.len(), 0);
    }
    // Who has no user has a password at most, and who wants what it cannot do is told.
    let scene = Scene::new(Redis::open(&format!("redis://{}?protocol=resp3", old.server.address)).unwrap());
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(in_full(&error).contains("leave `protocol` out of the URL"), "{}", in_full(&error));
    let mut wrong = old.config();
    let settings = RedisConnectionInfo::default().set_username(&old.tenant.name).set_password("s3cret");
    wrong.driver = wrong.driver.set_redis_settings(settings);
    let error = Scene::new(Redis::new(wrong)).db.get().await.unwrap_err();
    assert!(in_full(&error).contains("see user and password"), "{}", in_full(&error));
    old.end().await;
}

pub(crate) async fn a_server_that_knows_no_client_commands_works_without_cancelling() {
    let old = Old::without(&["HELLO", "CLIENT"]).await;
    let superuser = old.server.superuser().await;
    for config in both(old.config()) {
        let scene = Scene::new(Redis::new(config));
        scene.ping().await;
        let drained = scene.drain().await;
        drained.assert_clean(1);
        assert!(drained.row().cannot.iter().any(|cannot| cannot == "cancel statements"), "{}", drained.report);
    }
    drop(superuser);
    old.end().await;
}
