//! The suite against the in-memory resource: with no services, so the suite itself is checked on every machine.

mod memory;

winddown_testkit::conformance!(memory::InMemory);
