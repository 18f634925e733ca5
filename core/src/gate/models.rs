//! The rules of the gate under loom: the interleavings of the threads below, with every outcome the memory model allows.
//! Run with up to five preemptions by `cargo xtask test`, or alone:
//! `RUSTFLAGS="--cfg winddown_loom" cargo test --release -p winddown-core --lib models::`.

use std::{future::poll_fn, panic::Location};

use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{Admits, Caller, Gate, wake};

fn gate() -> Arc<Gate> {
    Arc::new(Gate::new(Admits::Everyone))
}

fn refuse(gate: &Gate, admits: Admits) {
    wake(gate.refuse(admits));
}

async fn settled(gate: &Gate) {
    poll_fn(|context| gate.poll_settled(context)).await;
}

/// Checks out and gives back; counts what it holds in `held`, as a driver would.
fn check_out(gate: &Gate, caller: Caller, held: &AtomicUsize) -> bool {
    let Ok(key) = gate.enter(caller, Location::caller()) else { return false };
    held.fetch_add(1, Ordering::SeqCst);
    let handed_out = gate.hand_out(key).is_ok();
    held.fetch_sub(1, Ordering::SeqCst);
    gate.leave(key);
    handed_out
}

/// S2 and L3: when the drain has settled, nobody holds anything, nobody gets anything, and the drain was woken.
#[test]
fn s2_settled_means_nothing_is_held_and_nothing_will_be() {
    loom::model(|| {
        let gate = gate();
        let held = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
                thread::spawn(move || check_out(&gate, Caller::Application, &held))
            })
            .collect();
        refuse(&gate, Admits::Nobody);
        block_on(settled(&gate));
        assert_eq!(held.load(Ordering::SeqCst), 0, "settled while something is held");
        assert!(!check_out(&gate, Caller::Application, &held), "handed out after settling");
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

/// S2: nothing is handed out after `refuse` has returned, however early the caller was admitted.
#[test]
fn s2_nothing_is_handed_out_after_refuse_returned() {
    loom::model(|| {
        let gate = gate();
        let refused = Arc::new(AtomicBool::new(false));
        let caller = {
            let (gate, refused) = (Arc::clone(&gate), Arc::clone(&refused));
            thread::spawn(move || {
                let Ok(key) = gate.enter(Caller::Application, Location::caller()) else { return };
                // Acquire: the weakest way in which the caller can know of it.
                let before = refused.load(Ordering::Acquire);
                let handed_out = gate.hand_out(key).is_ok();
                assert!(!(before && handed_out), "handed out after refuse returned");
                gate.leave(key);
            })
        };
        refuse(&gate, Admits::Nobody);
        refused.store(true, Ordering::Release);
        caller.join().unwrap();
    });
}

/// S2: a caller that waits for a slot is woken by `refuse`; a lost wake-up would block this model for ever.
#[test]
fn s2_a_waiting_caller_is_woken_by_refuse() {
    loom::model(|| {
        let gate = gate();
        let waiting = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                let Ok(key) = gate.enter(Caller::Application, Location::caller()) else { return };
                block_on(poll_fn(|context| gate.poll_refused(key, context)));
                gate.leave(key);
            })
        };
        refuse(&gate, Admits::Nobody);
        block_on(settled(&gate));
        waiting.join().unwrap();
    });
}

/// S2: a caller that waited asks its driver again only if it is still admitted, and the drain waits for that.
#[test]
fn s2_a_caller_that_resumes_is_waited_for_or_refused() {
    loom::model(|| {
        let gate = gate();
        let held = Arc::new(AtomicUsize::new(0));
        let resumes = {
            let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
            thread::spawn(move || {
                let Ok(key) = gate.enter(Caller::Application, Location::caller()) else { return };
                // Its driver has no slot yet; the next poll finds one.
                let waits = gate.poll_refused(key, &std::task::Context::from_waker(std::task::Waker::noop()));
                if waits.is_pending() && gate.resume(key).is_ok() {
                    held.fetch_add(1, Ordering::SeqCst);
                    let _ = gate.hand_out(key);
                    held.fetch_sub(1, Ordering::SeqCst);
                }
                gate.leave(key);
            })
        };
        refuse(&gate, Admits::Nobody);
        block_on(settled(&gate));
        assert_eq!(held.load(Ordering::SeqCst), 0, "settled while something is held");
        resumes.join().unwrap();
    });
}

/// S4: while only dependents are admitted the application gets nothing, and dependents still do.
#[test]
fn s4_dependents_are_admitted_until_their_resource_drains() {
    loom::model(|| {
        let gate = gate();
        let held = Arc::new(AtomicUsize::new(0));
        refuse(&gate, Admits::Dependents);
        let dependent = {
            let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
            thread::spawn(move || {
                let got = check_out(&gate, Caller::Dependent, &held);
                assert!(!check_out(&gate, Caller::Application, &held), "the application is refused");
                got
            })
        };
        assert!(dependent.join().unwrap(), "the dependent is admitted");
        refuse(&gate, Admits::Nobody);
        block_on(settled(&gate));
        assert_eq!(held.load(Ordering::SeqCst), 0);
    });
}
