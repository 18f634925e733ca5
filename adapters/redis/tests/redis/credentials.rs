//! User and password that are asked for.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use redis::{RedisConnectionInfo, cmd};
use winddown_core::ErrorKind;
use winddown_redis::{Config, Credentials, Redis, redis};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Server, Speaks as _, chain, config, driver_error, in_full, ping, redis_8};

/// The tenant's configuration without user and password.
fn anonymous(server: &Server) -> Config {
    let mut config = config(server);
    config.driver = config.driver.set_redis_settings(RedisConnectionInfo::default());
    config
}

pub(crate) async fn the_provider_is_asked_once_for_each_new_session() {
    let server = redis_8().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counter, user, password) = (Arc::clone(&asked), server.tenant.name.clone(), server.tenant.password.clone());
    let config = anonymous(&server).credentials(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Credentials::new(&user, &password)))
    });
    let scene = Scene::new(Redis::new(config));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for _ in 0..2 {
        drop(scene.out(3).await);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
    scene.drain().await.assert_clean(3);
    server.end().await.unwrap();
}

pub(crate) async fn a_password_that_changes_is_followed() {
    let server = redis_8().await;
    let current = Arc::new(Mutex::new(server.tenant.password.clone()));
    let given = Arc::clone(&current);
    let mut config = config(&server).credentials(move || {
        let password = given.lock().unwrap().clone();
        async move { Ok(Credentials::password(password)) }
    });
    // What the provider gives is what counts.
    let settings = config.driver.redis_settings().clone().set_password("not it");
    config.driver = config.driver.set_redis_settings(settings);
    let scene = Scene::new(Redis::new(config));
    let mut first = scene.get().await;
    let mut change = cmd("ACL");
    change.arg("SETUSER").arg(&server.tenant.name).arg("resetpass").arg(">another");
    change.exec_async(&mut server.superuser().await).await.unwrap();
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(driver_error(&error).unwrap().code(), Some("WRONGPASS"), "{error}");
    assert!(!error.is_retryable(), "{error}");
    "another".clone_into(&mut current.lock().unwrap());
    let mut second = scene.get().await;
    ping(&mut first).await;
    ping(&mut second).await;
    drop((first, second));
    scene.drain().await.assert_clean(2);
    server.end().await.unwrap();
}

#[derive(Debug)]
struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token service is down")
    }
}

impl StdError for Down {}

pub(crate) async fn the_providers_error_is_behind_that_of_the_checkout_and_no_secret_is_shown() {
    let server = redis_8().await;
    let given = Arc::new(Mutex::new(None));
    let gives = Arc::clone(&given);
    let config = config(&server).credentials(move || {
        let password: Option<String> = gives.lock().unwrap().clone();
        async move { Ok(Credentials::password(password.ok_or(Down)?)) }
    });
    let mut shown = vec![format!("{config:?}")];
    let scene = Scene::new(Redis::new(config));

    // To the initialisation, then to a checkout.
    for kind in [ErrorKind::Init, ErrorKind::Checkout] {
        *given.lock().unwrap() = None;
        let held = match kind {
            ErrorKind::Init => None,
            _ => {
                *given.lock().unwrap() = Some(server.tenant.password.clone());
                let held = scene.get().await;
                *given.lock().unwrap() = None;
                Some(held)
            }
        };
        let error = scene.db.get().await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (kind, true), "{error}");
        assert!(chain(&error).any(|error| error.is::<Down>()), "{error}");
        let said = error.to_string();
        assert!(said.contains("credentials provider") && said.ends_with("the token service is down"), "{said}");
        shown.push(format!("{error:?} {}", in_full(&error)));

        *given.lock().unwrap() = Some("s3cret that is wrong".into());
        let error = scene.db.get().await.unwrap_err();
        assert_eq!(driver_error(&error).unwrap().code(), Some("WRONGPASS"), "{error}");
        shown.push(format!("{error:?} {}", in_full(&error)));
        drop(held);
    }
    shown.push(format!("{:?} {:?}", scene.db.resource(), Credentials::new("somebody", "s3cret of somebody")));
    for text in shown {
        assert!(!text.contains("s3cret"), "{text}");
    }
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}
