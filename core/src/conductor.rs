//! The thread that owns the deadline: it receives the signals, drains the resources in order, writes the report, and
//! ends the process if nobody else does.
//!
//! It is an OS thread with a runtime of its own, so that an application that starves its runtime neither hides a signal
//! nor stops the clock. Foreign code runs beside it: each resource is drained on a thread of its own, the report is
//! written on another, and wakers are called on a third, so nothing that hangs can hold it up. These threads are there
//! before they are needed (L7); only where the system did not give them are wakers called here. While nothing happens it sleeps in one system call, without a timer
//! (C2).

#[cfg(all(test, not(winddown_loom)))]
mod tests;

use std::{
    borrow::Cow,
    future::{Future, pending},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    Budget, Drain, Error, ErrorKind, Outcome, Reason, Report, ResourceReport,
    gate::Admits,
    guard::with_dependent_access,
    lifecycle::{Begun, Life, LifecycleState},
    log_line::{self, Metrics},
    node::{Ended, Node, Order},
    notify, panics,
    plan::{ANSWER_SHARE, Plan},
    report::{AtCut, Known, Tally, in_words},
    signals,
    standard_error::Lines,
    standby::{Needs, Own, Standby},
};

/// The exit status of a process that had to be ended at its deadline: what `timeout(1)` uses.
pub const EXIT_AT_DEADLINE: i32 = 124;

/// Starts the thread of a lifecycle that owns the process. Signals are received from the moment this returns.
///
/// # Errors
/// [`ErrorKind::Config`] when the system refuses the signal handler, the thread or its event queue.
pub(crate) fn start(shared: &Arc<LifecycleState>, life: &Arc<Life>) -> Result<(), Error> {
    panics::tell_what_an_abort_loses();
    let runtime = Own::new(runtime::Builder::new_current_thread().enable_all()).map_err(refused)?;
    let handle = runtime.handle();
    let thread = Standby::with("winddown", runtime).map_err(refused)?;
    // Last: a signal that is received and heard by nobody would be lost.
    let signals = {
        let _inside = handle.enter();
        Signals::listen(&shared.signals).map_err(refused)?
    };
    conduct_on(thread, shared, life, signals);
    Ok(())
}

/// Drains one that does not own it, once, on what its life has kept for that.
///
/// # Errors
/// [`ErrorKind::Config`] when the system gives no thread for it, now or before.
pub(crate) fn start_drain(shared: &Arc<LifecycleState>, life: &Arc<Life>) -> Result<(), Error> {
    let thread = life.conductor.take(Needs::Nothing).map_err(refused)?;
    conduct_on(thread, shared, life, Signals::none());
    Ok(())
}

fn refused(error: io::Error) -> Error {
    let text = "cannot start the thread that drains: raise the limits of the process";
    Error::new(ErrorKind::Config, text).with_source(error)
}

fn conduct_on(thread: Standby<Own>, shared: &Arc<LifecycleState>, life: &Arc<Life>, signals: Signals) {
    let (shared, life) = (Arc::clone(shared), Arc::clone(life));
    thread.run(move |runtime| {
        let conducted = catch_unwind(AssertUnwindSafe(|| runtime.block_on(main(&shared, life, signals))));
        if let Err(panic) = conducted {
            // A bug of this crate; its message has been printed. Nobody may wait for this thread any more.
            if shared.owns_process {
                signal_hook::low_level::exit(EXIT_AT_DEADLINE);
            }
            shared.life().publish_failure(&shared, &panics::error(&*panic));
        }
    });
}

/// Runs code that wakes the application's tasks, and may therefore block or panic, beside this thread: on the one that waits
/// for it, or on a new one.
fn aside(spare: Option<Standby>, life: &Arc<Life>, work: impl FnOnce(&Life) + Send + 'static) {
    match spare.map_or_else(waker, Ok) {
        Ok(there) => {
            let life = Arc::clone(life);
            there.run(move |()| work(&life));
        }
        // No more threads: better here than not at all.
        Err(_) => work(life),
    }
}

fn waker() -> io::Result<Standby> {
    Standby::with("winddown-wake", ())
}

async fn main(shared: &Arc<LifecycleState>, mut life: Arc<Life>, mut signals: Signals) {
    while let Some(next) = conduct_life(shared, &life, &mut signals).await {
        life = next;
    }
}

/// One life, from its start to the end of its drain and what comes then: the end of the process, or another life. None
/// where the process is not this thread's business.
async fn conduct_life(shared: &Arc<LifecycleState>, life: &Arc<Life>, signals: &mut Signals) -> Option<Arc<Life>> {
    // What is needed then and had now (L7). Without signals the drain has begun.
    let spare = || if shared.owns_process { waker().ok() } else { None };
    let (at_begin, at_end) = (spare(), spare());
    let stopping = shared.owns_process.then(notify::Stopping::prepare);
    let mut lines = shared.report_format.map(|_| Lines::start());
    // When the platform said stop; a drain may also be asked for.
    let mut stop = None;
    let mut begun = tokio::select! {
        biased;
        begun = life.begun() => begun,
        signal = signals.next() => {
            stop = Some(signal.at);
            aside(at_begin, life, move |life| {
                life.refuse(Reason::Signal(signal.name.clone()), signal.at);
            });
            life.begun().await
        }
    };
    if let Some(stop) = stop {
        // The application may have begun it between the signal and our own beginning; the platform counts from the signal.
        begun.at = begun.at.min(stop);
    }
    if let (Some(format), Some(lines)) = (shared.report_format, &lines) {
        lines.say(log_line::begin_line(format, &begun, begun.budget(shared)));
    }
    if let Some(stopping) = stopping {
        stopping.say(shared.budget.total());
    }

    // L5: the signal after the one that said stop.
    let mut second = None;
    let forced = async { second = Some(signals.second(&mut stop).await) };
    let report = Arc::new(conduct(shared, &begun, Place::Thread, forced).await);
    let clean = report.is_clean();
    if let (Some(format), Some(lines)) = (shared.report_format, &mut lines) {
        let at_most = time_to_write(begun.budget(shared), begun.at);
        lines.said(report_text(&report, format), at_most).await;
    }
    drop(lines);
    if let Some(signal) = second {
        // Before anybody is told that the drain is over: nothing comes before this end.
        signal_hook::low_level::exit(signal.exit_status());
    }
    if !shared.owns_process {
        // Nobody's time is kept any more. A further life has a thread of its own for its drain.
        life.publish(report);
        return None;
    }
    if stop.is_some() {
        // Before anybody is told that the drain is over, and may begin another life.
        shared.is_the_last(life);
    }
    aside(at_end, life, move |life| life.publish(Arc::clone(&report)));

    let stop_at = match stop {
        Some(at) => at,
        // The application asked for the drain and goes on as it likes, until it is told to stop.
        None => tokio::select! {
            biased;
            signal = signals.next() => {
                if !shared.is_the_last(life) {
                    // It is meant for the life that has just begun.
                    signals.put_back(signal);
                    return Some(shared.life_after(life).await);
                }
                signal.at
            }
            next = shared.life_after(life) => return Some(next),
        },
    };
    stop = Some(stop_at);
    // The application ends by itself now, or never.
    let last_moment = stop_at + shared.budget.total() - shared.budget.margin() / ANSWER_SHARE;
    let status = tokio::select! {
        biased;
        signal = signals.second(&mut stop) => signal.exit_status(),
        () = sleep_until(last_moment) => if clean { 0 } else { EXIT_AT_DEADLINE },
        failed = held_up(shared), if clean => i32::from(failed),
    };
    // Not `std::process::exit`: its exit handlers are foreign code, and may hang.
    signal_hook::low_level::exit(status);
}

/// Ready when only blocking tasks keep the process: its runtime has been shutting down for longer than it may. Whether
/// [`run`](crate::Lifecycle::run) has returned an error.
async fn held_up(shared: &LifecycleState) -> bool {
    // The sender is in `shared`, so it cannot be closed.
    let _ = shared.ending.subscribe().wait_for(|ending| ending.shut_down).await;
    sleep(shared.exit_after).await;
    if shared.report_format.is_some() {
        let why = "its runtime waits for a blocking task that does not end, as a `spawn_blocking` or a read of standard input";
        let mut lines = Lines::start();
        lines.said(log_line::warning_line("drained, and the process is ended", why), shared.budget.margin() / 2).await;
    }
    shared.ending.borrow().failed
}

/// One request to stop may arrive as several signals: `timeout(1)` and shells send them to the process and to its group.
/// What comes within this time of the first is the same request.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// Drains everything in order and says what happened, by the deadline whatever a resource does (L1).
pub(crate) async fn conduct(
    shared: &LifecycleState,
    begun: &Begun,
    place: Place,
    forced: impl Future<Output = ()>,
) -> Report {
    let nodes = &begun.nodes;
    let plan = Plan::new(nodes, begun.at, begun.budget(shared));
    let (_release, released) = watch::channel(());

    let mut rows: Vec<Row> = nodes.iter().map(|node| Row::new(Arc::clone(node))).collect();
    let mut running: JoinSet<(usize, Finished)> = JoinSet::new();
    let mut forced = std::pin::pin!(forced);
    let mut was_forced = false;
    let share = begun.budget(shared).usable().mul_f64(shared.work_share);
    let mut works_alone = std::pin::pin!(sleep_until(begun.at + share));
    let mut is_shared = false;
    loop {
        for i in 0..rows.len() {
            // Telemetry tells of the work, too.
            let beside = is_shared && nodes[i].facts().order == Order::Normal;
            let ready = rows[i].is_waiting()
                && plan.dependents[i]
                    .iter()
                    .all(|&d| rows[d].is_over() || (beside && nodes[d].facts().order == Order::First));
            if ready {
                rows[i].begin();
                let deadlines = plan.deadlines[i];
                let answer_by = deadlines.end + plan.answer;
                let (gate, tally) = (Arc::clone(nodes[i].gate()), Arc::clone(&rows[i].tally));
                let drain = Drain { deadlines, grace: plan.graces[i], gate, tally, began: Instant::now() };
                let answer = place.drain(Arc::clone(&nodes[i]), drain, released.clone());
                running.spawn(async move {
                    let finished = timeout_at(answer_by, answer).await;
                    (i, finished.unwrap_or(Ok(Ended::Hung)))
                });
            }
        }
        tokio::select! {
            biased;
            over = running.join_next() => match over {
                Some(Ok((i, finished))) => rows[i].end(finished),
                // Only our own few lines run in these tasks, and nobody aborts them.
                Some(Err(_)) => {}
                None => break,
            },
            () = &mut works_alone, if !is_shared => {
                is_shared = true;
                rows.iter().for_each(|row| row.has_had(share));
            }
            () = &mut forced => {
                was_forced = true;
                break;
            }
        }
    }
    if was_forced {
        // What was not reached admits dependents still; nothing may be handed out behind the report's back.
        for node in nodes.iter() {
            // The process ends now: nobody needs to wake for it, and to drop a waker is foreign code.
            std::mem::forget(node.gate().refuse(Admits::Nobody));
        }
    }
    let resources = rows.into_iter().filter_map(Row::report).collect();
    Report { took: begun.at.elapsed(), forced: was_forced, resources, ..blank_report(shared, begun) }
}

fn blank_report(shared: &LifecycleState, begun: &Begun) -> Report {
    Report {
        reason: begun.reason.clone(),
        error: begun.error.clone(),
        platform: shared.platform.to_string(),
        budget: begun.budget(shared).total(),
        took: Duration::ZERO,
        forced: false,
        resources: Vec::new(),
    }
}

/// The report where no drain could begin.
pub(crate) fn not_reached(shared: &LifecycleState, begun: &Begun, error: &Error) -> Report {
    let rows = begun.nodes.iter().map(|node| Row::new(Arc::clone(node)));
    let resources = rows.filter_map(Row::report).map(|row| ResourceReport { error: Some(error.to_string()), ..row });
    Report { resources: resources.collect(), ..blank_report(shared, begun) }
}

/// How a drain ended. Errors are text by then: printing them is foreign code, and is done where the drain ran.
type Finished = Result<Ended, Failure>;

#[derive(Debug)]
struct Failure {
    panicked: bool,
    message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { panicked: error.kind() == ErrorKind::Panicked, message: error.to_string() }
    }
}

/// One resource on its way through the drain.
struct Row {
    node: Arc<dyn Node>,
    tally: Arc<Tally>,
    state: State,
}

enum State {
    Waiting,
    Running {
        began: Instant,
    },
    Over {
        took: Duration,
        finished: Finished,
        /// Checkouts that were out then.
        left_out: usize,
    },
}

impl Row {
    fn new(node: Arc<dyn Node>) -> Self {
        Self { node, tally: Arc::default(), state: State::Waiting }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Over { .. })
    }

    fn begin(&mut self) {
        self.state = State::Running { began: Instant::now() };
    }

    /// Tracked work has had its share of the budget: what is left of it is named, whatever becomes of it.
    fn has_had(&self, share: Duration) {
        let stragglers = self.node.gate().stragglers();
        if self.node.facts().order != Order::First || self.is_over() || stragglers.is_empty() {
            return;
        }
        let share = in_words(share);
        self.tally.change(|known| {
            known.stragglers = stragglers;
            known.reasons.push(format!("still there after its share of {share}: the resources were drained beside it"));
        });
    }

    fn end(&mut self, finished: Finished) {
        if let State::Running { began } = self.state {
            self.state = State::Over { took: began.elapsed(), finished, left_out: self.node.gate().out() };
        }
    }

    /// The row of the report; none for tracked work where there was none.
    fn report(self) -> Option<ResourceReport> {
        let facts = self.node.facts();
        let Known { step, mut sessions, open, stragglers, at_cut, mut reasons, is_incomplete, error } =
            self.tally.known();
        let records = facts.ledger.as_ref().map(|ledger| ledger.close());
        let (took, left_out) = match &self.state {
            State::Waiting => (Duration::ZERO, self.node.gate().out()),
            State::Running { began } => (began.elapsed(), self.node.gate().out()),
            State::Over { took, left_out, .. } => (*took, *left_out),
        };
        // One that has come to its end has accounted for all.
        if !matches!(self.state, State::Over { finished: Ok(Ended::Drained | Ended::NotInitialised), .. }) {
            if open > 0 {
                reasons.push(format!("{open} were open when it was left"));
            }
            sessions.cut += open;
        }
        if let Some(at) = at_cut {
            reasons.extend(why_cut(sessions.cut.saturating_sub(at.before), at, facts.address.as_deref()));
        }
        if !self.node.capabilities().confirmed_end {
            // Nobody can have seen their end.
            sessions.unconfirmed += std::mem::take(&mut sessions.closed);
        }
        let [refused, refused_tracked] = self.node.gate().refusals();
        let (outcome, error) = match self.state {
            State::Waiting => (Outcome::NotReached, error),
            // Cut short by a second signal.
            State::Running { .. } => (Outcome::Hung, error),
            State::Over { finished, .. } => match finished {
                Ok(Ended::NotInitialised) => (Outcome::NotInitialised, error),
                Ok(Ended::Drained) => {
                    let lost = records.is_some_and(|records| records.written != records.accepted);
                    let ended = left_out == 0 && sessions.cut == 0 && sessions.left_behind == 0;
                    (if lost || is_incomplete || !ended { Outcome::Incomplete } else { Outcome::Drained }, error)
                }
                Ok(Ended::Hung) => (Outcome::Hung, error),
                Err(Failure { panicked: true, message }) => (Outcome::Panicked, Some(message)),
                Err(Failure { panicked: false, message }) => (Outcome::Failed, Some(message)),
            },
        };
        // Tracked work that there was none of.
        if facts.order == Order::First && outcome == Outcome::Drained && stragglers.is_empty() {
            return None;
        }
        // What a resource cannot do matters to who reads what became of its sessions.
        let cannot = if outcome == Outcome::NotInitialised { Vec::new() } else { self.node.capabilities().missing() };
        let name = facts.name.clone();
        Some(ResourceReport {
            name,
            outcome,
            step,
            took,
            sessions,
            stragglers,
            left_out,
            refused,
            refused_tracked,
            records,
            error,
            reasons,
            cannot,
        })
    }
}

/// Why so many sessions were cut when their time was over.
fn why_cut(cut: u64, at: AtCut, address: Option<&str>) -> Vec<String> {
    let held = cut.min(at.out);
    let after = in_words(at.after);
    let whom = address.unwrap_or("the server");
    let held_so = format!("{held} cut while checked out, after {after}");
    let silent = format!("{} cut since {whom} had not ended its side after {after}", cut - held);
    [(held, held_so), (cut - held, silent)].into_iter().filter(|(count, _)| *count > 0).map(|(_, why)| why).collect()
}

/// Where a resource is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a thread and a runtime of its own.
    Thread,
    /// In a task of the current runtime, whose clock a test controls.
    #[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
    Task,
}

impl Place {
    /// Begins the drain of one node; the future is its end, however that came about.
    fn drain(
        self,
        node: Arc<dyn Node>,
        drain: Drain,
        released: watch::Receiver<()>,
    ) -> impl Future<Output = Finished> + Send + use<> {
        let (sender, answer) = oneshot::channel();
        let started = match self {
            Self::Thread => on_own_thread(node, drain, released, sender),
            #[cfg(all(any(test, feature = "test-util"), not(winddown_loom)))]
            Self::Task => {
                tokio::spawn(async move {
                    sender.send(with_dependent_access(panics::catch(node.drain(drain))).await.map_err(Failure::from))
                });
                Ok(())
            }
        };
        async {
            started.map_err(no_thread)?;
            match answer.await {
                Ok(finished) => finished,
                Err(_) => Err(Error::new(ErrorKind::Panicked, "its thread ended without an answer").into()),
            }
        }
    }
}

fn on_own_thread(
    node: Arc<dyn Node>,
    drain: Drain,
    mut released: watch::Receiver<()>,
    sender: oneshot::Sender<Finished>,
) -> io::Result<()> {
    node.drainer()?.run(move |runtime| {
        let drained = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(with_dependent_access(node.drain(drain))).map_err(Failure::from)
        }));
        // Sending fails where the conductor has given up on it.
        let _ = sender.send(drained.unwrap_or_else(|panic| Err(panics::error(&*panic).into())));
        // Tasks that the resource spawned here (a connection that a hook opened) live until all are drained.
        runtime.block_on(async { while released.changed().await.is_ok() {} });
    });
    Ok(())
}

fn no_thread(error: io::Error) -> Failure {
    Error::new(ErrorKind::Config, "cannot start a thread to drain on").with_source(error).into()
}

/// How a report is written when the drain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReportFormat {
    /// A table for people.
    Table,
    /// One line of JSON for machines: [`Report::to_json_line`], with `timestamp`, `level` (`INFO`, or `WARN` for a report
    /// that is not clean) and `message`, which logs are filtered by.
    Json,
    /// The same line in CloudWatch's embedded metric format: where CloudWatch Logs gets it, as on Lambda, it makes metrics
    /// of it without any further call. Metrics that are custom are billed.
    ///
    /// Namespace `winddown`, one dimension, `FunctionName` (`AWS_LAMBDA_FUNCTION_NAME`; none where that is not set). Each
    /// is of one drain, over all its resources:
    ///
    /// | metric | unit | |
    /// | --- | --- | --- |
    /// | `DrainTime` | Milliseconds | from the request to stop to the last resource's end |
    /// | `BudgetShare` | Percent | the same, of the platform's budget |
    /// | `UncleanDrains` | Count | 1 where not everything was drained, else 0 |
    /// | `SessionsClosed` | Count | sessions that said goodbye |
    /// | `SessionsUnconfirmed` | Count | sessions that were ended where nobody can see the server's end |
    /// | `SessionsCut` | Count | sessions that could not |
    /// | `StatementsCancelled` | Count | statements that the server was asked to stop |
    /// | `RecordsAccepted` | Count | records that buffers took in, in their whole life |
    /// | `RecordsWritten` | Count | those of them that are known to be written |
    /// | `RecordsSpilled` | Count | put elsewhere, to be written later |
    /// | `RecordsLost` | Count | known not to be written |
    /// | `RecordsInDoubt` | Count | handed to the sink, without an answer |
    CloudWatch,
}

impl ReportFormat {
    /// A table where standard error is a terminal, unless Lambda's log format asks for JSON (`AWS_LAMBDA_LOG_FORMAT`);
    /// else one line of JSON.
    pub fn detect() -> Self {
        let is_read_by_people = io::IsTerminal::is_terminal(&io::stderr()) && !log_line::is_json_asked_for();
        if is_read_by_people { Self::Table } else { Self::Json }
    }
}

/// How long the report may take to be written, on a machine whose cores are busy: half of the margin, or what a drain that
/// was quick has left of the budget, as far as that is any use.
fn time_to_write(budget: Budget, begun: Instant) -> Duration {
    let half = budget.margin() / 2;
    let left = (begun + budget.total() - half).saturating_duration_since(Instant::now());
    left.min(REPORT_PATIENCE).max(half)
}

/// A pipe that somebody reads takes the report in less.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

fn report_text(report: &Report, format: ReportFormat) -> String {
    let now = SystemTime::now();
    match format {
        ReportFormat::Table => report.to_string().trim_end().to_owned(),
        ReportFormat::Json => log_line::line(report, now, None),
        ReportFormat::CloudWatch => log_line::line(report, now, Some(Metrics::of(report, now))),
    }
}

/// The signals that say stop, received from creation on, each with the moment of its arrival.
struct Signals {
    /// Received, and not for the life that was over.
    put_back: Option<Received>,
    received: mpsc::UnboundedReceiver<Received>,
    /// Keeps the channel open where nothing is ever received.
    _open: mpsc::UnboundedSender<Received>,
}

#[derive(Debug, Clone)]
struct Received {
    name: Cow<'static, str>,
    number: i32,
    at: Instant,
}

impl Received {
    fn now(kind: SignalKind) -> Self {
        Self { name: signals::name(kind), number: kind.as_raw_value(), at: Instant::now() }
    }

    /// As shells report a process that a signal ended.
    fn exit_status(&self) -> i32 {
        128 + self.number
    }
}

impl Signals {
    /// No signal, ever: for a lifecycle that does not own the process.
    fn none() -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        Self { put_back: None, received, _open: sender }
    }

    /// Must be called inside the runtime of the thread.
    fn listen(kinds: &[SignalKind]) -> io::Result<Self> {
        let signals = Self::none();
        // All or none: a signal that is received and heard by nobody would be lost.
        let streams = kinds.iter().map(|kind| Ok((*kind, signal(*kind)?))).collect::<io::Result<Vec<_>>>()?;
        for (kind, mut stream) in streams {
            let sender = signals._open.clone();
            // In a task of its own: a signal that arrives while something else is waited for has its moment too.
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(Received::now(kind)).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(signals)
    }

    /// # Cancel safety
    /// Cancel safe: no signal is lost.
    async fn next(&mut self) -> Received {
        if let Some(signal) = self.put_back.take() {
            return signal;
        }
        match self.received.recv().await {
            Some(received) => received,
            // The sender is in `self`, so it cannot be closed.
            None => pending().await,
        }
    }

    /// Gives a signal to whoever asks next.
    fn put_back(&mut self, signal: Received) {
        self.put_back = Some(signal);
    }

    /// The signal that repeats a request to stop. The first one since the drain began otherwise is that request, and is
    /// written to `stop`.
    ///
    /// # Cancel safety
    /// Cancel safe: what it has learnt is in `stop`.
    async fn second(&mut self, stop: &mut Option<Instant>) -> Received {
        loop {
            let signal = self.next().await;
            match *stop {
                Some(at) if signal.at.saturating_duration_since(at) >= SAME_REQUEST => return signal,
                Some(_) => {}
                None => *stop = Some(signal.at),
            }
        }
    }
}
