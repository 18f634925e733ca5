//! A bounded write buffer that is flushed before its pool is drained.
