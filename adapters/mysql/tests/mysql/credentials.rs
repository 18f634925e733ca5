//! User and password that are asked for, and the ways to log in with them.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use winddown_core::{Credentials, ErrorKind};
use winddown_mysql::{Config, Mysql, mysql_async::OptsBuilder};
use winddown_testkit::Harness as _;

use crate::{
    scene::{Scene, Speaks, assert_nothing_left, chain, code, config, in_full, mariadb, mysql, ping, text},
    server::{Tenancy, Version},
};

/// "Access denied".
const DENIED: u16 = 1045;

/// The tenant's configuration with this user and password.
fn as_user<V: Version>(server: &Tenancy<V>, user: Option<&str>, password: Option<&str>) -> Config {
    let mut config = config(server);
    config.driver = OptsBuilder::from_opts(config.driver).user(user).pass(password).into();
    config
}

pub(crate) async fn the_provider_is_asked_once_for_each_new_session() {
    let server = mysql().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (counter, user, password) = (Arc::clone(&asked), server.tenant.name.clone(), server.tenant.password.clone());
    let mut config = as_user(&server, None, None).credentials(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Credentials::new(&user, &password)))
    });
    config.pool.max_size = 3;
    let scene = Scene::new(Mysql::new(config));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for _ in 0..2 {
        drop(scene.out(3).await);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
    scene.drain().await.assert_clean(3);
    // And for the one that asks about the others.
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_password_that_changes_is_followed() {
    let server = mysql().await;
    let current = Arc::new(Mutex::new(server.tenant.password.clone()));
    let given = Arc::clone(&current);
    // What the provider gives is what counts.
    let config = as_user(&server, Some(&server.tenant.name), Some("not it")).credentials(move || {
        let password = given.lock().unwrap().clone();
        async move { Ok(Credentials::password(password)) }
    });
    let scene = Scene::new(Mysql::new(config));
    let mut first = scene.get().await;
    server.execute(&format!("ALTER USER {}@'%' IDENTIFIED BY 'another'", server.tenant.name)).await.unwrap();
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(code(&error), Some(DENIED), "{error}");
    assert!(!error.is_retryable(), "{error}");
    "another".clone_into(&mut current.lock().unwrap());
    let mut second = scene.get().await;
    ping(&mut first).await;
    ping(&mut second).await;
    drop((first, second));
    scene.drain().await.assert_clean(2);
    server.end().await.unwrap();
}

/// Nobody else is shown them.
pub(crate) async fn sessions_of_each_user_are_asked_about_by_that_user() {
    let server = mysql().await;
    let Tenancy { tenant, .. } = &server;
    let other = format!("{}_too", tenant.name);
    server.execute(&format!("CREATE USER {other}@'%' IDENTIFIED BY 'its own'")).await.unwrap();
    server.execute(&format!("GRANT ALL ON {}.* TO {other}@'%'", tenant.name)).await.unwrap();
    let users = [(tenant.name.clone(), tenant.password.clone()), (other.clone(), "its own".to_owned())];
    let turn = AtomicUsize::new(0);
    let config = as_user(&server, None, None).credentials(move || {
        let (user, password) = &users[turn.fetch_add(1, Ordering::SeqCst) % users.len()];
        std::future::ready(Ok(Credentials::new(user, password)))
    });
    let scene = Scene::new(Mysql::new(config));
    drop(scene.out(4).await);
    assert_eq!(server.sessions().await.unwrap(), 2);
    scene.drain().await.assert_clean(4);
    assert_nothing_left(&server).await;
    server.execute(&format!("DROP USER {other}@'%'")).await.unwrap();
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
    let server = mysql().await;
    let given = Arc::new(Mutex::new(None));
    let gives = Arc::clone(&given);
    let config = config(&server).credentials(move || {
        let password: Option<String> = gives.lock().unwrap().clone();
        async move { Ok(Credentials::password(password.ok_or(Down)?)) }
    });
    let mut shown = vec![format!("{config:?}")];
    let scene = Scene::new(Mysql::new(config));

    // To the initialisation, then to a checkout.
    for kind in [ErrorKind::Init, ErrorKind::Checkout] {
        *given.lock().unwrap() = None;
        let held = match kind {
            ErrorKind::Init => None,
            _ => {
                *given.lock().unwrap() = Some(server.tenant.password.clone());
                let held = scene.get().await;
                shown.push(format!("{held:?} {:?}", *held));
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
        assert_eq!(code(&error), Some(DENIED), "{error}");
        shown.push(format!("{error:?} {}", in_full(&error)));
        drop(held);
    }
    shown.push(format!("{:?}", scene.db.resource()));
    for text in shown {
        assert!(!text.contains("s3cret"), "{text}");
    }
    // The provider gives a wrong password to the session that asks, too: what the last one was opened with is good.
    scene.drain().await.assert_clean(1);
    server.end().await.unwrap();
}

/// MySQL encrypts the password with a key that the server sends; MariaDB sends a proof of it. MySQL 9 has the second no
/// more.
pub(crate) async fn both_ways_to_log_in_with_a_password_work_without_encryption() {
    async fn plugin<V: Version>(server: &Tenancy<V>) -> String {
        let sql = format!("SELECT plugin FROM mysql.user WHERE user = '{}'", server.tenant.name);
        text(&mut server.server.superuser().await.unwrap(), &sql).await.unwrap()
    }
    let server = mysql().await;
    assert_eq!(plugin(&server).await, "caching_sha2_password");
    // Nobody has logged in since: the server has no digest of the password, and asks for all of it.
    server.execute("FLUSH PRIVILEGES").await.unwrap();
    let scene = Scene::new(Mysql::new(config(&server)));
    drop(scene.out(2).await);
    scene.drain().await.assert_clean(2);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();

    let server = mariadb().await;
    assert_eq!(plugin(&server).await, "mysql_native_password");
    let scene = Scene::new(Mysql::new(config(&server)));
    drop(scene.out(2).await);
    scene.drain().await.assert_clean(2);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
