//! AWS Lambda functions that drain on SIGTERM.
