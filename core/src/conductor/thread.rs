//! The thread that owns the deadline: it receives the signals, drains the resources in order, writes the report, and
//! ends the process if nobody else does.
//!
//! It is an OS thread with a runtime of its own, so that an application that starves its runtime neither hides a signal
//! nor stops the clock. Foreign code runs beside it: each resource is drained on a thread of its own, the report is
//! written on another, and wakers are called on a third, so nothing that hangs can hold it up. These threads are there
//! before they are needed (L7); only where the system did not give them are wakers called here. While nothing happens it sleeps in one system call, without a timer
//! (C2).

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::{
    runtime,
    time::{sleep, sleep_until},
};

use super::{
    Place, conduct, not_reached,
    stops::Signals,
    writing::{report_text, time_to_write},
};
use crate::{
    Error, ErrorKind, Reason,
    life::{Life, LifecycleState},
    log_line, notify, panics,
    plan::ANSWER_SHARE,
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

/// Publishes the report of a drain that could not go on, if one has begun.
pub(crate) fn publish_failure(shared: &LifecycleState, life: &Life, error: &Error) {
    if let Some(begun) = life.has_begun() {
        life.publish(Arc::new(not_reached(shared, &begun, error)));
    }
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
            publish_failure(&shared, &shared.life(), &panics::error(&*panic));
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
        lines.say(log_line::begin_line(format, &begun.reason, begun.error.as_deref(), begun.budget(shared)));
    }
    if let Some(stopping) = stopping {
        stopping.say(shared.budget.total());
    }

    // L5: the signal after the one that said stop.
    let mut second = None;
    let forced = async { second = Some(signals.second(&mut stop, &shared.platform).await) };
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
        signal = signals.second(&mut stop, &shared.platform) => signal.exit_status(),
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
