//! Turns a panic of foreign code into an error, so that it costs one resource and not the drain (L2); and where panics end
//! the process, says what that loses.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{self, AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, Once, PoisonError, Weak, mpsc},
    task::Poll,
    thread,
    time::Duration,
};

use crate::{Error, ErrorKind, accounting::Accounting, log_line::error_line, standard_error::write_line};

/// Runs the future; a panic in it becomes an error of kind [`ErrorKind::Panicked`].
///
/// Unwind safety: the future is dropped, not polled again, after it has panicked.
pub(crate) async fn catch<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(error(&*panic))),
    })
    .await
}

/// The error for a caught panic, with its message where it is text.
pub(crate) fn error(panic: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Panicked, format!("panicked: {}", panic_message(panic)))
}

/// What a caught panic says, in one line.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").replace('\n', " ")
}

/// The accounting of this process.
static WATCHED: Mutex<Vec<Weak<dyn Accounting>>> = Mutex::new(Vec::new());

/// What is pending in these accounting is lost when the process aborts.
pub(crate) fn watch(accounting: &Arc<dyn Accounting>) {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|accounting| accounting.strong_count() > 0);
    watched.push(Arc::downgrade(accounting));
}

/// In a program that was built with `panic = "abort"`: says, behind what the panic itself prints, how many records end with
/// the process. Nothing more can be done there. In any other program a panic costs a task, and this does nothing.
pub(crate) fn tell_what_an_abort_loses() {
    static ONCE: Once = Once::new();
    if !cfg!(panic = "abort") {
        return;
    }
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            before(info);
            say_what_is_lost();
        }));
    });
}

/// How long a panic waits for the accounting: the thread that panics may hold one of them.
const PATIENCE: Duration = Duration::from_millis(200);

fn say_what_is_lost() {
    let (sender, said) = mpsc::channel();
    let say = move || {
        let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(line) = lost_line(pending(&watched)) {
            write_line(&line);
        }
        // Whoever waited may have given up.
        let _ = sender.send(());
    };
    if thread::Builder::new().name("winddown-panic".into()).spawn(say).is_ok() {
        let _ = said.recv_timeout(PATIENCE);
    }
}

/// Records that are neither written nor anything else.
fn pending(watched: &[Weak<dyn Accounting>]) -> u64 {
    watched.iter().filter_map(Weak::upgrade).map(|accounting| accounting.records().pending).sum()
}

fn lost_line(records: u64) -> Option<String> {
    let message = || format!("{records} records were accepted and are not written");
    let advice = "a panic ends this process without a drain, for it was built with `panic = \"abort\"`";
    (records > 0).then(|| error_line(&message(), advice))
}

#[cfg(all(test, not(winddown_loom)))]
mod tests {
    use super::*;
    use crate::adapter::Ledger;

    #[test]
    fn what_an_abort_loses_is_what_is_pending() {
        let ledgers = [Arc::new(Ledger::default()), Arc::new(Ledger::default())];
        let accounting = ledgers.each_ref().map(|ledger| Arc::clone(ledger) as Arc<dyn Accounting>);
        let watched = accounting.each_ref().map(Arc::downgrade);
        assert_eq!(lost_line(pending(&watched)), None);
        assert!(ledgers[0].accepted(3) && ledgers[1].accepted(2));
        ledgers[0].writing(1);
        ledgers[0].written(1);
        let line = lost_line(pending(&watched)).unwrap();
        assert!(line.contains("4 records"), "{line}");
        drop((ledgers, accounting));
        assert_eq!(pending(&watched), 0);
    }
}
