//! Writing: which batches are tried when, and what comes of each try.

use std::{
    any::Any,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    task::yield_now,
    time::{Instant, sleep, sleep_until, timeout},
};
use winddown_core::{Checkout, Error, ErrorKind, ShutdownGuard, adapter::panic_message};

use crate::{
    Delivery, Sink, Spill, WriteError,
    pace::Pace,
    queue::{Next, Queue, Smaller, Started, Taken, Writer},
    spilling::put_elsewhere,
};

/// While running, a target that is away is asked again after pauses from the first to the second, doubling, each with
/// random jitter up to its own length. Up to a few seconds: a restart of a server takes that long, and memory is bounded.
const PAUSES_RUNNING: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The same while draining, where some hundred milliseconds are all there is.
const PAUSES_DRAINING: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// What both writers need.
pub(crate) struct Writing<T: Send + Sync + 'static, S: Sink<T>> {
    pub(crate) queue: Arc<Queue<T>>,
    pub(crate) sink: Arc<S>,
    pub(crate) target: ShutdownGuard<S::Target>,
    pub(crate) spill: Option<Spill<T>>,
    pub(crate) pace: Mutex<Pace>,
}

/// Who writes, and until when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// The flusher: until it is stopped.
    Stopped,
    /// The goodbye: until this moment.
    At(Instant),
}

impl Until {
    fn writer(self) -> Writer {
        match self {
            Self::Stopped => Writer::Flusher,
            Self::At(_) => Writer::Goodbye,
        }
    }
}

/// What came of one try.
enum Attempt {
    /// There was nothing to write any more.
    Nothing,
    /// The batch has left, one way or another, or comes again in halves.
    Over,
    /// It is to be tried again.
    Again(Error),
    /// The target is drained for good: it belongs to another lifecycle, or did not wait for us.
    Gone(Error),
}

impl<T: Send + Sync + 'static, S: Sink<T>> Writing<T, S> {
    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flusher. Waits on events only; holds no records while it waits for a checkout, so that a goodbye can have
    /// them all when the application's runtime is starved.
    pub(crate) async fn run(self: Arc<Self>) {
        struct Ends<'a, T>(&'a Queue<T>);
        impl<T> Drop for Ends<'_, T> {
            fn drop(&mut self) {
                self.0.abandoned();
            }
        }
        let _ends = Ends(&self.queue);
        let stopped = async {
            self.queue.stopped().await;
        };
        // An error says that the target is gone, and then the goodbye will find the same.
        let _ = self.drive(Until::Stopped, stopped, &mut None).await;
    }

    /// Writes, so many batches at once as may be. The flusher writes what is due, and ends when it is stopped, after what it
    /// has begun; the goodbye writes everything, and ends when `over` is ready and nothing is left. `obstacle` is what keeps
    /// it from writing just now.
    pub(crate) async fn drive(
        &self,
        until: Until,
        over: impl Future<Output = ()>,
        obstacle: &mut Option<Error>,
    ) -> Result<(), Error> {
        let (queue, writer) = (&self.queue, until.writer());
        let mut over = pin!(over);
        let mut is_over = false;
        let mut writes = FuturesUnordered::new();
        let mut pauses = pauses(writer);
        let mut paused_until: Option<Instant> = None;
        loop {
            if is_over && writer == Writer::Flusher && writes.is_empty() {
                return Ok(());
            }
            let may_start = paused_until.is_none() && (writer == Writer::Goodbye || !is_over);
            tokio::select! {
                biased;
                () = &mut over, if !is_over => is_over = true,
                Some(attempt) = writes.next() => match attempt {
                    Attempt::Nothing => {}
                    Attempt::Over => {
                        *obstacle = None;
                        pauses = self::pauses(writer);
                        // A sink that never waits would otherwise hide all else.
                        yield_now().await;
                    }
                    Attempt::Again(error) => {
                        if paused_until.is_none() {
                            let pause = pauses.next().unwrap_or_else(|| longest_pause(writer));
                            if writer == Writer::Flusher {
                                tracing::warn!(buffer = queue.name(), %error, ?pause, "cannot write, trying again");
                            }
                            paused_until = Instant::now().checked_add(pause);
                        }
                        *obstacle = Some(error);
                    }
                    Attempt::Gone(error) => return Err(error),
                },
                () = sleep_until(paused_until.unwrap_or_else(Instant::now)), if paused_until.is_some() => {
                    paused_until = None;
                }
                next = queue.next(writer), if may_start => match next {
                    Next::Write(started) => writes.push(self.attempt(until, started)),
                    Next::Nothing if is_over => return Ok(()),
                    // A room that was checked out before may still be filled.
                    Next::Nothing => tokio::select! {
                        () = queue.changed() => {}
                        () = &mut over => is_over = true,
                    },
                },
            }
        }
    }

    /// Writes one batch, if there is one.
    async fn attempt(&self, until: Until, started: Started<'_, T>) -> Attempt {
        let mut checkout = match self.checkout(until).await {
            Ok(Some(checkout)) => checkout,
            Ok(None) => return Attempt::Nothing,
            Err(error) if error.is_shutting_down() => return Attempt::Gone(error),
            // Nothing is wrong with the records, so whatever the error, they wait.
            Err(error) => return Attempt::Again(error),
        };
        let Some(taken) = started.take() else { return Attempt::Nothing };
        let began = Instant::now();
        let result = {
            // Not to be cancelled but for a hung one: nobody would hear of the outcome.
            let mut write = pin!(catch(async { self.sink.write(&mut checkout, taken.batch()).await }));
            tokio::select! {
                biased;
                result = &mut write => Some(result),
                () = self.is_hung(until, &taken) => None,
            }
        };
        let Some(result) = result else { return self.give_up(until, checkout, taken, began).await };
        drop(checkout);
        // What was refused, or never got there, says nothing about how long a write takes.
        if let Ok(Ok(()) | Err(WriteError::TooLarge(_))) = &result {
            self.pace().took(began.elapsed());
        }
        match result {
            Ok(Ok(())) => taken.written(),
            Ok(Err(WriteError::Retry(error))) => {
                taken.returned(error.clone());
                return Attempt::Again(error);
            }
            Ok(Err(WriteError::Unknown(error))) => {
                taken.unknown(error.clone());
                if self.queue.delivery() != Delivery::AtMostOnce {
                    return Attempt::Again(error);
                }
            }
            Ok(Err(WriteError::TooLarge(error))) => match taken.smaller() {
                Smaller::Divide => taken.rejected(error),
                Smaller::AsItIs => {
                    taken.returned(error.clone());
                    return Attempt::Again(error);
                }
                Smaller::GiveUp => self.put_elsewhere(taken, error).await,
            },
            Ok(Err(WriteError::Rejected(error))) => taken.rejected(error),
            Ok(Err(WriteError::Failed(error))) => self.put_elsewhere(taken, error).await,
            // It would panic again; and it may have been written before.
            Err(panic) if self.queue.delivery() == Delivery::AtMostOnce => taken.in_doubt(panic),
            Err(panic) => {
                taken.may_be_there();
                self.put_elsewhere(taken, panic).await;
            }
        }
        Attempt::Over
    }

    /// A checkout of the target; none when the flusher is stopped before there is one.
    async fn checkout(&self, until: Until) -> Result<Option<Checkout<S::Target>>, Error> {
        let within = self.bound(until);
        let stopped = async {
            match until {
                Until::Stopped => _ = self.queue.stopped().await,
                Until::At(_) => pending().await,
            }
        };
        tokio::select! {
            biased;
            checkout = timeout(within, self.target.get()) => match checkout {
                Ok(checkout) => checkout.map(Some),
                Err(_) => {
                    let text = format!("no checkout came within {within:?}");
                    Err(Error::new(ErrorKind::Checkout, text).of(self.target.name()).retryable())
                }
            },
            () = stopped => Ok(None),
        }
    }

    fn bound(&self, until: Until) -> Duration {
        match until {
            Until::Stopped => self.pace().bound(),
            Until::At(end) => self.pace().bound_within(end.saturating_duration_since(Instant::now())),
        }
    }

    /// Ready when a write that begins now has hung. In a drain one that may not be repeated goes on as long as there is
    /// time, and the others no longer wait for it.
    async fn is_hung(&self, until: Until, taken: &Taken<'_, T>) {
        let at_most_once = self.queue.delivery() == Delivery::AtMostOnce;
        match until {
            Until::Stopped => {
                let drained = async {
                    sleep_until(self.queue.stopped().await).await;
                    if at_most_once {
                        // The goodbye goes on by itself, and ends this when its time is up.
                        pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = sleep(self.bound(until)) => {}
                    () = drained => {}
                }
            }
            Until::At(_) => {
                sleep(self.bound(until)).await;
                if at_most_once {
                    taken.overdue();
                    pending::<()>().await;
                }
            }
        }
    }

    /// A write hung: its connection is given up, and then the batch comes again, over another one.
    async fn give_up(
        &self,
        until: Until,
        checkout: Checkout<S::Target>,
        taken: Taken<'_, T>,
        began: Instant,
    ) -> Attempt {
        let took = began.elapsed();
        if matches!(until, Until::Stopped) {
            self.pace().hung();
        }
        let error = Error::new(ErrorKind::Timeout, format!("a write had no answer within {took:?}, and was given up"));
        let error = error.of(self.target.name()).retryable();
        let within = match until {
            Until::Stopped => TO_ABANDON,
            Until::At(end) => TO_ABANDON.min(end.saturating_duration_since(Instant::now()) / 4),
        };
        // What it does beyond its time, or where it panics, is the pool's to see to.
        let _ = timeout(within, catch(self.sink.abandon(checkout))).await;
        taken.hung(error.clone());
        if self.queue.delivery() == Delivery::AtMostOnce { Attempt::Over } else { Attempt::Again(error) }
    }

    /// Spills one batch, for this reason; what cannot be had elsewhere is lost, or in doubt where the target may have it.
    async fn put_elsewhere(&self, taken: Taken<'_, T>, reason: Error) {
        let Some(spill) = &self.spill else { return taken.lost(reason) };
        let spilled = put_elsewhere(spill, self.queue.name(), vec![taken.batch().clone()], &reason).await;
        match spilled {
            Ok(refused) => taken.spilled(refused.into_iter().flatten().collect()),
            Err(error) => taken.lost(error),
        }
    }
}

/// What giving up one connection may take.
const TO_ABANDON: Duration = Duration::from_secs(2);

fn pauses(writer: Writer) -> impl Iterator<Item = Duration> + Send + use<> {
    let (first, longest) = if writer == Writer::Goodbye { PAUSES_DRAINING } else { PAUSES_RUNNING };
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

fn longest_pause(writer: Writer) -> Duration {
    if writer == Writer::Goodbye { PAUSES_DRAINING.1 } else { PAUSES_RUNNING.1 }
}

/// The future's output, or the error for its panic. It is dropped, not polled again, after it has panicked.
async fn catch<O>(future: impl Future<Output = O>) -> Result<O, Error> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panicked(&*panic))),
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Panicked, format!("the sink panicked: {}", panic_message(panic)))
}
