//! Requests as events and answers as responses, in the payload format 2.0 that Function URLs and API Gateway's HTTP APIs have.
//!
//! AWS: "Creating and managing Lambda function URLs", invoking; "Working with AWS Lambda proxy integrations for HTTP APIs".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::message;

/// How a streamed answer is called that begins with its status and headers.
pub(super) const WITH_PRELUDE: &str = "application/vnd.awslambda.http-integration-response";

/// What is between them and the body.
pub(super) const SEPARATOR: [u8; 8] = [0; 8];

/// The event for a request.
pub(super) fn of_request(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8], from: IpAddr) -> Value {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut joined = BTreeMap::<&str, Vec<String>>::new();
    for (name, value) in headers.iter().filter(|(name, _)| *name != header::COOKIE) {
        joined.entry(name.as_str()).or_default().push(text(value));
    }
    let joined: BTreeMap<_, _> = joined.into_iter().map(|(name, values)| (name, values.join(","))).collect();
    let cookies: Vec<String> = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| text(value).split("; ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let host = joined.get("host").cloned().unwrap_or_default();
    let domain = host.split(':').next().unwrap_or_default();
    let now = SystemTime::now();
    let (body, is_base64) = match std::str::from_utf8(body) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (BASE64.encode(body), true),
    };
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": uri.path(),
        "rawQueryString": uri.query().unwrap_or_default(),
        "headers": joined,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "winddown-sim",
            "domainName": domain,
            "domainPrefix": domain.split('.').next(),
            "http": {
                "method": method.as_str(),
                "path": uri.path(),
                "protocol": "HTTP/1.1",
                "sourceIp": from.to_string(),
                "userAgent": joined.get("user-agent"),
            },
            "requestId": Uuid::new_v4().to_string(),
            "routeKey": "$default",
            "stage": "$default",
            "time": clf(now),
            "timeEpoch": u64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
        },
        "isBase64Encoded": is_base64,
    });
    // these three are left out where there is nothing
    if !cookies.is_empty() {
        event["cookies"] = cookies.into();
    }
    if let Some(query) = uri.query().filter(|query| !query.is_empty()) {
        event["queryStringParameters"] = json!(parameters(query));
    }
    if !body.is_empty() {
        event["body"] = body.into();
    }
    event
}

/// Decoded, and those with the same name joined with commas.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let mut joined = BTreeMap::<String, String>::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let values = joined.entry(name.into_owned()).or_default();
        if !values.is_empty() {
            values.push(',');
        }
        values.push_str(&value);
    }
    joined
}

/// As in the log of a web server: `03/Dec/2026:10:15:30 +0000`.
fn clf(time: SystemTime) -> String {
    // `Thu, 03 Dec 2026 10:15:30 GMT`
    let date = httpdate::fmt_http_date(time);
    let parts: Vec<&str> = date.split(' ').collect();
    match parts[..] {
        [_, day, month, year, time, _] => format!("{day}/{month}/{year}:{time} +0000"),
        _ => date,
    }
}

/// What a function says of its response.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    status_code: Option<u16>,
    headers: BTreeMap<String, Value>,
    cookies: Vec<String>,
    body: Option<String>,
    is_base64_encoded: bool,
}

/// The response that an answer stands for: as it describes it, or the answer itself as JSON.
pub(super) fn response(answer: &[u8]) -> Response {
    match serde_json::from_slice::<Head>(answer) {
        Ok(mut head) if head.status_code.is_some() => {
            let body = head.body.take().unwrap_or_default();
            let body = if head.is_base64_encoded { BASE64.decode(body) } else { Ok(body.into_bytes()) };
            body.map_or_else(|_| malformed(), |body| of_head(head, Body::from(body)))
        }
        _ => ([(header::CONTENT_TYPE, "application/json")], answer.to_vec()).into_response(),
    }
}

/// The response of a streamed answer, whose head came first.
pub(super) fn streamed(head: &[u8], body: Body) -> Response {
    serde_json::from_slice(head).map_or_else(|_| malformed(), |head| of_head(head, body))
}

fn of_head(head: Head, body: Body) -> Response {
    let mut response = Response::new(body);
    let Ok(status) = StatusCode::from_u16(head.status_code.unwrap_or(200)) else { return malformed() };
    *response.status_mut() = status;
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let headers = head.headers.into_iter().map(|(name, value)| (name, text(value)));
    let cookies = head.cookies.into_iter().map(|cookie| (header::SET_COOKIE.to_string(), cookie));
    for (name, value) in headers.chain(cookies) {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            return malformed();
        };
        // how long it is, the server knows better
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            response.headers_mut().append(name, value);
        }
    }
    if !response.headers().contains_key(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

/// A status or a header that HTTP has not.
fn malformed() -> Response {
    message(StatusCode::BAD_GATEWAY, "Internal Server Error")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(uri: &str, headers: &[(&'static str, &'static str)], body: &[u8]) -> Value {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        of_request(&Method::POST, &uri.parse().expect("a URI"), &map, body, IpAddr::from([127, 0, 0, 1]))
    }

    #[test]
    fn a_request_becomes_an_event_of_format_2() {
        let headers = [("host", "localhost:9000"), ("accept", "a"), ("accept", "b"), ("cookie", "one=1; two=2")];
        let event = event("/orders/1?a=1&b=x%20y&a=2", &headers, b"hello");
        assert_eq!(event["version"], "2.0");
        assert_eq!((&event["rawPath"], &event["rawQueryString"]), (&json!("/orders/1"), &json!("a=1&b=x%20y&a=2")));
        assert_eq!(event["queryStringParameters"], json!({"a": "1,2", "b": "x y"}));
        assert_eq!((&event["headers"]["accept"], &event["cookies"]), (&json!("a,b"), &json!(["one=1", "two=2"])));
        assert_eq!(event["headers"]["cookie"], Value::Null);
        assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!("hello"), &json!(false)));
        let context = &event["requestContext"];
        assert_eq!((&context["http"]["method"], &context["domainName"]), (&json!("POST"), &json!("localhost")));
        assert_eq!(context["time"].as_str().map(str::len), Some("03/Dec/2026:10:15:30 +0000".len()));
    }

    #[test]
    fn bytes_that_are_no_text_are_base64_and_nothing_is_left_out() {
        let binary = event("/", &[], &[0xff, 0]);
        assert_eq!((&binary["body"], &binary["isBase64Encoded"]), (&json!("/wA="), &json!(true)));
        let empty = event("/", &[], b"");
        for absent in ["body", "cookies", "queryStringParameters"] {
            assert_eq!(empty.get(absent), None);
        }
    }

    #[test]
    fn an_answer_describes_its_response_or_is_it() {
        let described = response(br#"{"statusCode":201,"headers":{"x-a":"b","x-n":1},"cookies":["c=1","d=2"],"body":"aGk=","isBase64Encoded":true}"#);
        assert_eq!(
            (described.status(), &described.headers()["x-a"], &described.headers()["x-n"]),
            (StatusCode::CREATED, &"b".parse().expect("a value"), &"1".parse().expect("a value"))
        );
        assert_eq!(described.headers().get_all("set-cookie").iter().count(), 2);
        let plain = response(br#"{"hello":"Ada"}"#);
        assert_eq!(
            (plain.status(), &plain.headers()["content-type"]),
            (StatusCode::OK, &HeaderValue::from_static("application/json"))
        );
        for wrong in [
            r#"{"statusCode":99}"#,
            r#"{"statusCode":200,"headers":{"a b":"c"}}"#,
            r#"{"statusCode":200,"body":"?","isBase64Encoded":true}"#,
        ] {
            assert_eq!(response(wrong.as_bytes()).status(), StatusCode::BAD_GATEWAY, "{wrong}");
        }
    }
}
