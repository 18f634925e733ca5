//! A pool of the driver's that the application built: what can be done for it from outside.
use std::fmt;
use mysql_async::{Conn, Opts, Pool};
use winddown_core::{Capabilities, Drain, Error, ErrorKind, Resource};
/// x
pub struct Wrapped { pool: Pool, opts: Opts }
impl Wrapped { pub(crate) fn new(pool: Pool, opts: Opts) -> Self { Self { pool, opts } } }
impl Resource for Wrapped {
    type Pool = Pool; type Checkout = Conn;
    fn name(&self) -> &str { "mysql" }
    async fn init(&self) -> Result<Pool, Error> { Ok(self.pool.clone()) }
    async fn checkout(&self, pool: &Pool) -> Result<Conn, Error> { let _ = &self.opts; pool.get_conn().await.map_err(|e| crate::error::error(ErrorKind::Checkout, "no connection", e)) }
    async fn goodbye(&self, _: &Pool, _: &Drain) -> Result<(), Error> { Ok(()) }
    fn capabilities(&self) -> Capabilities { Capabilities::ALL }
}
impl fmt::Debug for Wrapped { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.debug_struct("Wrapped").finish_non_exhaustive() } }
