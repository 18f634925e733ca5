//! Threads that are there before they are needed: a drain may begin when the system gives no more threads or descriptors (L7).

use std::{
    io,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use tokio::runtime::{self, Handle, Runtime};

/// A thread that has what its job needs, and sleeps until it is given one, without a timer (C2). Dropped it ends.
#[derive(Debug)]
pub(crate) struct Standby<T = ()>(mpsc::Sender<Job<T>>);

type Job<T> = Box<dyn FnOnce(T) + Send>;

impl<T: Send + 'static> Standby<T> {
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn with(name: &str, has: T) -> io::Result<Self> {
        let (sender, job) = mpsc::channel::<Job<T>>();
        let work = move || {
            // Nobody gives one any more where the sender is gone.
            if let Ok(job) = job.recv() {
                job(has);
            }
        };
        thread::Builder::new().name(name.into()).spawn(work)?;
        Ok(Self(sender))
    }

    /// Has it do this, and end.
    pub(crate) fn run(self, job: impl FnOnce(T) + Send + 'static) {
        // It waits for this.
        let _ = self.0.send(Box::new(job));
    }
}

/// What a resource is drained on: a thread of its own, so that nothing it does holds up the others (L2), and a runtime there.
#[derive(Debug, Default)]
pub(crate) struct Drainer(Mutex<Option<Standby<Own>>>);

impl Drainer {
    /// Makes it, if it is not there.
    ///
    /// # Errors
    /// The system gives no thread, or no descriptor.
    pub(crate) fn prepare(&self, needs: Needs) -> io::Result<()> {
        let mut prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.is_none() {
            *prepared = Some(Self::make(needs)?);
        }
        Ok(())
    }

    /// The one that was prepared; else it is tried now.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub(crate) fn take(&self, needs: Needs) -> io::Result<Standby<Own>> {
        let prepared = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        prepared.map_or_else(|| Self::make(needs), Ok)
    }

    fn make(needs: Needs) -> io::Result<Standby<Own>> {
        let mut builder = runtime::Builder::new_current_thread();
        builder.enable_time();
        if needs == Needs::Descriptors {
            builder.enable_io();
        }
        Standby::with("winddown-drain", Own::new(&mut builder)?)
    }
}

/// What a drain may need besides a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// It waits, and nothing else.
    Nothing,
    /// A runtime for sockets.
    Descriptors,
}

/// A runtime that can be dropped anywhere: on a runtime too, where the thread for it was not to be had.
#[derive(Debug)]
pub(crate) struct Own(Option<Runtime>);

impl Own {
    pub(crate) fn new(builder: &mut runtime::Builder) -> io::Result<Self> {
        Ok(Self(Some(builder.build()?)))
    }

    fn get(&self) -> &Runtime {
        self.0.as_ref().expect("it is there until it is dropped")
    }

    pub(crate) fn handle(&self) -> Handle {
        self.get().handle().clone()
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.get().block_on(future)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
