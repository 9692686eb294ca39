//! A bundle over HTTP from a server that stalls, cuts, lies and changes its mind: the bytes are right, or it is an error.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bascule_agent::source::Opener;
use bascule_agent::source::http::{HttpError, HttpRead};
use bascule_image::BundleRead;
use bascule_tests::{Fault, HttpServer};

const LENGTH: usize = 3 << 20;
const FILE: &str = "bundle";

/// A server with one file, and a runtime that drives the connections.
struct Rig {
    server: HttpServer,
    opener: Opener,
    bytes: Vec<u8>,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Result<Rig> {
        let folder = tempfile::tempdir()?;
        let bytes: Vec<u8> = (0..LENGTH).map(|n| (n * 31 % 251) as u8).collect();
        std::fs::write(folder.path().join(FILE), &bytes)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let opener = Opener {
            runtime: runtime.handle().clone(),
            stall_timeout: Duration::from_millis(300),
            mirrors: Vec::new(),
            bandwidth: None,
            most_fetched: None,
            cancel: Arc::new(AtomicBool::new(false)),
        };
        let server = HttpServer::serve(Path::new(folder.path()))?;
        Ok(Rig { server, opener, bytes, _folder: folder, _runtime: runtime })
    }

    fn open(&self) -> Result<HttpRead, HttpError> {
        HttpRead::open(&self.opener, &self.server.url(FILE), Arc::new(AtomicU64::new(0)))
    }

    /// Reads the file whole, in two requests; the faults wait for the second one and those that follow.
    fn read_all(&self, faults: &[Fault]) -> Result<Vec<u8>, String> {
        let mut read = self.open().map_err(|error| error.code().to_owned())?;
        let mut bytes = vec![0; 1000];
        read.read_exact(&mut bytes).map_err(|error| code_of(&error))?;
        faults.iter().for_each(|fault| self.server.inject(FILE, fault.clone()));
        read.expect(LENGTH as u64);
        read.read_to_end(&mut bytes).map_err(|error| code_of(&error))?;
        Ok(bytes)
    }
}

fn code_of(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<HttpError>());
    inner.map_or_else(|| error.to_string(), |inner| inner.code().to_owned())
}

#[test]
fn a_read_that_stalls_or_is_cut_resumes_where_it_was() -> Result<()> {
    for fault in [Fault::StallAfter(1_000_000), Fault::CutAfter(1_000_001), Fault::CutAfter(0), Fault::HangUp] {
        let rig = Rig::new()?;
        assert!(rig.read_all(std::slice::from_ref(&fault)) == Ok(rig.bytes.clone()), "{fault:?}");
        let ranges: Vec<_> = rig.server.requests().into_iter().filter_map(|request| request.range).collect();
        assert_eq!(ranges[..2], ["bytes=0-65535".to_owned(), format!("bytes=65536-{}", LENGTH - 1)]);
        let resumed = ranges[2].starts_with("bytes=65536-");
        assert!(ranges.len() == 3 && resumed == matches!(fault, Fault::CutAfter(0) | Fault::HangUp), "{ranges:?}");
    }
    Ok(())
}

#[test]
fn a_mirror_goes_on_where_the_first_address_failed_for_good() -> Result<()> {
    let mirror = Rig::new()?;
    for faults in [vec![Fault::Status(404)], vec![Fault::CutAfter(700_000), Fault::Status(403)]] {
        let mut rig = Rig::new()?;
        rig.opener.mirrors = vec![mirror.server.url("nowhere"), mirror.server.url("")];
        let before = mirror.server.requests().len();
        assert!(rig.read_all(&faults) == Ok(rig.bytes.clone()), "{faults:?}");
        let asked = mirror.server.requests();
        assert_eq!(asked.len(), before + 2, "{faults:?}");
        assert_ne!(asked[before + 1].range.as_deref(), Some("bytes=0-65535"), "it goes on, and does not begin anew");
    }
    let mut rig = Rig::new()?;
    rig.opener.mirrors = vec![mirror.server.url("")];
    rig.server.inject(FILE, Fault::Status(404));
    assert!(rig.read_all(&[]) == Ok(rig.bytes.clone()));
    // One that holds another file is no mirror: its length gives it away.
    std::fs::write(mirror._folder.path().join(FILE), b"something else")?;
    rig.server.inject(FILE, Fault::Status(404));
    assert_ne!(rig.read_all(&[]), Ok(rig.bytes.clone()));
    Ok(())
}

#[test]
fn no_more_than_the_policy_allows_is_fetched_in_a_second() -> Result<()> {
    let mut rig = Rig::new()?;
    rig.opener.bandwidth = Some(2 * rig.bytes.len() as u64);
    let begun = std::time::Instant::now();
    assert!(rig.read_all(&[]) == Ok(rig.bytes.clone()));
    assert!(begun.elapsed() > Duration::from_millis(200), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_server_that_ignores_ranges_costs_bytes_and_never_a_wrong_one() -> Result<()> {
    let rig = Rig::new()?;
    assert!(rig.read_all(&[Fault::CutAfter(700_000), Fault::IgnoreRange]) == Ok(rig.bytes.clone()));
    Ok(())
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() -> Result<()> {
    let rig = Rig::new()?;
    // As often as it is asked again, it answers so.
    let faults: Vec<Fault> =
        std::iter::once(Fault::CutAfter(500_000)).chain(vec![Fault::ChangeEntityTag; 10]).collect();
    assert_eq!(rig.read_all(&faults), Err("source.changed".to_owned()));
    Ok(())
}

#[test]
fn a_status_that_will_not_change_is_not_asked_for_again() -> Result<()> {
    for (status, requests) in [(404, 1), (403, 1)] {
        let rig = Rig::new()?;
        rig.server.inject(FILE, Fault::Status(status));
        assert_eq!(rig.read_all(&[]), Err("source.status".to_owned()));
        assert_eq!(rig.server.requests().len(), requests, "status {status}");
    }
    Ok(())
}

#[test]
fn skipping_far_asks_for_a_new_range_and_fetches_nothing_in_between() -> Result<()> {
    let rig = Rig::new()?;
    let fetched = Arc::new(AtomicU64::new(0));
    let mut read = HttpRead::open(&rig.opener, &rig.server.url(FILE), fetched.clone())?;
    let mut byte = [0];
    read.read_exact(&mut byte)?;
    let far = 2_500_000;
    read.skip_to(far as u64)?;
    read.read_exact(&mut byte)?;
    assert_eq!(byte[0], rig.bytes[far]);
    let last = rig.server.requests().last().and_then(|request| request.range.clone());
    assert_eq!(last.as_deref(), Some("bytes=2500000-2565535"));
    read.expect(far as u64 + 100_000);
    read.skip_to(far as u64 + 65_536)?;
    read.read_exact(&mut byte)?;
    let last = rig.server.requests().last().and_then(|request| request.range.clone());
    assert_eq!(last.as_deref(), Some("bytes=2565536-2599999"), "no more than is wanted is asked for");
    let fetched = fetched.load(Ordering::Relaxed);
    assert!(fetched <= 2 * 65_536 + 34_464, "{fetched} bytes were fetched");
    Ok(())
}

#[test]
fn a_server_that_only_stalls_is_given_up_in_bounded_time_and_a_cancel_ends_it_at_once() -> Result<()> {
    let rig = Rig::new()?;
    (0..20).for_each(|_| rig.server.inject(FILE, Fault::StallAfter(0)));
    let cancel = rig.opener.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        cancel.store(true, Ordering::Relaxed);
    });
    let begun = Instant::now();
    assert_eq!(rig.read_all(&[]), Err("source.cancelled".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    canceller.join().ok();
    Ok(())
}

#[test]
fn an_address_that_is_none_and_a_port_nobody_serves_have_codes_of_their_own() -> Result<()> {
    let rig = Rig::new()?;
    let code = |url: &str| HttpRead::open(&rig.opener, url, Arc::default()).err().map(|error| error.code());
    assert_eq!(code("http://"), Some("source.url"));
    assert_eq!(code("ftp://127.0.0.1/x"), Some("source.url"));
    assert_eq!(code("http://127.0.0.1:1/x"), Some("source.unreachable"));
    Ok(())
}
