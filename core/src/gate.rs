//! The checkout / refuse / count protocol: who may still check out, who is out, and when all are back.
//!
//! One mutex guards who is inside, so the decisions to admit, to refuse and that all are back are ordered by its lock.
//! A counter with a closed bit would be a few nanoseconds quicker, but could not say *who* is out; measured, the lock
//! costs 15 ns for a whole checkout.
//!
//! Handing out reads one atomic instead of locking once more. It is stored under the lock; `Relaxed` is enough. Whoever
//! has learnt by any synchronising way that [`Gate::refuse`] returned is ordered after the store and reads it. A caller
//! that reads the old value is not: its checkout was handed out before the refusal, and is counted, since it entered
//! before. The model checker finds nothing else with no bound on preemptions.
//!
//! Rules, walked through by the model checker in `gate/models.rs`:
//!
//! 1. A checkout is counted from [`Gate::enter`] to [`Gate::leave`], so nothing is ever handed out and not counted (S2).
//! 2. [`Gate::hand_out`] is the moment a checkout is handed out. After [`Gate::refuse`] it fails for everyone refused,
//!    also for callers that were admitted before (S2).
//! 3. `refuse` wakes every caller that waits for a slot (S2). Such a caller does not touch its driver again
//!    ([`Gate::resume`] refuses it), so it is handed nothing any more, even if nobody polls it.
//! 4. Once nobody is admitted any more, [`Gate::poll_settled`] is ready exactly when nobody is active, which is to hold
//!    something or to be about to; and whoever waits for it is woken by the last one (L3).
//!
//! The lock is never held across an await, and no foreign code runs under it but a waker's `clone`: wakers are taken out before
//! they wake or drop.

#[cfg(all(test, winddown_loom))]
mod models;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;

use crate::{
    clock::Coarse,
    overdue::Overdue,
    report::Straggler,
    sync::{AtomicU8, Mutex, MutexGuard, Ordering},
};

/// Who is still admitted. Phases only ever move down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Admits {
    /// The application and dependents.
    Everyone,
    /// The lifecycle drains: only what this resource must outlive (buffers, tracked work, hooks).
    Dependents,
    /// The resource itself drains.
    Nobody,
}

/// On whose behalf a checkout is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Ordinary code.
    Application,
    /// Code that is drained before the resource: see `with_dependent_access`.
    Dependent,
}

impl Admits {
    const ALL: [Self; 3] = [Self::Everyone, Self::Dependents, Self::Nobody];

    fn admits(self, caller: Caller) -> bool {
        match self {
            Self::Everyone => true,
            Self::Dependents => caller == Caller::Dependent,
            Self::Nobody => false,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Written under the lock of `state`.
    admits: AtomicU8,
    state: Mutex<GateState>,
}

#[derive(Debug)]
struct GateState {
    inside: Slab<Inside>,
    /// How many of them are active.
    active: usize,
    /// Who was told that nothing is handed out any more: ordinary code, and dependents.
    refusals: [u64; 2],
    /// Who waits for the last one to leave: the drain of the resource, and its adapter.
    settled: Vec<Waker>,
}

impl GateState {
    fn is_settled(&self) -> bool {
        self.active == 0
    }

    /// Those who wait for this moment, if it has come.
    fn settled_now(&mut self) -> Vec<Waker> {
        if self.is_settled() && !self.settled.is_empty() { std::mem::take(&mut self.settled) } else { Vec::new() }
    }
}

#[derive(Debug)]
struct Inside {
    caller: Caller,
    site: &'static Location<'static>,
    since: Coarse,
    /// What it is for, where somebody said so.
    name: Option<Box<str>>,
    /// What is said when it has been here for too long, where that is asked for.
    overdue: Option<Overdue>,
    standing: Standing,
}

/// So many names are listed of one place, those of the oldest.
const NAMES: usize = 8;

#[derive(Debug)]
enum Standing {
    /// Holds something, or asks its driver for it at this moment: a straggler if it is still here when settling ends.
    Active,
    /// Waits for a slot, and is woken by this.
    Waits(Waker),
    /// Was waiting when draining began.
    Refused,
}

impl Inside {
    fn is_active(&self) -> bool {
        matches!(self.standing, Standing::Active)
    }
}

/// The place of one caller in the gate, with on whose behalf it is: one word, since it moves with every checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(usize);

impl Key {
    fn new(index: usize, caller: Caller) -> Self {
        Self(index << 1 | usize::from(caller == Caller::Dependent))
    }

    fn index(self) -> usize {
        self.0 >> 1
    }

    pub(crate) fn caller(self) -> Caller {
        if self.0 & 1 == 1 { Caller::Dependent } else { Caller::Application }
    }
}

/// What [`Gate`] answers to those it does not admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Wakes those that [`Gate::refuse`] returned. One that panics must not leave the others asleep.
pub(crate) fn wake(woken: Vec<Waker>) {
    for waker in woken {
        // The panic has been printed; there is nobody to give it to.
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

impl Gate {
    /// A gate that admits these.
    pub(crate) fn new(admits: Admits) -> Self {
        Self {
            admits: AtomicU8::new(admits as u8),
            state: Mutex::new(GateState { inside: Slab::new(), active: 0, refusals: [0; 2], settled: Vec::new() }),
        }
    }

    /// Counts a caller in, if it is admitted.
    ///
    /// # Errors
    /// [`Refused`] when it is not; nothing is counted then.
    #[inline]
    pub(crate) fn enter(&self, caller: Caller, site: &'static Location<'static>) -> Result<Key, Refused> {
        let since = Coarse::now();
        let mut state = self.state();
        if !self.admits().admits(caller) {
            return Err(Refused);
        }
        state.active += 1;
        Ok(Key::new(
            state.inside.insert(Inside { caller, site, since, name: None, overdue: None, standing: Standing::Active }),
            caller,
        ))
    }

    /// Says what the one at `key` is for.
    pub(crate) fn label(&self, key: Key, name: Box<str>) {
        self.state().inside[key.index()].name = Some(name);
    }

    /// Which line made the one at `key`.
    pub(crate) fn site(&self, key: Key) -> &'static Location<'static> {
        self.state().inside[key.index()].site
    }

    /// This goes when the one at `key` does.
    pub(crate) fn keep(&self, key: Key, overdue: Overdue) {
        let before = self.state().inside[key.index()].overdue.replace(overdue);
        drop(before);
    }

    /// One was told that nothing is handed out any more.
    pub(crate) fn count_refusal(&self, caller: Caller) {
        self.state().refusals[usize::from(caller == Caller::Dependent)] += 1;
    }

    /// How many were: ordinary code, and dependents.
    pub(crate) fn refusals(&self) -> [u64; 2] {
        self.state().refusals
    }

    /// Hands out: from here on the caller has what it came for.
    ///
    /// # Errors
    /// [`Refused`] when draining began since [`enter`](Self::enter); the caller must give back what it got and leave.
    #[inline]
    pub(crate) fn hand_out(&self, key: Key) -> Result<(), Refused> {
        if self.admits().admits(key.caller()) { Ok(()) } else { Err(Refused) }
    }

    /// A caller that waited is about to ask its driver again.
    ///
    /// # Errors
    /// [`Refused`] when draining began while it waited; then it must not.
    pub(crate) fn resume(&self, key: Key) -> Result<(), Refused> {
        let mut state = self.state();
        let inside = &mut state.inside[key.index()];
        if !self.admits().admits(inside.caller) {
            return Err(Refused);
        }
        let waited = std::mem::replace(&mut inside.standing, Standing::Active);
        state.active += usize::from(!matches!(waited, Standing::Active));
        drop(state);
        drop(waited);
        Ok(())
    }

    /// Counts a caller out.
    #[inline]
    pub(crate) fn leave(&self, key: Key) {
        let mut state = self.state();
        // The waker's destructor is foreign code, and so is that of a task: they must not run under the lock.
        let inside = state.inside.remove(key.index());
        state.active -= usize::from(inside.is_active());
        let woken = state.settled_now();
        drop(state);
        drop(inside);
        for waker in woken {
            waker.wake();
        }
    }

    /// Ready once the caller at `key` is refused; wakes it then.
    pub(crate) fn poll_refused(&self, key: Key, context: &Context<'_>) -> Poll<()> {
        let waker = context.waker().clone();
        let mut state = self.state();
        let inside = &mut state.inside[key.index()];
        if !self.admits().admits(inside.caller) {
            return Poll::Ready(());
        }
        let old = std::mem::replace(&mut inside.standing, Standing::Waits(waker));
        state.active -= usize::from(matches!(old, Standing::Active));
        let woken = state.settled_now();
        drop(state);
        drop(old);
        for waker in woken {
            waker.wake();
        }
        Poll::Pending
    }

    /// Admits only these from here on; a gate never opens again. Returns the wakers of those who wait and are now
    /// refused, for the caller to wake where foreign code may run.
    #[must_use = "who waits must be woken"]
    pub(crate) fn refuse(&self, admits: Admits) -> Vec<Waker> {
        let mut state = self.state();
        if self.admits() >= admits {
            return Vec::new();
        }
        self.admits.store(admits as u8, Ordering::Relaxed);
        let mut woken = Vec::new();
        for (_, inside) in state.inside.iter_mut().filter(|(_, inside)| !admits.admits(inside.caller)) {
            if matches!(inside.standing, Standing::Waits(_))
                && let Standing::Waits(waker) = std::mem::replace(&mut inside.standing, Standing::Refused)
            {
                woken.push(waker);
            }
        }
        woken
    }

    /// Ready once nobody is active; wakes everyone who asked when the last one ends.
    pub(crate) fn poll_settled(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.is_settled() {
            return Poll::Ready(());
        }
        if !state.settled.iter().any(|waker| waker.will_wake(context.waker())) {
            state.settled.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// How many checkouts are out.
    pub(crate) fn out(&self) -> usize {
        self.state().active
    }

    /// How many callers wait for one. Walks all that are inside.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state();
        state.inside.iter().filter(|(_, inside)| matches!(inside.standing, Standing::Waits(_))).count()
    }

    /// The checkouts that are out, by the place that made them, with the age of the oldest. Walks them.
    pub(crate) fn stragglers(&self) -> Vec<Straggler> {
        type Out = (Duration, Option<Box<str>>);
        let state = self.state();
        let mut sites: BTreeMap<String, Vec<Out>> = BTreeMap::new();
        for (_, inside) in state.inside.iter().filter(|(_, inside)| inside.is_active()) {
            sites.entry(inside.site.to_string()).or_default().push((inside.since.elapsed(), inside.name.clone()));
        }
        drop(state);
        let stragglers = sites.into_iter().map(|(site, mut out)| {
            out.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
            let oldest = out.first().map(|(age, _)| *age).unwrap_or_default();
            let count = out.len();
            let names = out.into_iter().filter_map(|(_, name)| name.map(Into::into)).take(NAMES).collect();
            Straggler::new(site, count, oldest, names)
        });
        stragglers.collect()
    }

    #[inline]
    fn admits(&self) -> Admits {
        Admits::ALL[usize::from(self.admits.load(Ordering::Relaxed))]
    }

    #[inline]
    fn state(&self) -> MutexGuard<'_, GateState> {
        // Nothing under the lock panics but a key that was used after `leave`, which is a bug of this crate; the
        // state is whole at every unlock, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(all(test, not(winddown_loom)))]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn refuse(gate: &Gate, admits: Admits) {
        wake(gate.refuse(admits));
    }

    fn here() -> &'static Location<'static> {
        Location::caller()
    }

    #[test]
    fn s2_after_refuse_nobody_enters_and_nothing_is_counted() {
        let gate = Gate::new(Admits::Everyone);
        refuse(&gate, Admits::Nobody);
        assert_eq!(gate.enter(Caller::Application, here()), Err(Refused));
        assert!(gate.poll_settled(&Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn s2_an_admitted_caller_that_still_connects_is_refused_at_hand_out() {
        let gate = Gate::new(Admits::Everyone);
        let key = gate.enter(Caller::Application, here()).unwrap();
        refuse(&gate, Admits::Nobody);
        assert_eq!(gate.hand_out(key), Err(Refused));
        assert!(gate.poll_settled(&Context::from_waker(Waker::noop())).is_pending(), "counted until it leaves");
        gate.leave(key);
        assert!(gate.poll_settled(&Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn s2_refuse_wakes_those_who_wait_and_are_refused() {
        let gate = Gate::new(Admits::Everyone);
        let wakes: [Arc<Count>; 2] = std::array::from_fn(|_| Arc::default());
        let callers = [Caller::Application, Caller::Dependent];
        for (caller, count) in callers.into_iter().zip(&wakes) {
            let key = gate.enter(caller, here()).unwrap();
            let waker = Waker::from(Arc::clone(count));
            assert!(gate.poll_refused(key, &Context::from_waker(&waker)).is_pending());
        }
        let woken = || wakes.each_ref().map(|count| count.0.load(Ordering::SeqCst));
        refuse(&gate, Admits::Dependents);
        assert_eq!(woken(), [1, 0]);
        refuse(&gate, Admits::Nobody);
        assert_eq!(woken(), [1, 1]);
    }

    #[test]
    fn refusing_is_never_taken_back() {
        let gate = Gate::new(Admits::Everyone);
        refuse(&gate, Admits::Nobody);
        refuse(&gate, Admits::Nobody);
        refuse(&gate, Admits::Dependents);
        assert_eq!(gate.enter(Caller::Dependent, here()), Err(Refused));
    }

    #[test]
    fn a_caller_that_waited_and_is_never_polled_again_holds_up_nobody() {
        let gate = Gate::new(Admits::Everyone);
        let parked = gate.enter(Caller::Application, here()).unwrap();
        let context = Context::from_waker(Waker::noop());
        assert!(gate.poll_refused(parked, &context).is_pending());
        refuse(&gate, Admits::Nobody);
        assert!(gate.poll_settled(&context).is_ready());
        assert_eq!((gate.out(), gate.stragglers()), (0, Vec::new()));
        assert_eq!(gate.resume(parked), Err(Refused), "it does not ask its driver again");
    }

    #[test]
    fn stragglers_are_grouped_by_site_and_leave_out_those_who_wait() {
        let gate = Gate::new(Admits::Everyone);
        let site = here();
        for _ in 0..3 {
            gate.enter(Caller::Application, site).unwrap();
        }
        let waits = gate.enter(Caller::Application, here()).unwrap();
        assert!(gate.poll_refused(waits, &Context::from_waker(Waker::noop())).is_pending());
        let stragglers = gate.stragglers();
        assert_eq!(stragglers.len(), 1);
        assert_eq!((stragglers[0].site.as_str(), stragglers[0].count), (site.to_string().as_str(), 3));
    }
}
