//! The thread that owns the deadline: it receives the signals, drains the resources in order, writes the report, and
//! ends the process if nobody else does.
//!
//! It is an OS thread with a runtime of its own, so that an application that starves its runtime neither hides a signal
//! nor stops the clock. Foreign code runs beside it: each resource is drained on a thread of its own, the report is
//! written on another, and wakers are called on a third, so nothing that hangs can hold it up. Only where the system
//! gives no more threads are wakers called here. While nothing happens it sleeps in one system call, without a timer
//! (C2).

#[cfg(all(test, not(winddown_loom)))]
mod tests;

use std::{
    borrow::Cow,
    future::{Future, pending},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc as blocking},
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    Budget, Drain, Error, ErrorKind, Outcome, Reason, Report, ResourceReport,
    gate::Admits,
    guard::as_dependent,
    lifecycle::{Begun, Life, Shared},
    log_line::{self, Metrics},
    node::{Ended, Node, Order},
    notify, panics,
    plan::{ANSWER_SHARE, Plan},
    report::{AtCut, Known, Tally, in_words},
    signals,
    standard_error::Lines,
};

/// The exit status of a process that had to be ended at its deadline: what `timeout(1)` uses.
pub const EXIT_AT_DEADLINE: i32 = 124;

/// Starts the thread. Signals are received from the moment this returns.
///
/// # Errors
/// [`ErrorKind::Config`] when the system refuses the signal handler, the thread or its event queue.
pub(crate) fn start(shared: &Arc<Shared>, life: &Arc<Life>) -> Result<(), Error> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Config, "cannot start the thread that waits for signals: raise the limits of the process")
            .with_source(error)
    };
    let (shared, life) = (Arc::clone(shared), Arc::clone(life));
    // The runtime is made and dropped on its thread: an async caller may do neither.
    let (sender, started) = blocking::channel();
    let run = move || {
        let (runtime, signals) = match prepare(&shared) {
            Ok(prepared) => prepared,
            Err(error) => return drop(sender.send(Err(error))),
        };
        // The caller waits for exactly this.
        let _ = sender.send(Ok(()));
        let conducted = catch_unwind(AssertUnwindSafe(|| runtime.block_on(main(&shared, life, signals))));
        if let Err(panic) = conducted {
            // A bug of this crate; its message has been printed. Nobody may wait for this thread any more.
            if shared.owns_process {
                signal_hook::low_level::exit(EXIT_AT_DEADLINE);
            }
            shared.life().publish_failure(&shared, &panics::error(&*panic));
        }
    };
    thread::Builder::new().name("winddown".into()).spawn(run).map_err(failed)?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("it ended at once"))).map_err(failed)
}

fn prepare(shared: &Shared) -> io::Result<(Runtime, Signals)> {
    if !shared.owns_process {
        return Ok((drain_runtime()?, Signals::none()));
    }
    panics::tell_what_an_abort_loses();
    let runtime = own_runtime()?;
    let signals = {
        let _inside = runtime.enter();
        Signals::listen(&shared.signals)?
    };
    Ok((runtime, signals))
}

/// Runs code that wakes the application's tasks, and may therefore block or panic, beside this thread.
fn aside(life: &Arc<Life>, work: impl Fn(&Life) + Clone + Send + 'static) {
    let there = {
        let (work, life) = (work.clone(), Arc::clone(life));
        thread::Builder::new().name("winddown-wake".into()).spawn(move || work(&life))
    };
    if there.is_err() {
        // No more threads: better here than not at all.
        work(life);
    }
}

async fn main(shared: &Arc<Shared>, mut life: Arc<Life>, mut signals: Signals) {
    while let Some(next) = conduct_life(shared, &life, &mut signals).await {
        life = next;
    }
}

/// One life, from its start to the end of its drain and what comes then: the end of the process, or another life. None
/// where the process is not this thread's business.
async fn conduct_life(shared: &Arc<Shared>, life: &Arc<Life>, signals: &mut Signals) -> Option<Arc<Life>> {
    // When the platform said stop; a drain may also be asked for.
    let mut stop = None;
    let mut begun = tokio::select! {
        biased;
        begun = life.begun() => begun,
        signal = signals.next() => {
            stop = Some(signal.at);
            aside(life, move |life| {
                life.refuse(Reason::Signal(signal.name.clone()), signal.at);
            });
            life.begun().await
        }
    };
    if let Some(stop) = stop {
        // The application may have begun it between the signal and our own beginning; the platform counts from the signal.
        begun.at = begun.at.min(stop);
    }
    let mut lines = shared.report_format.map(|format| {
        let lines = Lines::start();
        let budget = begun.budget(shared);
        lines.say(log_line::begin_line(format, &begun, budget));
        lines
    });
    if shared.owns_process {
        notify::stopping(shared.budget.total());
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
    aside(life, move |life| life.publish(Arc::clone(&report)));

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
    let status = match timeout_at(last_moment, signals.second(&mut stop)).await {
        Ok(signal) => signal.exit_status(),
        Err(_) if clean => 0,
        Err(_) => EXIT_AT_DEADLINE,
    };
    // Not `std::process::exit`: its exit handlers are foreign code, and may hang.
    signal_hook::low_level::exit(status);
}

/// One request to stop may arrive as several signals: `timeout(1)` and shells send them to the process and to its group.
/// What comes within this time of the first is the same request.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// Drains everything in order and says what happened, by the deadline whatever a resource does (L1).
pub(crate) async fn conduct(shared: &Shared, begun: &Begun, place: Place, forced: impl Future<Output = ()>) -> Report {
    let nodes = &begun.nodes;
    let plan = Plan::new(nodes, begun.at, begun.budget(shared));
    let (_release, released) = watch::channel(());

    let mut rows: Vec<Row> = nodes.iter().map(|node| Row::new(Arc::clone(node))).collect();
    let mut running: JoinSet<(usize, Finished)> = JoinSet::new();
    let mut forced = std::pin::pin!(forced);
    let mut was_forced = false;
    loop {
        for i in 0..rows.len() {
            let ready = rows[i].is_waiting() && plan.dependents[i].iter().all(|&d| rows[d].is_over());
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

fn blank_report(shared: &Shared, begun: &Begun) -> Report {
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
pub(crate) fn not_reached(shared: &Shared, begun: &Begun, error: &Error) -> Report {
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
        if !facts.capabilities.confirmed_end {
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
        let cannot = if outcome == Outcome::NotInitialised { Vec::new() } else { facts.capabilities.missing() };
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
                    sender.send(as_dependent(panics::catch(node.drain(drain))).await.map_err(Failure::from))
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
    let work = move || {
        // Sending fails where the conductor has given up on it.
        let runtime = match drain_runtime() {
            Ok(runtime) => runtime,
            Err(error) => return drop(sender.send(Err(no_thread(error)))),
        };
        let drained =
            catch_unwind(AssertUnwindSafe(|| runtime.block_on(as_dependent(node.drain(drain))).map_err(Failure::from)));
        let _ = sender.send(drained.unwrap_or_else(|panic| Err(panics::error(&*panic).into())));
        // Tasks that the resource spawned here (a connection that a hook opened) live until all are drained.
        runtime.block_on(async { while released.changed().await.is_ok() {} });
        runtime.shutdown_background();
    };
    thread::Builder::new().name("winddown-drain".into()).spawn(work).map(drop)
}

fn no_thread(error: io::Error) -> Failure {
    Error::new(ErrorKind::Config, "cannot start a thread to drain on").with_source(error).into()
}

fn own_runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

/// Where files have run out, as they do when connections leak, a runtime without I/O must do: goodbyes over sockets that
/// are open, and on blocking threads, need no more.
fn drain_runtime() -> io::Result<Runtime> {
    own_runtime().or_else(|_| runtime::Builder::new_current_thread().enable_time().build())
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
