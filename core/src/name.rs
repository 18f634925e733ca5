//! Who a client says it is.

use std::{env, path::Path};

/// By what name a server is to list the sessions of this process, where nobody has given one: that of the Lambda function
/// (`AWS_LAMBDA_FUNCTION_NAME`), or of the program; for an adapter.
pub fn client_name() -> Option<String> {
    let function = env::var("AWS_LAMBDA_FUNCTION_NAME").ok();
    function.or_else(|| {
        let program = env::args_os().next()?;
        Some(Path::new(&program).file_name()?.to_string_lossy().into_owned())
    })
}
