//! What a replay does where nothing can be written: on a disk that refuses, whoever runs the tests.

use std::{
    ffi::OsStr,
    fs::{self, File},
    sync::Mutex,
};

use winddown_core::{Checkout, Lifecycle};

use super::*;
use crate::{
    Spill, WriteWith,
    spill::{Folder, Open},
};

struct ReadOnly;

impl Disk for ReadOnly {
    fn open(&self, folder: &Folder, name: &OsStr, how: Open) -> io::Result<File> {
        if how == Open::Read { folder.open_file(name, how) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }

    fn remove(&self, _: &Folder, _: &OsStr) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// Replays a directory with ten records that cannot be written to, and says what the target got.
async fn replayed(delivery: Delivery) -> (Result<Replayed, Error>, Vec<u64>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let spill = Spill::directory(directory.path());
    let batch = Batch::from((0..10).collect::<Vec<u64>>());
    spill.write("audit", &[batch], &Error::new(ErrorKind::Timeout, "time is up")).unwrap();
    let lifecycle = Lifecycle::builder().signals(false).build().unwrap();
    type Rows = Arc<Mutex<Vec<u64>>>;
    let rows = Rows::default();
    let db = lifecycle.guard(winddown_core::Client::opened("db", Arc::clone(&rows)));
    let sink = WriteWith::new(delivery, |rows: &mut Checkout<winddown_core::Client<Rows>>, batch: &Batch<u64>| {
        rows.lock().unwrap().extend(batch.iter().copied());
        Box::pin(async { Ok(()) })
    });
    let replay = Replay::new(&db, sink, "audit").on_disk(Arc::new(ReadOnly));
    let replayed = replay.run(directory.path()).await;
    let rows = rows.lock().unwrap().clone();
    (replayed, rows, directory)
}

#[tokio::test]
async fn from_a_directory_that_cannot_be_written_to_a_sink_that_remembers_gets_all_and_the_file_stays() {
    let (replayed, rows, directory) = replayed(Delivery::ExactlyOnce).await;
    let replayed = replayed.unwrap();
    assert_eq!((replayed.written, replayed.files), (10, 0), "{replayed}");
    assert_eq!(rows, (0..10).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn from_a_directory_that_cannot_be_written_to_a_sink_that_forgets_gets_nothing() {
    for delivery in [Delivery::AtLeastOnce, Delivery::AtMostOnce] {
        let (replayed, rows, _directory) = replayed(delivery).await;
        let error = replayed.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("copy the files to a directory that can be written to"), "{error}");
        assert!(rows.is_empty());
    }
}
