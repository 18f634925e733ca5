//! `TrackedBody`: bodies that are polled where the scope of their request does not reach. Time is paused.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::sleep;
use winddown_core::{Error, Lifecycle, Outcome, ShutdownGuard, TrackedBody, memory::Memory};

struct Scene {
    lifecycle: Lifecycle,
    db: ShutdownGuard<Memory>,
}

const PAGE: Duration = Duration::from_millis(100);

impl Scene {
    async fn new() -> Self {
        let lifecycle = Lifecycle::builder().signals(false).budget(Duration::from_secs(30)).build().unwrap();
        let db = lifecycle.guard(Memory::new("db"));
        lifecycle.init().await.unwrap();
        Self { lifecycle, db }
    }

    /// Four pages, each with a checkout of its own; draining begins before the third.
    fn pages(&self) -> impl Stream<Item = Result<u32, Error>> + Send + use<> {
        let (db, lifecycle) = (self.db.clone(), self.lifecycle.clone());
        stream::iter(0..4).then(move |page| {
            let (db, lifecycle) = (db.clone(), lifecycle.clone());
            async move {
                if page == 2 {
                    tokio::spawn(async move { lifecycle.drain_in_tasks().await });
                    sleep(PAGE).await;
                }
                db.get().await.map(|_session| page)
            }
        })
    }
}

/// Polls it in a task of its own, as servers do.
async fn sent<S: Stream<Item = Result<u32, Error>> + Send + 'static>(body: S) -> Vec<Result<u32, String>> {
    let sending = body.map(|page| page.map_err(|error| error.to_string())).collect();
    tokio::spawn(sending).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_tracked_request_is_handed_out_to_until_its_end() {
    let scene = Scene::new().await;
    let body = scene.lifecycle.track().unwrap().body(scene.pages());
    assert_eq!(sent(body).await, [Ok(0), Ok(1), Ok(2), Ok(3)]);
    let report = scene.lifecycle.drained().await;
    assert!(report.is_clean() && report.took >= PAGE, "it was waited for: {report}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_belongs_to_no_request_is_refused() {
    let scene = Scene::new().await;
    let pages = sent(TrackedBody::new(scene.pages(), None)).await;
    assert!(pages[1].is_ok() && pages[2].is_err(), "{pages:?}");
}

#[tokio::test(start_paused = true)]
async fn the_work_is_over_with_the_last_page_or_when_the_body_is_dropped() {
    for is_read in [true, false] {
        let scene = Scene::new().await;
        let mut body = pin!(Box::pin(scene.lifecycle.track().unwrap().body(stream::iter([1]))));
        if is_read {
            assert_eq!((body.next().await, body.next().await), (Some(1), None));
        } else {
            body.set(Box::pin(TrackedBody::new(stream::iter([2]), None)));
        }
        let report = scene.lifecycle.drain_in_tasks().await;
        assert!(report.is_clean() && report.took < PAGE, "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_ends_is_left_in_its_share_of_the_budget_and_named() {
    let scene = Scene::new().await;
    let _body = scene.lifecycle.track().unwrap().body(stream::pending::<()>());
    let report = scene.lifecycle.drain_in_tasks().await;
    let work = report.resource("tracked work").unwrap();
    assert_eq!(work.outcome, Outcome::Incomplete, "{report}");
    assert!(work.stragglers[0].site.contains("body.rs"), "{report}");
}

/// Several parts of one piece of work, as an invocation and its response.
#[tokio::test(start_paused = true)]
async fn work_lasts_until_all_of_its_parts_are_over() {
    let scene = Scene::new().await;
    let tracked = Arc::new(scene.lifecycle.track().unwrap());
    let body = TrackedBody::new(scene.pages(), Some(Arc::clone(&tracked)));
    drop(tracked);
    assert_eq!(sent(body).await.len(), 4);
    assert!(scene.lifecycle.drained().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_body_keeps_its_length_and_its_frames() {
    let scene = Scene::new().await;
    let body = scene.lifecycle.track().unwrap().body(Full::new(&b"three"[..]));
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5), "a response keeps its Content-Length");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "three");

    let frames = scene.pages().map(|page| Ok::<_, Infallible>(page.map_or("refused", |_| "page")));
    let frames = StreamBody::new(frames.map(|data| data.map(|data| http_body::Frame::data(data.as_bytes()))));
    let body = scene.lifecycle.track().unwrap().body(frames);
    let sent = tokio::spawn(BodyExt::collect(body)).await.unwrap().unwrap();
    assert_eq!(sent.to_bytes(), "pagepagepagepage");
    assert!(scene.lifecycle.drained().await.is_clean());
}
