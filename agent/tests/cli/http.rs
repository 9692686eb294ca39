//! The API as it is spoken, byte by byte.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use bascule_agent::api::bind;
use bascule_agent::paths::Paths;

use crate::bascule;
use crate::stub::Device;

/// One request as it is written, and the head and body that came back.
fn raw(device: &Device, request: &str) -> (String, serde_json::Value) {
    let mut stream = UnixStream::connect(device.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn malformed_requests_are_answered_with_a_code_and_never_reach_the_loop() {
    let device = Device::start();
    let post = |path: &str, kind: &str, body: &str| {
        let length = body.len();
        raw(
            &device,
            &format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
            ),
        )
    };
    let json = "application/json";
    let huge = format!("{{\"source\":\"/{}\"}}", "x".repeat(20_000));
    for (path, kind, body, status, code) in [
        ("/v1/install", "text/plain", "x", "400", "api.bad-request"),
        ("/v1/install", json, "{", "400", "api.bad-request"),
        ("/v1/install", json, "{\"source\":\"relative\"}", "400", "api.bad-request"),
        ("/v1/install", json, "{\"source\":\"/x\",\"force\":true}", "400", "api.bad-request"),
        ("/v1/install", json, huge.as_str(), "413", "api.too-large"),
        ("/v1/nothing", json, "", "404", "api.not-found"),
        ("/v1/status", json, "", "405", "api.method"),
    ] {
        let (line, answer) = post(path, kind, body);
        let head = body.chars().take(40).collect::<String>();
        assert!(line.contains(status), "{path} {head}: {line}");
        assert_eq!(answer["error"]["code"], code, "{path} {head}");
    }
    assert_eq!(device.events(), Vec::<String>::new());
}

#[test]
fn every_path_of_the_description_is_served_with_its_methods() {
    let device = Device::start();
    let (_, description) = raw(&device, "GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let paths = description["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 16);
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            if path == "/v1/events" {
                continue;
            }
            let method = method.to_uppercase();
            let (line, _) = raw(&device, &format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
            assert!(!line.contains("404") && !line.contains("405"), "{method} {path}: {line}");
        }
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let device = Device::start();
    let paths = Paths::under(device.root());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    assert_eq!(bind(&paths, "nobody-has-this").unwrap_err().code(), "api.already-served");
    device.stop();
    drop(bind(&paths, "nobody-has-this").unwrap());
    // A listener that was dropped leaves its socket behind: it is stale now.
    let listener = bind(&paths, "nobody-has-this").unwrap();
    let mode = std::fs::metadata(paths.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
}

#[test]
fn idle_connections_are_bounded_and_the_one_too_many_is_told_so() {
    let device = Device::start();
    let idle: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(device.socket()).unwrap()).collect();
    let (code, _, err) = bascule(&device, &["status"]);
    assert_eq!(code, 75, "{err}");
    assert!(err.starts_with("error: [api.too-many-connections]"), "{err}");
    drop(idle);
    let begun = std::time::Instant::now();
    while bascule(&device, &["status"]).0 != 0 {
        assert!(begun.elapsed().as_secs() < 20, "closed connections keep their places");
    }
}

#[test]
fn a_caller_that_breaks_off_in_the_middle_of_a_bundle_does_not_look_like_its_end() {
    let device = Device::start();
    let mut stream = UnixStream::connect(device.socket()).unwrap();
    let head = "POST /v1/prepare HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n";
    stream.write_all(format!("{head}content-length: 1000\r\n\r\nonly this").as_bytes()).unwrap();
    device.wait_for("prepare");
    drop(stream);
    device.wait_for("broken");
}
