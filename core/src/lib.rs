//! The lifecycle, guard, budget and report of winddown.
