//! The environments behind the front door: started when they are needed, frozen when they are not, replaced when their program is.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use winddown_sim::{Config, Error, Invocation, Part, Reason, Sim};

use crate::cli::Serve;
use crate::progress;

/// How environments have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ended {
    pub(crate) all: usize,
    /// Those that did so by themselves, inside the budget.
    pub(crate) well: usize,
}

pub(crate) struct Fleet {
    config: Config,
    /// How many environments there can be, and how many invocations one can have.
    most: usize,
    at_once: usize,
    idle: Duration,
    /// Only Managed Instances are never frozen.
    freezes: bool,
    /// The program's file, if it is one that can be looked at.
    program: PathBuf,
    state: Mutex<Fleeting>,
    /// An environment may have become free.
    freed: Notify,
    closing: watch::Sender<bool>,
    /// How many are there, or are being started or ended.
    alive: watch::Sender<usize>,
}

#[derive(Default)]
struct Fleeting {
    members: Vec<Member>,
    /// Being started.
    starting: usize,
    /// Counts up when every environment is to be replaced.
    generation: u64,
    /// When the program's file was changed, as far as was seen.
    program_changed: Option<SystemTime>,
    started: usize,
    ended: Ended,
    closed: bool,
}

struct Member {
    number: usize,
    sim: Arc<Sim>,
    generation: u64,
    /// Invocations that it has now.
    busy: usize,
    /// When the last one was over.
    used: Instant,
}

impl Fleet {
    pub(crate) fn new(config: Config, options: &Serve) -> Self {
        let fleet = Self {
            config,
            most: options.max_environments,
            at_once: options.max_concurrency.unwrap_or(1),
            idle: options.idle,
            freezes: options.max_concurrency.is_none(),
            program: options.program(),
            state: Mutex::default(),
            freed: Notify::new(),
            closing: watch::Sender::new(false),
            alive: watch::Sender::new(0),
        };
        fleet.state().program_changed = fleet.program_changed();
        fleet
    }

    /// Starts the first environment.
    pub(crate) async fn warm_up(self: &Arc<Self>) -> Result<(), Refused> {
        let (number, sim) = self.acquire().await?;
        self.release(number, &sim).await;
        Ok(())
    }

    /// Invokes the function in an environment that is free, or in a new one; waits for one where there can be no more.
    pub(crate) async fn invoke(
        self: &Arc<Self>,
        event: Vec<u8>,
        on_part: impl Fn(Part<'_>) + Send + Sync + 'static,
    ) -> Result<Invocation, Refused> {
        let (number, sim) = self.acquire().await?;
        let outcome = sim.invoke_streamed(event, on_part).await;
        // what follows is of no interest to the caller
        let fleet = Arc::clone(self);
        tokio::spawn(async move { fleet.release(number, &sim).await });
        Ok(outcome?)
    }

    /// Replaces every environment: the idle ones now, and the others when what they do is over.
    pub(crate) fn recycle(self: &Arc<Self>) {
        let idle = {
            let mut state = self.state();
            state.generation += 1;
            state.take(|member| member.busy == 0)
        };
        self.end_all(idle);
    }

    /// Ends every environment, and returns how all that there ever were have ended.
    pub(crate) async fn shut_down(self: &Arc<Self>) -> Ended {
        let members = {
            let mut state = self.state();
            state.closed = true;
            state.take(|_| true)
        };
        self.closing.send_replace(true);
        self.freed.notify_waiters();
        self.end_all(members);
        // the sender is in `self`, so it cannot be closed
        let _ = self.alive.subscribe().wait_for(|alive| *alive == 0).await;
        self.state().ended
    }

    /// Ready when it has begun to shut down.
    pub(crate) async fn closed(&self) {
        // the sender is in `self`, so it cannot be closed
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    async fn acquire(self: &Arc<Self>) -> Result<(usize, Arc<Sim>), Refused> {
        self.look_at_program();
        loop {
            // before looking, so that nothing is missed
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            match self.place()? {
                Place::There(number, sim) => return Ok((number, sim)),
                Place::New(number, generation) => return self.start(number, generation).await,
                Place::None => freed.await,
            }
        }
    }

    fn place(&self) -> Result<Place, Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closing);
        }
        let generation = state.generation;
        let free = |member: &&mut Member| member.busy < self.at_once && member.generation == generation;
        if let Some(member) = state.members.iter_mut().find(free) {
            member.busy += 1;
            return Ok(Place::There(member.number, Arc::clone(&member.sim)));
        }
        if state.members.len() + state.starting >= self.most {
            return Ok(Place::None);
        }
        state.starting += 1;
        state.started += 1;
        self.alive.send_modify(|alive| *alive += 1);
        Ok(Place::New(state.started, generation))
    }

    /// A cold start.
    async fn start(self: &Arc<Self>, number: usize, generation: u64) -> Result<(usize, Arc<Sim>), Refused> {
        let started = Sim::start(self.config.clone()).await.map(Arc::new);
        let mut state = self.state();
        state.starting -= 1;
        match started {
            Ok(sim) if state.closed => {
                drop(state);
                self.end(number, sim);
                Err(Refused::Closing)
            }
            Ok(sim) => {
                progress(&format!("environment {number} started"));
                state.members.push(Member { number, sim: Arc::clone(&sim), generation, busy: 1, used: Instant::now() });
                drop(state);
                tokio::spawn(Arc::clone(self).until_idle(number));
                Ok((number, sim))
            }
            Err(error) => {
                drop(state);
                self.alive.send_modify(|alive| *alive -= 1);
                self.freed.notify_waiters();
                Err(error.into())
            }
        }
    }

    /// An invocation is over: the environment is frozen, and free for the next one, or ended where it is not to have any.
    async fn release(self: &Arc<Self>, number: usize, sim: &Arc<Sim>) {
        if self.freezes {
            // an error is that it has ended, which the next invocation starts again
            let _ = sim.freeze().await;
        }
        let ended = {
            let mut state = self.state();
            let generation = state.generation;
            let Some(member) = state.members.iter_mut().find(|member| member.number == number) else { return };
            member.busy -= 1;
            member.used = Instant::now();
            // Managed Instances are not started again
            let is_over = |it: &Member| it.generation != generation || (!self.freezes && it.sim.has_ended());
            state.take(|member| member.number == number && member.busy == 0 && is_over(member))
        };
        self.end_all(ended);
        self.freed.notify_waiters();
    }

    /// Ends an environment that nobody has needed for a while.
    async fn until_idle(self: Arc<Self>, number: usize) {
        let mut look_at = Instant::now() + self.idle;
        loop {
            tokio::select! {
                () = sleep_until(look_at) => {}
                () = self.closed() => return,
            }
            let idle = {
                let mut state = self.state();
                let Some(member) = state.members.iter().find(|member| member.number == number) else { return };
                look_at = if member.busy == 0 { member.used } else { Instant::now() } + self.idle;
                let is_idle = member.busy == 0 && look_at <= Instant::now();
                if is_idle { state.take(|member| member.number == number) } else { Vec::new() }
            };
            self.end_all(idle);
        }
    }

    fn end_all(self: &Arc<Self>, members: Vec<Member>) {
        for member in members {
            self.end(member.number, member.sim);
        }
    }

    /// Takes an environment through shutdown, beside everything else.
    fn end(self: &Arc<Self>, number: usize, sim: Arc<Sim>) {
        let fleet = Arc::clone(self);
        tokio::spawn(async move {
            let record = sim.shutdown(Reason::Spindown).await;
            let text = record.to_string();
            // the last line is how the function ended
            progress(&format!("environment {number}, {}", text.lines().next_back().unwrap_or_default()));
            {
                let mut state = fleet.state();
                state.ended.all += 1;
                state.ended.well += usize::from(record.ended_by_itself());
            }
            fleet.alive.send_modify(|alive| *alive -= 1);
            fleet.freed.notify_waiters();
        });
    }

    /// A program that has changed is what runs from the next invocation on.
    fn look_at_program(self: &Arc<Self>) {
        let changed = self.program_changed();
        let is_new = {
            let mut state = self.state();
            let is_new = changed.is_some() && state.program_changed != changed;
            if is_new {
                state.program_changed = changed;
            }
            is_new
        };
        if is_new {
            progress("the program has changed: every environment is replaced");
            self.recycle();
        }
    }

    fn program_changed(&self) -> Option<SystemTime> {
        std::fs::metadata(&self.program).and_then(|file| file.modified()).ok()
    }

    fn state(&self) -> MutexGuard<'_, Fleeting> {
        // a panic elsewhere must not keep the environments from being ended
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleeting {
    /// Takes these out: they have no further invocation.
    fn take(&mut self, which: impl Fn(&Member) -> bool) -> Vec<Member> {
        self.members.extract_if(.., |member| which(member)).collect()
    }
}

enum Place {
    There(usize, Arc<Sim>),
    New(usize, u64),
    None,
}

/// Why there is no invocation.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The command is about to end.
    Closing,
    /// The environment could not be started, or did not take the event.
    Sim(Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closing => f.write_str("winddown-sim is shutting down: start it again"),
            Self::Sim(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Sim(error)
    }
}
