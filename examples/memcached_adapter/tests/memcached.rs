//! The conformance suite against memcached in a container.

#[path = "memcached/adapter.rs"]
mod adapter;
#[path = "memcached/guide.rs"]
mod guide;
#[path = "memcached/harness.rs"]
mod harness;

use std::process::ExitCode;

use winddown_testkit::{Suite, containers, trials};

use crate::harness::Memcached16;

fn main() -> ExitCode {
    Suite::new()
        .harness::<Memcached16>()
        .tests(None, trials!(guide: its_snippets_are_this_crate;))
        .tests(
            containers::skipped(),
            trials!(adapter: values_are_stored_and_found what_is_about_to_be_opened_is_in_the_book;),
        )
        .run()
}
