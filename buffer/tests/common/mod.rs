//! A target in memory that can do all that a server and a network can: hang, answer late, lose an answer, refuse.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use winddown_buffer::{Batch, BatchKey, Delivery, Sink, WriteError};
use winddown_core::{Checkout, Checkouts, Error, ErrorKind, Resource, adapter::Drain};

/// How one write goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Answer {
    #[default]
    Store,
    StoreAfter(Duration),
    /// The connection broke, before or behind the commit.
    Unknown {
        stored: bool,
    },
    Retry,
    Fail,
    TooLarge,
    Rejected,
    /// The network is gone without a word, before or behind the commit.
    Hang {
        stored: bool,
    },
    Panic {
        stored: bool,
    },
    /// The network is gone without a word, and the server commits after this time, whatever the client does meanwhile.
    CommitsLater(Duration),
}

/// A clone is the same target.
#[derive(Clone, Default)]
pub(crate) struct Target(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<Rows>,
    script: Mutex<VecDeque<Answer>>,
    then: Mutex<Answer>,
    /// So many checkouts hang.
    hanging_checkouts: AtomicUsize,
    abandoned: AtomicUsize,
    /// What `check` says.
    check: Mutex<Option<Error>>,
}

#[derive(Default)]
struct Rows {
    /// How often each record is there.
    records: BTreeMap<u64, usize>,
    keys: HashSet<BatchKey>,
    /// The size of each batch that was tried.
    tried: Vec<usize>,
}

/// Records from this on are rejected.
pub(crate) const POISON: u64 = 1 << 32;

pub(crate) fn error(text: &'static str) -> Error {
    Error::new(ErrorKind::Write, text)
}

impl Target {
    pub(crate) fn answers(&self, script: impl IntoIterator<Item = Answer>) {
        self.0.script.lock().unwrap().extend(script);
    }

    pub(crate) fn then(&self, answer: Answer) {
        *self.0.then.lock().unwrap() = answer;
    }

    pub(crate) fn checkouts_hang(&self, how_many: usize) {
        self.0.hanging_checkouts.store(how_many, Ordering::SeqCst);
    }

    pub(crate) fn check_says(&self, error: Error) {
        *self.0.check.lock().unwrap() = Some(error);
    }

    /// The records that are there, with how often.
    pub(crate) fn rows(&self) -> BTreeMap<u64, usize> {
        self.0.rows.lock().unwrap().records.clone()
    }

    pub(crate) fn has_once(&self, records: impl IntoIterator<Item = u64>) {
        assert_eq!(self.rows(), records.into_iter().map(|record| (record, 1)).collect());
    }

    /// The size of each batch that was tried.
    pub(crate) fn tried(&self) -> Vec<usize> {
        self.0.rows.lock().unwrap().tried.clone()
    }

    /// How many checkouts were given up because their write hung.
    pub(crate) fn abandoned(&self) -> usize {
        self.0.abandoned.load(Ordering::SeqCst)
    }

    fn store(&self, delivery: Delivery, batch: &Batch<u64>) {
        if batch.iter().any(|record| *record >= POISON) {
            // It cannot be there, so nothing of the batch is.
            return;
        }
        let mut rows = self.0.rows.lock().unwrap();
        if rows.keys.insert(batch.key()) || delivery != Delivery::ExactlyOnce {
            for record in batch {
                *rows.records.entry(*record).or_default() += 1;
            }
        }
    }

    fn knows(&self, delivery: Delivery, key: BatchKey) -> bool {
        delivery == Delivery::ExactlyOnce && self.0.rows.lock().unwrap().keys.contains(&key)
    }

    async fn write(&self, delivery: Delivery, largest: usize, batch: &Batch<u64>) -> Result<(), WriteError> {
        self.0.rows.lock().unwrap().tried.push(batch.len());
        let scripted = self.0.script.lock().unwrap().pop_front();
        let answer = scripted.unwrap_or_else(|| *self.0.then.lock().unwrap());
        match answer {
            Answer::Store => {}
            Answer::StoreAfter(time) => sleep(time).await,
            Answer::Retry => return Err(WriteError::Retry(error("the server is away"))),
            Answer::Fail => return Err(WriteError::Failed(error("no such table"))),
            Answer::TooLarge => {
                return Err(WriteError::TooLarge(error("canceling statement due to statement timeout")));
            }
            Answer::Rejected if !self.knows(delivery, batch.key()) => {
                return Err(WriteError::Rejected(error("duplicate key")));
            }
            Answer::Rejected => {}
            Answer::Unknown { stored } | Answer::Hang { stored } | Answer::Panic { stored } => {
                if stored {
                    self.store(delivery, batch);
                }
                match answer {
                    Answer::Hang { .. } => pending::<()>().await,
                    Answer::Panic { .. } => panic!("sink"),
                    _ => {}
                }
                return Err(WriteError::Unknown(error("the connection broke")));
            }
            Answer::CommitsLater(time) => {
                let (target, batch) = (self.clone(), batch.clone());
                tokio::spawn(async move {
                    sleep(time).await;
                    target.store(delivery, &batch);
                });
                pending::<()>().await;
            }
        }
        if !self.knows(delivery, batch.key()) && batch.iter().any(|record| *record >= POISON) {
            return Err(WriteError::Rejected(error("value out of range")));
        }
        if batch.len() > largest {
            sleep(Duration::from_millis(500)).await;
            return Err(WriteError::TooLarge(error("canceling statement due to statement timeout")));
        }
        self.store(delivery, batch);
        Ok(())
    }
}

impl Resource for Target {
    type Pool = ();

    fn name(&self) -> &str {
        "db"
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        drain.until_returned().await;
        Ok(())
    }
}

impl Checkouts for Target {
    type Checkout = ();

    async fn checkout(&self, (): &()) -> Result<(), Error> {
        let hangs = |left: usize| left.checked_sub(1);
        if self.0.hanging_checkouts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, hangs).is_ok() {
            pending::<()>().await;
        }
        Ok(())
    }
}

/// Writes to it.
pub(crate) struct Writes {
    pub(crate) target: Target,
    pub(crate) delivery: Delivery,
    /// In records; a larger batch is too large, which is seen after half a second.
    pub(crate) largest: usize,
}

impl Sink<u64> for Writes {
    type Target = Target;

    fn delivery(&self) -> Delivery {
        self.delivery
    }

    async fn write(&self, _: &mut Checkout<Target>, batch: &Batch<u64>) -> Result<(), WriteError> {
        self.target.write(self.delivery, self.largest, batch).await
    }

    async fn check(&self, _: &mut Checkout<Target>) -> Result<(), Error> {
        let says = self.target.0.check.lock().unwrap().clone();
        says.map_or(Ok(()), Err)
    }

    async fn abandon(&self, checkout: Checkout<Target>) {
        self.target.0.abandoned.fetch_add(1, Ordering::SeqCst);
        drop(checkout);
    }
}
