//! What pools of an application have in common, whoever they are of.

use winddown_testkit::{Need, Setup};

use crate::server::{PostgreSql, Seventeen};

/// What none of them can.
pub(crate) const LACKS: &[(Need, &str)] = &[
    (Need::Init, "the application has built the pool"),
    (Need::DrivesItself, "its driver's tasks are on the application's runtime"),
];

/// Where the resource finds its server.
pub(crate) fn url(server: &PostgreSql<Seventeen>, setup: &Setup) -> String {
    let (tenant, address) = (&server.tenant, server.address());
    let password = if setup.wrong_password { "not it" } else { &tenant.password };
    format!("postgres://{}:{}@{address}/{}", tenant.name, password.replace(' ', "%20"), tenant.name)
}
