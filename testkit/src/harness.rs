//! What a backend brings along, so that the suite can run against it.

use std::{fmt, future::Future, time::Duration};

#[cfg(feature = "containers")]
use tokio::sync::{Mutex, MutexGuard};
use winddown_core::{BoxError, Checkouts, Error};

#[cfg(feature = "containers")]
use crate::containers::Container;
use crate::{Stranger, gone, proxy::Proxy};

/// What a checkout of this harness's resource derefs to.
pub type CheckoutOf<H> = <<H as Harness>::Resource as Checkouts>::Checkout;

/// One backend under test: its resource, its server, and what that server says.
///
/// Each case starts a harness of its own and [ends](Self::end) it. What the suite asserts is what the *server* lists,
/// asked for on a connection of the harness's own, never what the driver believes.
///
/// Four methods are required: [`start`](Self::start), [`resource`](Self::resource), [`ping`](Self::ping) and
/// [`sessions`](Self::sessions). With these the cases run that need nothing else, against any server that can list its
/// sessions. Each of the others lets more of them apply: implement it, and take its [`Need`] out of [`LACKS`](Self::LACKS).
///
/// Implement the methods as `async fn`. Those that break the server do so to its `container`, if there is one, and fail
/// otherwise. An error that a method returns fails the case.
pub trait Harness: Send + Sync + Sized + 'static {
    /// The resource under test.
    type Resource: Checkouts + fmt::Debug;

    /// What it is called in the names of tests and in the summary: `postgres_17`.
    const NAME: &'static str;

    /// What this backend cannot do, and why. A case that needs it does not apply: it is no test, and the reason is
    /// printed.
    ///
    /// By default all that a harness must [bring](Need::BROUGHT_BY_NOBODY) itself. Whoever brings something writes a list
    /// of what is left.
    const LACKS: &'static [(Need, &'static str)] = Need::BROUGHT_BY_NOBODY;

    /// The faults that end what others do on the server too, without anybody touching them. A case with one of them has no
    /// [stranger](Self::stranger) from its beginning.
    const ENDS_ALL: &'static [Need] = &[Need::Kill];

    /// Whether the resource takes a checkout that it cuts from its holder, who then gets an error. Where the driver alone has
    /// the socket, and the server cannot be reached, it cannot.
    const CUTS_HOLDERS: bool = true;

    /// Why nothing of this harness is run today, if somebody has asked for that: its tests are then listed as ignored,
    /// with the reason.
    fn skipped() -> Option<String> {
        None
    }

    /// A server to use, and the way to ask it: best from [`Servers`](crate::Servers), which has one that is shared and
    /// leases others.
    ///
    /// Called on the runtime of the case, which ends with the case: what is shared between cases must not live on it.
    fn start(server: ServerUse) -> impl Future<Output = Result<Self, BoxError>> + Send;

    /// A resource of this server, not yet initialised. May be called more than once.
    fn resource(&self, setup: &Setup) -> Self::Resource;

    /// Runs a statement that takes so long on the server, and leaves one row behind when it ends there (see
    /// [`rows`](Self::rows)). It leaves none when it is cancelled, and runs on at the server when this future is
    /// dropped. Uses the checkout and nothing else: the case may have it on another runtime.
    fn run(
        &self,
        checkout: &mut CheckoutOf<Self>,
        takes: Duration,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = (checkout, takes);
        std::future::ready(Err(not_implemented::<Self>(Need::Statements)))
    }

    /// One round trip. Uses the checkout and nothing else.
    fn ping(&self, checkout: &mut CheckoutOf<Self>) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Somebody else on this server, with the user of the resource: see [`Stranger`]. In no count of this harness, and none of
    /// its faults is for it, as far as it does not hit the whole server. What it waits in has begun when this returns.
    ///
    /// Every case has one, but those with a fault that [ends all](Self::ENDS_ALL): where the server is there again, they make theirs
    /// then.
    fn stranger(&self) -> impl Future<Output = Result<Stranger, BoxError>> + Send {
        std::future::ready(Err(not_implemented::<Self>(Need::Strangers)))
    }

    /// How many rows [`run`](Self::run) has left, in all cases of this harness value.
    fn rows(&self) -> impl Future<Output = Result<usize, BoxError>> + Send {
        std::future::ready(Err(not_implemented::<Self>(Need::Statements)))
    }

    /// How many sessions of this harness's resources the server lists at this moment, without the harness's own.
    fn sessions(&self) -> impl Future<Output = Result<usize, BoxError>> + Send;

    /// How many of them are inside of the statement of [`run`](Self::run). Best by something that only this one does: a
    /// server may list for a moment as busy who has answered already.
    fn running(&self) -> impl Future<Output = Result<usize, BoxError>> + Send {
        let lacks = Self::lacks(Need::Statements);
        std::future::ready(if lacks { Ok(0) } else { Err(not_implemented::<Self>(Need::Statements)) })
    }

    /// The container of the server, for the faults below; `None` where the harness brings faults of its own.
    #[cfg(feature = "containers")]
    fn container(&self) -> Option<&Mutex<Container>> {
        None
    }

    /// What is between the resource and a server of its own, to be [slow](Self::slow), and to count what travels.
    fn proxy(&self) -> Option<&Proxy> {
        None
    }

    /// The server, or the way to it, was gone and is back: the sessions of the harness itself are opened anew.
    fn ask_anew(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// The server answers nothing any more, and its connections stay open: a stopped process.
    fn pause(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { contained(self, Need::Pause, Fault::Pause).await }
    }

    /// The end of [`pause`](Self::pause).
    fn resume(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { contained(self, Need::Pause, Fault::Resume).await }
    }

    /// The server is gone at once, without a goodbye: SIGKILL.
    fn kill(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { contained(self, Need::Kill, Fault::Kill).await }
    }

    /// The server is there again after [`kill`](Self::kill), under the same address.
    fn start_again(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async {
            contained(self, Need::Kill, Fault::StartAgain).await?;
            self.ask_anew().await
        }
    }

    /// Packets between the resource and the server are lost, both ways, without FIN or RST.
    fn partition(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { contained(self, Need::Partition, Fault::Partition).await }
    }

    /// The end of [`partition`](Self::partition).
    fn heal(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async {
            contained(self, Need::Partition, Fault::Heal).await?;
            self.ask_anew().await
        }
    }

    /// What travels between the resource and the server takes so much longer, in each direction; zero ends it. Also for
    /// connections that are open.
    fn slow(&self, by: Duration) -> impl Future<Output = Result<(), BoxError>> + Send {
        async move {
            let proxy = self.proxy().ok_or_else(|| not_implemented::<Self>(Need::Slow))?;
            proxy.set_delay(by);
            Ok(())
        }
    }

    /// Whether the server refuses every new session of the resource: "too many connections".
    fn full(&self, full: bool) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = full;
        std::future::ready(Err(not_implemented::<Self>(Need::Full)))
    }

    /// The server ends every session of the resource that is idle, as its idle timeout would. They are gone when this
    /// returns.
    fn close_idle(&self) -> impl Future<Output = Result<(), BoxError>> + Send {
        std::future::ready(Err(not_implemented::<Self>(Need::CloseIdle)))
    }

    /// What the server's log says of clients of this harness value that went away badly. Asked for after clean drains,
    /// and must then be empty.
    fn complaints(&self) -> impl Future<Output = Result<Vec<String>, BoxError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// The password that the resource is given: must be in no Debug, no report, no error and no log. Best a different
    /// one for each harness value, since the logs of the whole process are searched for it.
    fn secret(&self) -> Option<&str> {
        None
    }

    /// Gives back what [`start`](Self::start) took, whatever became of the case. By default there is nothing.
    ///
    /// # Errors
    /// When the server still lists a session of this harness value, once those that were cut have had a moment to end.
    fn end(self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async move {
            match gone(|| self.sessions()).await? {
                0 => Ok(()),
                listed => Err(format!("the server still lists {listed} sessions").into()),
            }
        }
    }

    /// Whether it [lacks](Self::LACKS) this.
    fn lacks(need: Need) -> bool {
        Self::LACKS.iter().any(|(lacked, _)| *lacked == need)
    }
}

/// A harness whose resource can also be used in a process of its own, which finds the same server.
pub trait InProcess: Harness {
    /// The variables by which [`from_env`](Self::from_env) finds the server of this value.
    fn environment(&self) -> Vec<(&'static str, String)>;

    /// A resource of that server, in that process.
    ///
    /// # Errors
    /// When the variables do not say enough.
    fn from_env() -> Result<Self::Resource, Error>;
}

/// What is done to a container.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Pause,
    Resume,
    Kill,
    StartAgain,
    Partition,
    Heal,
}

#[cfg(feature = "containers")]
async fn contained<H: Harness>(harness: &H, need: Need, fault: Fault) -> Result<(), BoxError> {
    let mut container: MutexGuard<'_, Container> = match harness.container() {
        Some(container) => container.lock().await,
        None => return Err(not_implemented::<H>(need)),
    };
    let done = match fault {
        Fault::Pause => container.pause().await,
        Fault::Resume => container.resume().await,
        Fault::Kill => container.kill().await,
        Fault::StartAgain => container.start_again().await,
        Fault::Partition => container.partition().await,
        Fault::Heal => container.heal().await,
    };
    Ok(done?)
}

#[cfg(not(feature = "containers"))]
async fn contained<H: Harness>(_: &H, need: Need, _: Fault) -> Result<(), BoxError> {
    Err(not_implemented::<H>(need))
}

fn not_implemented<H: Harness>(need: Need) -> BoxError {
    format!("{}: {need} is neither implemented nor in `LACKS`", H::NAME).into()
}

/// Which server a case wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerUse {
    /// Any: others may use it at the same time. What the harness counts is its own nevertheless: by a database, a user
    /// or an application name of its own.
    Shared,
    /// One that nobody else uses at the same time: the case will break it.
    Own,
}

/// How a case wants its resource.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Setup {
    /// Sessions at most.
    ///
    /// Defaults to 4.
    pub size: usize,
    /// Whether it is given a password that the server refuses.
    ///
    /// Defaults to `false`.
    pub wrong_password: bool,
    /// Sessions that were idle for so long are checked with a round trip before they are handed out, where the adapter
    /// has that setting; `None` for the adapter's own default.
    ///
    /// Defaults to `None`.
    pub check_after_idle: Option<Duration>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { size: 4, wrong_password: false, check_after_idle: None }
    }
}

/// What a case may need that not every backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// [`Harness::pause`] and [`Harness::resume`].
    Pause,
    /// [`Harness::kill`] and [`Harness::start_again`].
    Kill,
    /// [`Harness::partition`] and [`Harness::heal`].
    Partition,
    /// [`Harness::slow`].
    Slow,
    /// [`Harness::full`].
    Full,
    /// [`Harness::close_idle`].
    CloseIdle,
    /// [`Setup::wrong_password`] and [`Harness::secret`].
    Password,
    /// What the server has closed is replaced when it is used next. A connection that its application has opened once is not.
    Replaces,
    /// It sees every session that its driver opens when it sends again what a server that is gone has not answered.
    SeesAll,
    /// The resource is initialised, and opens its first session then. A pool that the application has built is open already, and is
    /// drained though nobody used it.
    Init,
    /// [`Setup::size`] is a limit: who asks for one more waits. Clients that share one connection have none.
    Slots,
    /// [`Harness::run`], [`Harness::rows`] and [`Harness::running`]: the server has statements that take time.
    Statements,
    /// The resource stops what runs on the server: [`Capabilities::cancel`](winddown_core::Capabilities::cancel).
    Cancel,
    /// [`Harness::stranger`].
    Strangers,
    /// [`Harness::proxy`].
    Proxy,
    /// Its sessions say goodbye whatever the application's runtime does: where tasks of the driver have to be polled there for
    /// that, one that is blocked keeps them from it.
    DrivesItself,
    /// The resource's sessions outlive the runtime on which they were opened.
    OutlivesRuntime,
}

impl Need {
    /// All that a harness has to implement, and nothing of what is a matter of its resource.
    pub const BROUGHT_BY_NOBODY: &'static [(Self, &'static str)] = &[
        (Self::Pause, NOT_BROUGHT),
        (Self::Kill, NOT_BROUGHT),
        (Self::Partition, NOT_BROUGHT),
        (Self::Slow, NOT_BROUGHT),
        (Self::Full, NOT_BROUGHT),
        (Self::CloseIdle, NOT_BROUGHT),
        (Self::Password, NOT_BROUGHT),
        (Self::Statements, NOT_BROUGHT),
        (Self::Strangers, NOT_BROUGHT),
        (Self::Proxy, NOT_BROUGHT),
    ];
}

const NOT_BROUGHT: &str = "the harness does not bring it";

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::Partition => "partition",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::CloseIdle => "close idle",
            Self::Password => "password",
            Self::Replaces => "replaces",
            Self::SeesAll => "sees all",
            Self::Init => "init",
            Self::Slots => "slots",
            Self::Statements => "statements",
            Self::Cancel => "cancel",
            Self::Strangers => "strangers",
            Self::Proxy => "a proxy",
            Self::DrivesItself => "drives itself",
            Self::OutlivesRuntime => "outlives its runtime",
        })
    }
}

/// What a harness has in common with another one, which has the server: all but what is about the resource itself, and its [`secret`](Harness::secret).
///
/// `harness_of!(0);` inside of `impl Harness for Wrapped`, where the field `0` is the other harness, whose checkouts are the same.
/// Where they are others, `harness_of!(server of 0);` leaves out what is done with one, too: [`run`](Harness::run) and
/// [`ping`](Harness::ping).
#[macro_export]
macro_rules! harness_of {
    ($field:tt) => {
        $crate::harness_of!(server of $field);

        async fn run(&self, checkout: &mut $crate::CheckoutOf<Self>, takes: ::std::time::Duration) -> $crate::Outcome {
            self.$field.run(checkout, takes).await
        }

        async fn ping(&self, checkout: &mut $crate::CheckoutOf<Self>) -> $crate::Outcome {
            self.$field.ping(checkout).await
        }
    };
    (server of $field:tt) => {
        async fn stranger(&self) -> $crate::Outcome<$crate::Stranger> {
            self.$field.stranger().await
        }

        async fn rows(&self) -> $crate::Outcome<usize> {
            self.$field.rows().await
        }

        async fn sessions(&self) -> $crate::Outcome<usize> {
            self.$field.sessions().await
        }

        async fn running(&self) -> $crate::Outcome<usize> {
            self.$field.running().await
        }

        async fn ask_anew(&self) -> $crate::Outcome {
            self.$field.ask_anew().await
        }

        async fn pause(&self) -> $crate::Outcome {
            self.$field.pause().await
        }

        async fn resume(&self) -> $crate::Outcome {
            self.$field.resume().await
        }

        async fn kill(&self) -> $crate::Outcome {
            self.$field.kill().await
        }

        async fn start_again(&self) -> $crate::Outcome {
            self.$field.start_again().await
        }

        async fn partition(&self) -> $crate::Outcome {
            self.$field.partition().await
        }

        async fn heal(&self) -> $crate::Outcome {
            self.$field.heal().await
        }

        async fn slow(&self, by: ::std::time::Duration) -> $crate::Outcome {
            self.$field.slow(by).await
        }

        async fn full(&self, full: bool) -> $crate::Outcome {
            self.$field.full(full).await
        }

        async fn close_idle(&self) -> $crate::Outcome {
            self.$field.close_idle().await
        }

        async fn complaints(&self) -> $crate::Outcome<::std::vec::Vec<::std::string::String>> {
            self.$field.complaints().await
        }

        async fn end(self) -> $crate::Outcome {
            self.$field.end().await
        }
    };
}

/// What a harness's methods return.
pub type Outcome<T = ()> = Result<T, BoxError>;
