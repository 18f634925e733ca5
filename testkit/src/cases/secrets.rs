//! What must be nowhere.

use super::scene::{BUDGET, ENDLESS, Scene, while_running};
use crate::{Harness, LogSearch, Setup};

/// The password is in no Debug, no error, no report and no line of any log, at any level, on the good way and on the bad
/// ones.
pub async fn no_password_in_debug_report_error_or_log<H: Harness>(harness: &H) {
    let secret = harness.secret().expect("a harness that has passwords has a secret");
    let search = LogSearch::begin(secret);
    let mut shown =
        vec![format!("{:?} {:#?}", harness.resource(&Setup::default()), harness.resource(&Setup::default()))];

    let scene = Scene::patient(harness);
    let held = scene.out(harness, 2).await.remove(0);
    shown.push(format!("{:?} {held:?} {:?}", scene.db, scene.lifecycle));
    let (result, drained) = while_running(harness, held, ENDLESS, scene.drain(harness)).await;
    shown.push(format!("{result:?} {} {:?} {}", drained.report, drained.report, drained.report.to_json_line()));

    let refused = Scene::with(harness, BUDGET, &Setup { wrong_password: true, ..Setup::default() });
    let error = refused.db.get().await.expect_err("the password is wrong");
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        shown.push(format!("{error} {error:?} {error:#?}"));
        next = error.source();
    }
    let drained = refused.drain(harness).await;
    shown.push(format!("{} {:?}", drained.report, drained.report));

    for text in &shown {
        assert!(!text.contains(secret), "the password is in: {text}");
    }
    let found = search.found();
    assert!(found.is_empty(), "the password is in the log: {found:#?}");
}
