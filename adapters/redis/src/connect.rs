//! How a server is reached and logged on to.

use std::{collections::HashMap, fmt, sync::Arc};

use futures_util::{SinkExt as _, StreamExt as _};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisResult, Value, ValueCodec, cmd,
    from_redis_value,
};
use tokio::io::AsyncWriteExt as _;
use tokio_util::codec::Framed;
use winddown_core::{
    Credentials, Error, ErrorKind,
    adapter::{Ledger, Opening, Outdated, credentials},
};
use winddown_net::{Server, Socket};

use crate::{
    config::Config,
    error::{closed, error, is_unknown, login},
    handle::Handle,
    identity::Identity,
    listening::Listener,
    sentinel::Sentinel,
    sessions::{Sessions, open_on},
    stream::Stream,
    tls::Tls,
    waits::Waits,
};

/// Opens sessions and enters them in the book.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) ledger: Arc<Ledger>,
    /// Which sessions are not to be handed out any more, because of what others have shown.
    pub(crate) outdated: Arc<Outdated>,
    pub(crate) config: Config,
    pub(crate) tls: Tls,
    /// Who is asked where the primary is; none where that is known.
    pub(crate) sentinels: Vec<Sentinel>,
}

/// The server of this URL.
pub(crate) fn server(info: &ConnectionInfo) -> Result<Server, Error> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Ok(Server::tcp(host, *port)),
        ConnectionAddr::Unix(path) => Ok(Server::Unix(path.clone())),
        other => Err(Error::new(ErrorKind::Config, format!("the driver's address {other} is of no known kind"))),
    }
}

/// How to reach the server of a session once more, to stop what it runs.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) at: winddown_net::Endpoint,
    pub(crate) server: Server,
    pub(crate) tls: Tls,
    pub(crate) login: Login,
}

/// Who logs on, and what for.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) name: Option<String>,
    /// The name and the version of the library, where it is to be told.
    pub(crate) library: Option<(String, String)>,
    pub(crate) database: i64,
    pub(crate) protocol: ProtocolVersion,
    /// Whether the session is of use with a primary alone.
    pub(crate) writes: bool,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("database", &self.database).finish_non_exhaustive()
    }
}

impl Connector {
    /// Opens a session with this server, or with the primary of that name where there are sentinels to ask.
    ///
    /// # Cancel safety
    /// Cancel safe: a session that is being opened then is ended with a goodbye as soon as it is open.
    pub(crate) async fn open(&self, server: &Server) -> Result<Handle, Error> {
        self.is_wanted()?;
        let listener = self.config.push_sender.as_ref().map(Listener::of);
        let mut config = AsyncConnectionConfig::new();
        if let Some(listener) = &listener {
            config = config.set_push_sender(listener.pushes());
        }
        let handle = match server {
            Server::Tcp { host, .. } if !self.sentinels.is_empty() => {
                let primary = self.primary(host).await?;
                self.open_with(&primary, config).await
            }
            server => self.open_with(server, config).await,
        }?;
        if let Some(listener) = listener {
            listener.has(&handle, &self.config);
        }
        Ok(handle)
    }

    /// Nobody is troubled any more once the drain is over.
    fn is_wanted(&self) -> Result<(), Error> {
        if self.sessions.is_over() {
            return Err(Error::new(ErrorKind::ShuttingDown, "shutting down: nothing is opened any more"));
        }
        Ok(())
    }

    /// Opens a session with this server: at the first of its addresses that answers. With these settings of the driver's,
    /// as far as they are about its side alone.
    ///
    /// # Cancel safety
    /// As [`open`](Self::open).
    pub(crate) async fn open_with(&self, server: &Server, config: AsyncConnectionConfig) -> Result<Handle, Error> {
        self.is_wanted()?;
        let mut login = self.config.login();
        if let Some(credentials) = credentials(self.config.credentials.as_deref()).await? {
            login.is(credentials);
        }
        let opening = async |at: winddown_net::Endpoint| {
            let opening = at.opening();
            let socket = at.dial(&opening).await?;
            let endpoint = Endpoint { at, server: server.clone(), tls: self.tls.clone(), login: login.clone() };
            open_on(self, socket, endpoint, opening, config.clone()).await
        };
        self.config.connector().open([server.clone()], opening).await
    }
}

impl Endpoint {
    /// Logs on over a connected socket. Returns the stream, and how the server knows the session, if it tells.
    pub(crate) async fn log_in(&self, opening: &Opening, socket: Socket) -> Result<(Stream, Option<Identity>), Error> {
        let host = self.at.host.as_deref();
        let transport = opening.step("TLS", self.tls.negotiate(socket, host)).await??;
        let mut dialogue = Dialogue::new(Stream::over(transport));
        let identity = opening.step("the login", self.login.open(&mut dialogue)).await??;
        Ok((dialogue.into_stream(), identity))
    }

    /// A session of ours alone, that is in no book: also where the process has no descriptor left.
    pub(crate) async fn dialogue(&self) -> Result<(Dialogue, Option<Identity>), Error> {
        let opening = self.at.opening();
        let socket = self.at.dial_anyway(&opening).await?;
        let (stream, identity) = self.log_in(&opening, socket).await?;
        Ok((Dialogue::new(stream), identity))
    }
}

impl Login {
    pub(crate) fn is(&mut self, credentials: Credentials) {
        let (user, password) = credentials.into_parts();
        if user.is_some() {
            self.user = user;
        }
        self.password = Some(password);
    }

    /// Opens a session. Returns how the server knows it, if it tells.
    async fn open(&self, dialogue: &mut Dialogue) -> Result<Option<Identity>, Error> {
        let failed = |source| error(ErrorKind::Init, "cannot open a session", source);
        let answers = dialogue.ask(&self.commands()).await.map_err(failed)?;
        match answers.first() {
            Some(Value::ServerError(refusal)) if is_unknown(refusal) && !self.protocol.supports_resp3() => {
                self.check_of_old(dialogue.ask(&self.commands_of_old()).await.map_err(failed)?)
            }
            _ => self.check(answers),
        }
    }

    fn authenticates(&self) -> bool {
        self.user.is_some() || self.password.is_some()
    }

    /// All that opens a session, in one message.
    fn commands(&self) -> Vec<Cmd> {
        let mut hello = cmd("HELLO");
        hello.arg(if self.protocol.supports_resp3() { 3 } else { 2 });
        if self.authenticates() {
            let password = self.password.as_deref().unwrap_or_default();
            hello.arg("AUTH").arg(self.user.as_deref().unwrap_or("default")).arg(password);
        }
        if let Some(name) = &self.name {
            hello.arg("SETNAME").arg(name);
        }
        let mut commands = vec![hello];
        commands.extend(self.select());
        if let Some((name, version)) = &self.library {
            for (key, value) in [("LIB-NAME", name), ("LIB-VER", version)] {
                let mut info = cmd("CLIENT");
                info.arg("SETINFO").arg(key).arg(value);
                commands.push(info);
            }
        }
        commands.extend(Identity::questions());
        commands
    }

    fn select(&self) -> Option<Cmd> {
        (self.database != 0).then(|| cmd("SELECT").arg(self.database).take())
    }

    /// The same for a server that does not know `HELLO`: one of before Redis 6, or a proxy.
    fn commands_of_old(&self) -> Vec<Cmd> {
        let mut commands = Vec::new();
        if self.authenticates() {
            let mut auth = cmd("AUTH");
            if let Some(user) = &self.user {
                auth.arg(user);
            }
            commands.push(auth.arg(self.password.as_deref().unwrap_or_default()).take());
        }
        commands.extend(self.select());
        commands.push(cmd("CLIENT").arg("ID").take());
        if self.writes {
            commands.push(cmd("ROLE"));
        }
        if let Some(name) = &self.name {
            commands.push(cmd("CLIENT").arg("SETNAME").arg(name).take());
        }
        commands.extend(Identity::questions());
        commands
    }

    fn check_of_old(&self, mut answers: Vec<Value>) -> Result<Option<Identity>, Error> {
        let about_itself =
            (answers.len() == self.commands_of_old().len()).then(|| answers.split_off(answers.len() - 2));
        let mut answers = answers.into_iter();
        let mut next = || answers.next().ok_or_else(|| error(ErrorKind::Init, "cannot open a session", closed()));
        let steps = usize::from(self.authenticates()) + usize::from(self.database != 0);
        for _ in 0..steps {
            if let Value::ServerError(refusal) = next()? {
                return Err(login(refusal));
            }
        }
        let id = match next()? {
            Value::Int(id) => Some(id),
            Value::ServerError(refusal) if refusal.code() == "NOAUTH" => return Err(login(refusal)),
            // It can do without, but for being told what to end.
            _ => None,
        };
        if self.writes
            && let Value::Array(role) = next()?
        {
            is_primary(role.first())?;
        }
        // What the server says to the name changes nothing. Where it knows no `CLIENT INFO`, nothing will be proven.
        Ok(id.map(|id| Identity::new(id, about_itself.as_deref())))
    }

    fn check(&self, mut answers: Vec<Value>) -> Result<Option<Identity>, Error> {
        // The answers to what was asked last. A server that does not know the questions, or this user's right to them, says so.
        let about_itself = (answers.len() == self.commands().len()).then(|| answers.split_off(answers.len() - 2));
        let mut answers = answers.into_iter();
        let hello = match answers.next() {
            Some(Value::ServerError(refusal)) => return Err(login(refusal)),
            Some(hello) => hello,
            None => return Err(error(ErrorKind::Init, "cannot open a session", closed())),
        };
        if self.database != 0
            && let Some(Value::ServerError(refusal)) = answers.next()
        {
            return Err(login(refusal));
        }
        // What the server says to the library's name changes nothing.
        let unclear = |source| {
            let text = "the server's answer to HELLO is none: is it Redis or Valkey?";
            Error::new(ErrorKind::Init, text).with_source(source)
        };
        let hello: HashMap<String, Value> = from_redis_value(hello).map_err(unclear)?;
        if self.writes {
            is_primary(hello.get("role"))?;
        }
        Ok(match hello.get("id") {
            Some(Value::Int(id)) => Some(Identity::new(*id, about_itself.as_deref())),
            _ => None,
        })
    }
}

/// What does not tell its role is taken for one.
fn is_primary(role: Option<&Value>) -> Result<(), Error> {
    if role.is_none_or(|role| *role == Value::BulkString(b"master".into())) {
        return Ok(());
    }
    let text = "the server is no primary any more, and the sentinels do not know it yet";
    Err(Error::new(ErrorKind::Init, text).retryable())
}

/// Questions and answers, in turns.
pub(crate) struct Dialogue(Framed<Stream, ValueCodec>);

impl Dialogue {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(Framed::new(stream, ValueCodec::default()))
    }

    /// The answers to these, in their order. An error that the server answers is one of them. Fewer where the server closes
    /// its side after some: one that is full gives one answer to all.
    pub(crate) async fn ask(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut packed = Vec::new();
        for command in commands {
            command.write_packed_command(&mut packed);
        }
        self.0.send(packed).await?;
        let mut answers = Vec::with_capacity(commands.len());
        while answers.len() < commands.len() {
            match self.0.next().await.unwrap_or_else(|| Err(closed())) {
                // Is no answer to anything.
                Ok(Value::Push { .. }) => {}
                Ok(answer) => answers.push(answer),
                Err(error) if answers.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(answers)
    }

    fn into_stream(self) -> Stream {
        // Nothing was asked that is not answered, so nothing was read too far.
        self.0.into_inner()
    }

    /// Says goodbye, and waits until the server has closed its side.
    pub(crate) async fn close(self) -> std::io::Result<()> {
        self.into_stream().shutdown().await
    }
}
