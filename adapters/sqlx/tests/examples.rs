//! The examples, each run to its end: what they show they assert.

#[path = "../examples/sea_orm.rs"]
mod sea_orm_on_a_guarded_pool;

#[test]
fn sea_orm_is_drained() {
    sea_orm_on_a_guarded_pool::main().unwrap();
}
