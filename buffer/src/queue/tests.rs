use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use winddown_core::adapter::Accounting;

use super::*;

fn queue() -> Arc<Queue<u8>> {
    let limits = Limits { capacity: 4, batch_size: 2, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
    let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
    Arc::new(Queue::new("audit", limits, Delivery::AtMostOnce, callbacks))
}

async fn push(queue: &Arc<Queue<u8>>, record: u8) {
    queue.room().await.unwrap().put(record).unwrap();
}

/// The next batch, if there is one for this writer at once.
fn take(queue: &Queue<u8>, writer: Writer) -> Option<Taken<'_, u8>> {
    match pin!(queue.next(writer)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Next::Write(started)) => started.take(),
        Poll::Ready(Next::Nothing) | Poll::Pending => None,
    }
}

#[tokio::test]
async fn once_the_drain_has_begun_the_flusher_gets_nothing() {
    let queue = queue();
    push(&queue, 1).await;
    push(&queue, 2).await;
    let Next::Write(started) = queue.next(Writer::Flusher).await else { panic!("a batch is full") };
    queue.begin_drain(Duration::from_secs(1));
    assert!(started.take().is_none());
    assert!(take(&queue, Writer::Flusher).is_none());
    take(&queue, Writer::Goodbye).unwrap().written();
    assert_eq!(queue.records().written, 2);
}

#[tokio::test]
async fn no_more_batches_are_out_than_may_be_in_flight() {
    let queue = queue();
    for record in 0..4 {
        push(&queue, record).await;
    }
    let first = take(&queue, Writer::Flusher).unwrap();
    assert!(take(&queue, Writer::Flusher).is_none());
    let key = first.batch().key();
    first.returned(Error::new(ErrorKind::Write, "not now"));
    let again = take(&queue, Writer::Flusher).unwrap();
    assert_eq!(**again.batch(), [0, 1], "the oldest first");
    assert_eq!(again.batch().key(), key);
}

#[tokio::test]
async fn a_rejected_batch_comes_again_in_halves_whose_keys_are_always_the_same() {
    let queue = queue();
    push(&queue, 1).await;
    push(&queue, 2).await;
    let whole = take(&queue, Writer::Flusher).unwrap();
    let keys = whole.batch().halves().map(|half| half.key());
    assert!(keys[0] != keys[1] && !keys.contains(&whole.batch().key()));
    whole.rejected(Error::new(ErrorKind::Write, "too long"));
    for (record, key) in [1, 2].into_iter().zip(keys) {
        let half = take(&queue, Writer::Flusher).unwrap();
        assert_eq!((&**half.batch(), half.batch().key()), (&[record][..], key));
        half.rejected(Error::new(ErrorKind::Write, "too long"));
    }
    let records = queue.records();
    assert_eq!((records.lost, records.pending, queue.bytes()), (2, 0, 0));
    assert_eq!(queue.room.available_permits(), 4);
}

#[tokio::test]
async fn what_is_being_written_when_the_drain_gives_up_is_handed_over_and_ends_but_once() {
    let limits = Limits { capacity: 4, batch_size: 2, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
    let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
    let queue = Arc::new(Queue::new("audit", limits, Delivery::ExactlyOnce, callbacks));
    for record in 0..3 {
        push(&queue, record).await;
    }
    let out = take(&queue, Writer::Flusher).unwrap();
    queue.begin_drain(Duration::from_secs(1));
    let left = queue.give_up();
    assert_eq!(left.iter().map(|left| left.batch.to_vec()).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
    out.returned(Error::new(ErrorKind::Write, "not now"));
    for left in left {
        queue.ended(left, Ok(Vec::new()));
    }
    let records = queue.records();
    assert_eq!((records.accepted, records.spilled, records.lost, records.pending), (3, 3, 0, 0));
}

#[tokio::test]
async fn a_record_that_is_larger_than_the_room_is_owed() {
    let limits = Limits { capacity: 4, batch_size: 9, batch_bytes: 4, max_age: Duration::MAX, in_flight: 1 };
    let heap_size: HeapSize<u8> = Arc::new(|record| usize::from(*record));
    let callbacks = Callbacks { heap_size: Some(heap_size), on_lost: None, on_rejected: None };
    let queue = Arc::new(Queue::new("audit", limits, Delivery::AtMostOnce, callbacks));
    push(&queue, 1).await;
    push(&queue, 9).await;
    assert_eq!((queue.bytes(), queue.state().debt, queue.room.available_permits()), (12, 8, 0));
    take(&queue, Writer::Flusher).unwrap().written();
    assert_eq!((queue.bytes(), queue.state().debt, queue.room.available_permits()), (0, 0, 4));
}

#[tokio::test]
async fn room_that_was_held_can_be_filled_until_the_drain_is_over() {
    let queue = queue();
    let (mut early, mut late) = (queue.room().await.unwrap(), queue.room().await.unwrap());
    queue.begin_drain(Duration::from_secs(1));
    early.put(1).unwrap();
    queue.changed().await;
    assert_eq!(queue.bytes(), 1);
    queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
    let refused = late.put(2).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ShuttingDown);
    assert_eq!(refused.into_record(), 2);
    let records = queue.records();
    assert_eq!((records.accepted, records.lost, records.pending), (1, 1, 0));
}

fn exactly_once(batch_size: usize) -> Arc<Queue<u8>> {
    let limits = Limits { capacity: 8, batch_size, batch_bytes: 8, max_age: Duration::MAX, in_flight: 1 };
    let callbacks = Callbacks { heap_size: None, on_lost: None, on_rejected: None };
    Arc::new(Queue::new("audit", limits, Delivery::ExactlyOnce, callbacks))
}

fn error() -> Error {
    Error::new(ErrorKind::Write, "not these")
}

#[tokio::test]
async fn s5_what_the_target_may_have_stays_in_doubt_whenever_the_books_are_closed() {
    for divided in [false, true] {
        let queue = exactly_once(2);
        for record in 0..3 {
            push(&queue, record).await;
        }
        // Cut off in the middle: it comes again.
        drop(take(&queue, Writer::Flusher).unwrap());
        if divided {
            take(&queue, Writer::Flusher).unwrap().rejected(error());
        }
        let records = Accounting::close(&*queue);
        assert_eq!((records.accepted, records.in_doubt, records.lost, records.pending), (3, 2, 1, 0));
    }
}

#[tokio::test]
async fn s6_a_closed_book_never_changes_and_nothing_is_handed_out_any_more() {
    let queue = exactly_once(2);
    for record in 0..5 {
        push(&queue, record).await;
    }
    let out = take(&queue, Writer::Flusher).unwrap();
    let mut room = queue.room().await.unwrap();
    queue.begin_drain(Duration::ZERO);
    let closed = Accounting::close(&*queue);
    assert_eq!((closed.in_doubt, closed.lost), (2, 3));
    assert!(room.put(9).is_err());
    assert!(queue.room().await.is_err(), "nobody waits for room that never comes");
    assert!(take(&queue, Writer::Goodbye).is_none());
    assert!(queue.give_up().is_empty(), "what is reported lost is not spilled");
    out.written();
    queue.close(&error());
    assert_eq!(Accounting::close(&*queue), closed);
    assert_eq!(queue.records(), closed);
}

#[tokio::test]
async fn a_record_that_is_not_spilled_costs_itself_and_not_its_batch() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let limits = Limits { capacity: 8, batch_size: 3, batch_bytes: 8, max_age: Duration::MAX, in_flight: 1 };
    let on_lost: OnLost<u8> = {
        let told = Arc::clone(&told);
        Arc::new(move |records, error| told.lock().unwrap().push((records.to_vec(), error.to_string())))
    };
    let callbacks = Callbacks { heap_size: None, on_lost: Some(on_lost), on_rejected: None };
    let queue = Arc::new(Queue::new("audit", limits, Delivery::ExactlyOnce, callbacks));
    for record in 0..6 {
        push(&queue, record).await;
    }
    // One while running; the other when the drain gives up, and the target may have it.
    let but_for = || vec![(1, Error::new(ErrorKind::Write, "no such number"))];
    take(&queue, Writer::Flusher).unwrap().spilled(but_for());
    drop(take(&queue, Writer::Flusher).unwrap());
    queue.begin_drain(Duration::ZERO);
    for left in queue.give_up() {
        queue.ended(left, Ok(but_for()));
    }
    let records = queue.records();
    assert_eq!((records.spilled, records.lost, records.in_doubt, records.pending), (4, 1, 1, 0));
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, [1]);
    assert!(told[0].1.contains("no such number"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_goodbye_takes_over_what_the_flusher_does_not_bring_back_and_the_first_outcome_counts() {
    for flusher_first in [true, false] {
        let queue = exactly_once(2);
        for record in 0..4 {
            push(&queue, record).await;
        }
        let starved = take(&queue, Writer::Flusher).unwrap();
        queue.begin_drain(Duration::from_secs(2));
        assert!(take(&queue, Writer::Goodbye).is_none(), "first it is waited for");
        tokio::time::advance(Duration::from_secs(2)).await;
        let other = take(&queue, Writer::Goodbye).unwrap();
        assert_eq!(**other.batch(), [2, 3]);
        other.written();
        assert!(take(&queue, Writer::Goodbye).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        let again = take(&queue, Writer::Goodbye).unwrap();
        assert_eq!(again.batch().key(), starved.batch().key());
        let (first, second) = if flusher_first { (starved, again) } else { (again, starved) };
        first.written();
        second.unknown(error());
        let records = queue.records();
        assert_eq!((records.written, records.pending, queue.bytes()), (4, 0, 0));
        assert!(matches!(queue.next(Writer::Goodbye).await, Next::Nothing));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_goodbye_could_not_write_of_the_flushers_is_still_out_and_never_lost() {
    let queue = exactly_once(2);
    push(&queue, 0).await;
    push(&queue, 1).await;
    let starved = take(&queue, Writer::Flusher).unwrap();
    queue.begin_drain(Duration::ZERO);
    let again = take(&queue, Writer::Goodbye).unwrap();
    again.returned(error());
    let again = take(&queue, Writer::Goodbye).unwrap();
    again.lost(error());
    starved.returned(error());
    let records = queue.records();
    assert_eq!((records.in_doubt, records.lost, records.pending), (2, 0, 0));
}

#[tokio::test]
async fn a_batch_is_divided_before_it_is_tried_where_one_of_its_size_was_too_large() {
    let queue = exactly_once(4);
    for record in 0..8 {
        push(&queue, record).await;
    }
    let whole = take(&queue, Writer::Flusher).unwrap();
    let keys = whole.batch().halves().map(|half| half.key());
    assert_eq!(whole.smaller(), Smaller::Divide);
    whole.rejected(error());
    let mut taken = Vec::new();
    while let Some(half) = take(&queue, Writer::Flusher) {
        taken.push((half.batch().key(), half.batch().to_vec()));
        half.written();
    }
    assert_eq!(taken.iter().map(|(_, records)| records.clone()).collect::<Vec<_>>(), [[0, 1], [2, 3], [4, 5], [6, 7]]);
    assert_eq!([taken[0].0, taken[1].0], keys);
    assert_eq!((queue.bytes(), queue.room.available_permits()), (0, 8));
}

#[tokio::test]
async fn a_batch_that_comes_back_after_the_drain_is_in_doubt() {
    let queue = queue();
    push(&queue, 1).await;
    push(&queue, 2).await;
    let out = take(&queue, Writer::Flusher).unwrap();
    queue.begin_drain(Duration::from_secs(1));
    queue.close(&Error::new(ErrorKind::Timeout, "time is up"));
    out.returned(Error::new(ErrorKind::Write, "not now"));
    let records = queue.records();
    assert_eq!((records.accepted, records.in_doubt, records.pending), (2, 2, 0));
}
