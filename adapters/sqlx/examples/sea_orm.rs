//! SeaORM on a pool that is drained.
//!
//! A `DatabaseConnection` is made from the guard's pool, and its statements go to that pool itself, behind the guard: they are no
//! checkouts, and the guard refuses none of them. They are drained all the same: a drain waits for those that still run, and every
//! connection says goodbye. With PostgreSQL it is the same program, with `SqlxPostgresConnector`.
//!
//! `cargo run -p winddown-sqlx --example sea_orm --features sqlx-sqlite`

use std::error::Error;

use sea_orm::{ActiveModelTrait as _, ConnectionTrait as _, EntityTrait as _, Set, SqlxSqliteConnector};
use winddown_core::Lifecycle;
use winddown_sqlx::{
    Sqlx,
    sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};

#[expect(unreachable_pub, reason = "what is derived is public")]
mod visit {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "visit")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        pub page: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("app.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal);

    let lifecycle = Lifecycle::detect()?;
    let guard = lifecycle.guard(Sqlx::new(SqlitePoolOptions::new(), options));
    let db = SqlxSqliteConnector::from_sqlx_sqlite_pool(guard.pool().await?.clone());

    db.execute_unprepared("CREATE TABLE visit(id INTEGER PRIMARY KEY, page TEXT NOT NULL)").await?;
    visit::ActiveModel { page: Set("/".to_owned()), ..Default::default() }.insert(&db).await?;
    let visits = visit::Entity::find().all(&db).await?;
    assert_eq!(visits, [visit::Model { id: 1, page: "/".to_owned() }]);

    let report = lifecycle.drain().await;
    println!("{report}");
    assert!(report.is_clean(), "the report says what was left");
    assert!(!path.with_extension("db-wal").exists(), "the last connection that is closed moves the log into the file");
    Ok(())
}
