//! `Lifecycle::flush`: who is flushed, what comes of it, and when it is over. Time is paused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use winddown_core::{Capabilities, Drain, Error, ErrorKind, Lifecycle, Resource, ShutdownGuard, memory::Memory};

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
    type Checkout = ();

    fn name(&self) -> &str {
        self.name
    }
    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn checkout(&self, (): &()) -> Result<(), Error> {
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
    drop(guards[0].get().await.unwrap());
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
