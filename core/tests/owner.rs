//! The lifecycle that receives the signals: one at a time in a process. A binary of its own, since that is process-wide.

use winddown_core::{ErrorKind, Lifecycle, State, memory::Memory};

#[tokio::test]
async fn a_process_has_one_owner_at_a_time_and_a_drained_one_makes_way() {
    let first = Lifecycle::builder().report(None).build().unwrap();
    let error = Lifecycle::detect().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("signals(false)"), "{error}");
    Lifecycle::builder().signals(false).build().unwrap();

    first.drain().await;
    let second = Lifecycle::builder().report(None).build().unwrap();
    let db = second.guard(Memory::new("db"));
    second.init().await.unwrap();
    assert_eq!((first.state(), second.state()), (State::Drained, State::Running));
    drop(db.get().await.unwrap());
    assert!(second.drain().await.is_clean());
}
