//! Servers that belong together, as one: what is done to it is done to all, and what is counted is the sum.

use std::sync::Arc;

use futures_util::future::try_join_all;
use redis::{aio::MultiplexedConnection, cmd};
use tokio::sync::Mutex;
use winddown_core::BoxError;
use winddown_testkit::{Leasable, Stranger, gone};

use crate::server::{Listed, ROWS, Server, Tenant, end_sessions, refuse_all, stranger};

/// The servers of one set-up.
pub(crate) struct Group {
    pub(crate) servers: Vec<Server>,
}

impl Group {
    pub(crate) async fn pause(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.pause().await)).await?;
        Ok(())
    }

    pub(crate) async fn resume(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.resume().await)).await?;
        Ok(())
    }

    pub(crate) async fn kill(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.kill().await)).await?;
        Ok(())
    }

    pub(crate) async fn start_again(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.start_again().await)).await?;
        Ok(())
    }

    pub(crate) async fn partition(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.partition().await)).await?;
        Ok(())
    }

    pub(crate) async fn heal(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.heal().await)).await?;
        Ok(())
    }

    pub(crate) async fn restore(&self) -> Result<(), BoxError> {
        try_join_all(self.servers.iter().map(async |server| server.container.lock().await.restore().await)).await?;
        Ok(())
    }

    pub(crate) async fn remove(self) -> Result<(), BoxError> {
        try_join_all(self.servers.into_iter().map(Leasable::remove)).await?;
        Ok(())
    }
}

/// A tenant on each server of a group, and the superuser's sessions with all of them.
pub(crate) struct Watch {
    pub(crate) group: Arc<Group>,
    pub(crate) tenant: Tenant,
    superusers: Mutex<Vec<MultiplexedConnection>>,
}

impl Watch {
    pub(crate) async fn start(group: Arc<Group>) -> Result<Self, BoxError> {
        let tenant = Tenant::new();
        let superusers = Mutex::default();
        let watch = Self { group, tenant, superusers };
        watch.ask_anew().await?;
        Ok(watch)
    }

    /// Its sessions anew: the servers, or the way to them, were gone, and the tenant may be.
    pub(crate) async fn ask_anew(&self) -> Result<(), BoxError> {
        let mut superusers = try_join_all(self.group.servers.iter().map(Server::superuser)).await?;
        try_join_all(superusers.iter_mut().map(|superuser| self.tenant.create_on(superuser))).await?;
        *self.superusers.lock().await = superusers;
        Ok(())
    }

    /// In the order of the servers.
    pub(crate) async fn superusers(&self) -> Vec<MultiplexedConnection> {
        self.superusers.lock().await.clone()
    }

    /// What each server says of each of the tenant's sessions with it.
    pub(crate) async fn listed(&self) -> Result<Vec<Vec<Listed>>, BoxError> {
        let mut superusers = self.superusers().await;
        try_join_all(superusers.iter_mut().map(|superuser| Listed::of(&self.tenant, superuser))).await
    }

    pub(crate) async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.listed().await?.iter().map(Vec::len).sum())
    }

    pub(crate) async fn running(&self) -> Result<usize, BoxError> {
        Ok(self.listed().await?.iter().flatten().filter(|session| session.is_blocked()).count())
    }

    /// A stranger on this server.
    pub(crate) async fn stranger(&self, server: usize) -> Result<Stranger, BoxError> {
        stranger(&self.tenant, self.group.servers[server].address).await
    }

    /// How many rows this server has.
    pub(crate) async fn rows(&self, server: usize) -> Result<usize, BoxError> {
        let rows = self.tenant.key(ROWS);
        Ok(cmd("LLEN").arg(rows).query_async(&mut self.superusers().await[server]).await?)
    }

    pub(crate) async fn refuse_all(&self, full: bool) -> Result<(), BoxError> {
        let mut superusers = self.superusers().await;
        try_join_all(superusers.iter_mut().map(|superuser| refuse_all(superuser, full))).await?;
        Ok(())
    }

    pub(crate) async fn close_idle(&self) -> Result<(), BoxError> {
        let superusers = self.superusers().await;
        let ending = superusers.iter().map(|superuser| end_sessions(&self.tenant, superuser, |one| !one.is_blocked()));
        try_join_all(ending).await?;
        Ok(())
    }

    /// The end of a case on servers that are shared.
    pub(crate) async fn end(self) -> Result<(), BoxError> {
        let left = gone(|| self.sessions()).await?;
        for superuser in &mut self.superusers().await {
            self.tenant.drop_on(superuser).await?;
        }
        match left {
            0 => Ok(()),
            left => Err(format!("the servers still list {left} sessions").into()),
        }
    }
}
