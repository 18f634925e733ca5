//! A function and an external extension that write down every call they make and every signal they get, one line each, in
//! the order in which these happen. Nothing but the two APIs is between them and whoever runs them.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// Where the lines go.
pub(crate) const LOG: &str = "SCRIPTED_LOG";
/// What the function registers as, one after the other: `NAME=EVENT+EVENT`, separated by spaces.
pub(crate) const REGISTER: &str = "SCRIPTED_REGISTER";
/// How its init ends: `error`, `exit`, or well.
pub(crate) const INIT: &str = "SCRIPTED_INIT";
/// The name of the external extension, which is the name of its file.
pub(crate) const EXTENSION: &str = "watcher";

const FOR_EVER: Duration = Duration::from_secs(3600);

/// The function. Returns never.
pub(crate) async fn function() -> ! {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    log("function", "start");
    thread::spawn(work);
    terminate.recv().await;
    log("function", "SIGTERM");
    process::exit(0)
}

fn work() {
    for registration in env::var(REGISTER).unwrap_or_default().split_whitespace() {
        let (name, events) = registration.split_once('=').unwrap();
        if let Some(identifier) = register("function", name, events) {
            // It gets no event that it has not asked for.
            thread::spawn(move || next_event(&identifier));
        }
    }
    match env::var(INIT).as_deref() {
        Ok("error") => {
            let error = json!({ "errorType": "Scripted.Init", "errorMessage": "no luck" });
            log("function", "init error");
            call("POST", "/2018-06-01/runtime/init/error", &[], &error.to_string());
            // Whether it is ended is to be seen; one that exits by itself would race with that.
            sleep(FOR_EVER);
        }
        Ok("exit") => process::exit(3),
        _ => {}
    }
    loop {
        log("function", "next");
        let event = call("GET", "/2018-06-01/runtime/invocation/next", &[], "");
        let id = event.header("lambda-runtime-aws-request-id");
        let wanted: Value = serde_json::from_str(&event.body).unwrap();
        let path = |end: &str| format!("/2018-06-01/runtime/invocation/{id}/{end}");
        match wanted["do"].as_str().unwrap() {
            "error" => {
                let error = json!({ "errorType": "Scripted.Handler", "errorMessage": "no luck" });
                said("error", &call("POST", &path("error"), &[], &error.to_string()));
            }
            "twice" => {
                said("response", &call("POST", &path("response"), &[], "1"));
                said("response again", &call("POST", &path("response"), &[], "2"));
            }
            "unknown" => {
                said("response to nobody", &call("POST", "/2018-06-01/runtime/invocation/nobody/response", &[], "1"));
                said("response", &call("POST", &path("response"), &[], "1"));
            }
            "late" => {
                register("function", "late", "");
                said("response", &call("POST", &path("response"), &[], "1"));
            }
            "hang" => sleep(FOR_EVER),
            "exit" => process::exit(4),
            _ => said("response", &call("POST", &path("response"), &[], "1")),
        }
    }
}

/// The external extension. It ends when it is told to.
pub(crate) fn extension() -> ! {
    log("extension", "start");
    let identifier = register("extension", EXTENSION, "INVOKE+SHUTDOWN").unwrap();
    loop {
        let event: Value = serde_json::from_str(&next_event(&identifier).body).unwrap();
        let kind = event["eventType"].as_str().unwrap();
        let reason = event["shutdownReason"].as_str().unwrap_or_default().to_lowercase();
        log("extension", format!("{kind} {reason}").trim_end());
        if kind == "SHUTDOWN" {
            process::exit(0);
        }
    }
}

fn register(who: &str, name: &str, events: &str) -> Option<String> {
    let events: Vec<_> = events.split('+').filter(|event| !event.is_empty()).collect();
    let body = json!({ "events": events }).to_string();
    let answer = call("POST", "/2020-01-01/extension/register", &[("Lambda-Extension-Name", name)], &body);
    log(who, &format!("register {name} {} -> {}", events.join("+"), answer.verdict()));
    (answer.status == 200).then(|| answer.header("lambda-extension-identifier"))
}

fn next_event(identifier: &str) -> Answer {
    call("GET", "/2020-01-01/extension/event/next", &[("Lambda-Extension-Identifier", identifier)], "")
}

fn said(what: &str, answer: &Answer) {
    log("function", &format!("{what} -> {}", answer.verdict()));
}

fn log(who: &str, line: &str) {
    let mut file = File::options().append(true).open(env::var_os(LOG).unwrap()).unwrap();
    // In one piece, so that lines of two processes do not mix.
    file.write_all(format!("{who}: {line}\n").as_bytes()).unwrap();
}

struct Answer {
    status: u16,
    head: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> String {
        let found = self.head.iter().find(|(key, _)| key == name);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.head)).1.clone()
    }

    /// The status, and the type of the error if it is one.
    fn verdict(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        format!("{} {}", self.status, body["errorType"].as_str().unwrap_or_default()).trim_end().to_owned()
    }
}

/// One request on a connection of its own.
fn call(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let api = env::var("AWS_LAMBDA_RUNTIME_API").unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    let stream = loop {
        match TcpStream::connect(&api) {
            Ok(stream) => break stream,
            // AWS's emulator starts a function before it listens.
            Err(error) => assert!(Instant::now() < patience, "{api}: {error}"),
        }
        sleep(Duration::from_millis(5));
    };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {api}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    (&stream).write_all(request.as_bytes()).unwrap();

    let mut stream = BufReader::new(stream);
    let mut lines = (&mut stream).lines().map(Result::unwrap);
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let head: Vec<(String, String)> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())).unwrap())
        .collect();
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    Answer { status, head, body }
}
