//! `Lifecycle::flush`: who is flushed, what comes of it, and when it is over. Time is paused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use winddown_core::{
    Capabilities, Error, ErrorKind, Hook, Lifecycle, Resource, ShutdownGuard, adapter::Drain, memory::Memory,
};

#[derive(Debug, Clone, Copy)]
enum Flush {
    Takes(Duration),
    Fails(Duration),
    Panics,
}

struct Holds {
    name: &'static str,
    flush: Flush,
    flushed: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<&'static str>>>,
}

impl Resource for Holds {
    type Pool = ();

    fn name(&self) -> &str {
        self.name
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn goodbye(&self, (): &(), _: &Drain) -> Result<(), Error> {
        Ok(())
    }
    async fn flush(&self, (): &()) -> Result<(), Error> {
        self.seen.lock().unwrap().push(self.name);
        match self.flush {
            Flush::Takes(time) => sleep(time).await,
            Flush::Fails(time) => {
                sleep(time).await;
                return Err(Error::new(ErrorKind::Write, "the disk is full"));
            }
            Flush::Panics => panic!("the driver has a bug"),
        }
        self.flushed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

#[derive(Default)]
struct Scene {
    flushed: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<&'static str>>>,
}

impl Scene {
    fn resource(&self, lifecycle: &Lifecycle, name: &'static str, flush: Flush) -> ShutdownGuard<Holds> {
        let (flushed, seen) = (Arc::clone(&self.flushed), Arc::clone(&self.seen));
        lifecycle.guard(Holds { name, flush, flushed, seen })
    }

    fn flushed(&self) -> usize {
        self.flushed.load(Ordering::SeqCst)
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle::builder().signals(false).build().unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[tokio::test(start_paused = true)]
async fn every_initialised_resource_is_flushed_at_once_and_no_other() {
    let (lifecycle, scene) = (lifecycle(), Scene::default());
    let guards = [10, 30, 20].map(|time| scene.resource(&lifecycle, "holds", Flush::Takes(ms(time))));
    let _memory = lifecycle.guard(Memory::new("holds nothing"));
    lifecycle.on_drain("a hook", async || -> () { panic!("a flush is not a drain") });
    lifecycle.init().await.unwrap();
    let _unused = scene.resource(&lifecycle, "unused", Flush::Panics);

    let began = Instant::now();
    lifecycle.flush().await.unwrap();
    assert_eq!((scene.flushed(), began.elapsed()), (3, ms(30)));
    assert!(!scene.seen.lock().unwrap().contains(&"unused"));

    lifecycle.flush().await.unwrap();
    assert_eq!(scene.flushed(), 6, "as often as it is asked for");
    guards[0].pool().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn where_nothing_has_to_be_flushed_it_is_over_at_once() {
    let lifecycle = lifecycle();
    let _db = lifecycle.guard(Memory::new("db"));
    lifecycle.init().await.unwrap();
    let mut flush = Box::pin(lifecycle.flush());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(flush.as_mut().poll(&mut context).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_first_error_is_returned_when_all_have_ended_and_names_its_resource() {
    let (lifecycle, scene) = (lifecycle(), Scene::default());
    let _slow = scene.resource(&lifecycle, "slow", Flush::Takes(ms(50)));
    let _later = scene.resource(&lifecycle, "fails later", Flush::Fails(ms(20)));
    let _first = scene.resource(&lifecycle, "fails first", Flush::Fails(ms(10)));
    lifecycle.init().await.unwrap();
    let began = Instant::now();
    let error = lifecycle.flush().await.unwrap_err();
    assert_eq!((error.kind(), error.resource()), (ErrorKind::Write, Some("fails first")));
    assert_eq!((scene.flushed(), began.elapsed()), (1, ms(50)));
}

#[tokio::test(start_paused = true)]
async fn one_that_panics_costs_the_others_nothing() {
    let (lifecycle, scene) = (lifecycle(), Scene::default());
    let _panics = scene.resource(&lifecycle, "panics", Flush::Panics);
    let _slow = scene.resource(&lifecycle, "slow", Flush::Takes(ms(50)));
    lifecycle.init().await.unwrap();
    let error = lifecycle.flush().await.unwrap_err();
    assert_eq!((error.kind(), error.resource()), (ErrorKind::Panicked, Some("panics")));
    assert_eq!(scene.flushed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_given_up_can_be_asked_for_again() {
    let (lifecycle, scene) = (lifecycle(), Scene::default());
    let _slow = scene.resource(&lifecycle, "slow", Flush::Takes(ms(50)));
    lifecycle.init().await.unwrap();
    timeout(ms(49), lifecycle.flush()).await.unwrap_err();
    assert_eq!(scene.flushed(), 0);
    timeout(ms(51), lifecycle.flush()).await.unwrap().unwrap();
    assert_eq!(scene.flushed(), 1);
}

/// A client behind a hook, as an error tracker: what it sent, by whom it was asked.
#[derive(Clone, Default)]
struct Tracker(Arc<Mutex<Vec<&'static str>>>);

impl Tracker {
    fn hook(&self) -> Hook {
        let (closed, flushed) = (self.clone(), self.clone());
        Hook::new(async move || closed.0.lock().unwrap().push("closed")).flush(move || {
            let tracker = flushed.clone();
            async move {
                sleep(ms(10)).await;
                tracker.0.lock().unwrap().push("flushed");
            }
        })
    }

    fn sent(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_behind_a_hook_is_flushed_as_often_as_it_is_asked_for_and_not_after_the_hook_has_run() {
    let (lifecycle, scene, tracker) = (lifecycle(), Scene::default(), Tracker::default());
    let _beside = scene.resource(&lifecycle, "beside", Flush::Takes(ms(10)));
    lifecycle.on_drain("tracker", tracker.hook().last());
    lifecycle.init().await.unwrap();
    let began = Instant::now();
    lifecycle.flush().await.unwrap();
    assert_eq!(began.elapsed(), ms(10), "beside the others");
    lifecycle.flush().await.unwrap();
    assert_eq!(tracker.sent(), ["flushed", "flushed"]);

    let report = lifecycle.drain_in_tasks().await;
    assert!(report.is_clean(), "{report}");
    lifecycle.flush().await.unwrap();
    assert_eq!(tracker.sent(), ["flushed", "flushed", "closed"], "the drain itself flushes nothing behind a hook");
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_a_hook_that_fails_or_panics_names_it_and_costs_no_other() {
    for panics in [false, true] {
        let (lifecycle, scene) = (lifecycle(), Scene::default());
        let flush = move || async move { if panics { panic!("a bug") } else { Err::<(), _>("the tracker says no") } };
        lifecycle.on_drain("tracker", Hook::new(async || ()).flush(flush));
        let _other = scene.resource(&lifecycle, "other", Flush::Takes(ms(10)));
        lifecycle.init().await.unwrap();
        let error = lifecycle.flush().await.unwrap_err();
        let (kind, text) = if panics {
            (ErrorKind::Panicked, "a bug")
        } else {
            (ErrorKind::Work, "the flush of the hook failed: the tracker says no")
        };
        assert_eq!((error.kind(), error.resource()), (kind, Some("tracker")));
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(scene.flushed(), 1);
        assert!(lifecycle.drain_in_tasks().await.is_clean(), "the hook runs all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_of_each_life_is_flushed_in_each() {
    let (lifecycle, flushed) = (lifecycle(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&flushed);
    let flush = move || {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(())
    };
    lifecycle.on_drain("exporter", Hook::on_every_drain(async || ()).flush(flush));
    for life in 1..=3 {
        lifecycle.init().await.unwrap();
        lifecycle.flush().await.unwrap();
        assert_eq!(flushed.load(Ordering::SeqCst), life);
        lifecycle.drain_in_tasks().await;
        lifecycle.restart().unwrap();
    }
}
