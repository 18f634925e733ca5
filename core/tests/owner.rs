//! The lifecycle that receives the signals: one in a process. A binary of its own, since that is process-wide.

use winddown_core::{ErrorKind, Lifecycle, memory::Memory};

#[tokio::test]
async fn a_process_has_one_lifecycle_that_receives_signals_and_any_number_that_do_not() {
    let owner = Lifecycle::builder().report(None).build().unwrap();
    let refused = || {
        let error = Lifecycle::detect().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("signals(false)"), "{error}");
    };
    refused();
    let other = Lifecycle::builder().signals(false).build().unwrap();
    let db = other.guard(Memory::new("db"));
    drop(db.get().await.unwrap());
    assert!(other.drain().await.is_clean());
    // A drained one still ends the process when it is told to stop.
    owner.drain().await;
    refused();
}
