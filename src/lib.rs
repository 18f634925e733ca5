//! winddown
