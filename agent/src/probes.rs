//! Health probes of addresses: one that must answer with success, and the server that bundles come from.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bascule_hooks::Requirement;
use bascule_hooks::health::{Probe, ProbeCheck};
use hyper::Uri;

use crate::source::Opener;
use crate::source::http::{HttpError, HttpRead};

/// Those addresses as required checks, and the server of `source`, where it is one, as a wanted one.
#[must_use]
pub fn checks(opener: &Opener, addresses: &[String], source: Option<&str>) -> Vec<ProbeCheck> {
    let address = |url: &String| Arc::new(Address { opener: opener.clone(), url: url.clone() });
    let mut checks: Vec<ProbeCheck> =
        addresses.iter().map(|url| ProbeCheck::http(Requirement::Required, address(url))).collect();
    checks.extend(source.and_then(Server::of).map(|server| ProbeCheck::source(Arc::new(server))));
    checks
}

/// An address that must answer.
struct Address {
    opener: Opener,
    url: String,
}

impl Probe for Address {
    fn name(&self) -> &str {
        &self.url
    }

    fn look(&self, deadline: Duration, _: &AtomicBool) -> Result<String, String> {
        let opener = Opener {
            stall_timeout: deadline,
            mirrors: Vec::new(),
            bandwidth: None,
            ..self.opener.with_cancel(Arc::new(AtomicBool::new(false)))
        };
        match HttpRead::knock(&opener, &self.url) {
            Ok(()) => Ok("it answers".to_owned()),
            // An answer of no bytes has no range that could be asked for.
            Err(HttpError::Status { status: 416, .. }) => Ok("it answers".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The server of a bundle: that its port is open says enough, and costs no byte of anybody's plan.
struct Server {
    name: String,
    host: String,
    port: u16,
}

impl Server {
    /// `None` where the bundle came from no server.
    fn of(source: &str) -> Option<Self> {
        let uri: Uri = source.parse().ok()?;
        let default = match uri.scheme_str()? {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (host, port) = (uri.host()?.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(default));
        Some(Server { name: format!("source:{host}:{port}"), host, port })
    }
}

impl Probe for Server {
    fn name(&self) -> &str {
        &self.name
    }

    fn look(&self, deadline: Duration, _: &AtomicBool) -> Result<String, String> {
        let found = (self.host.as_str(), self.port).to_socket_addrs().map_err(|error| error.to_string())?;
        let mut last = "its name has no address".to_owned();
        for address in found {
            match TcpStream::connect_timeout(&address, deadline) {
                Ok(_) => return Ok("its port is open".to_owned()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_bundle_is_found_in_its_address_and_a_file_has_none() {
        let server = |source: &str| Server::of(source).map(|server| server.name);
        assert_eq!(server("http://updates.example/x/y.bascule").as_deref(), Some("source:updates.example:80"));
        assert_eq!(server("https://[::1]:8443/y").as_deref(), Some("source:::1:8443"));
        assert_eq!((server("/data/y.bascule"), server("-")), (None, None));
    }

    #[test]
    fn an_open_port_passes_and_a_closed_one_fails() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://127.0.0.1:{}/y", listener.local_addr().unwrap().port());
        let server = Server::of(&url).unwrap();
        let look = || server.look(Duration::from_secs(5), &AtomicBool::new(false));
        assert!(look().is_ok());
        drop(listener);
        assert!(look().is_err());
    }
}
