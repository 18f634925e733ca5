//! SQLite through deadpool-sqlite as a winddown resource.
