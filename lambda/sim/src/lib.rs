//! A local AWS Lambda lifecycle: init, invoke, freeze, thaw, SIGTERM, SIGKILL.
