//! What headers and addresses say, as pure functions.

use hyper::Uri;
use hyper::header::{self, HeaderMap};

/// First and last byte, and the total, of `bytes FIRST-LAST/TOTAL`.
pub(super) fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// The address of the same file in another folder.
pub(super) fn mirrored(url: &str, folder: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let (_, name) = path.rsplit_once('/')?;
    let mirrored = format!("{}/{name}", folder.trim_end_matches('/'));
    (mirrored != path).then_some(mirrored)
}

/// The address of a file in the same folder; a query or fragment belongs to the one file alone.
pub(super) fn beside(url: &str, name: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let authority = path.find("://")?.checked_add(3)?;
    let folder = path.rfind('/').filter(|&at| at >= authority)?;
    Some(format!("{}/{name}", path.get(..folder)?))
}

/// The length that an answer announces.
pub(super) fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a redirect leads: another http or https address, never from https down to http.
pub(super) fn redirected(from: &str, to: Option<&str>) -> Result<String, &'static str> {
    let to = to.ok_or("to nowhere")?;
    let secure = from.starts_with("https://");
    if to.starts_with("https://") || to.starts_with("http://") && !secure {
        return Ok(to.to_owned());
    }
    if to.starts_with("http://") {
        return Err("from https to http");
    }
    let uri: Uri = from.parse().map_err(|_| "from an address that cannot be read")?;
    match (to.starts_with('/') && !to.starts_with("//"), uri.scheme_str(), uri.authority()) {
        (true, Some(scheme), Some(authority)) => Ok(format!("{scheme}://{authority}{to}")),
        _ => Err("to an address that is not followed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_and_an_absurd_one_is_not() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, 9, None)));
        for wrong in ["", "bytes 5-9", "bytes 9-5/10", "bytes 5-10/10", "bytes */10", "items 0-1/2", "bytes -1-2/3"] {
            assert_eq!(parse_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_beside_the_bundle_is_in_its_folder() {
        assert_eq!(beside("http://a:8/x/b.bascule?t=1/2", "c").as_deref(), Some("http://a:8/x/c"));
        assert_eq!(beside("http://a/b#c/d", "e").as_deref(), Some("http://a/e"));
        assert_eq!(beside("http://a", "e"), None);
    }

    #[test]
    fn a_mirror_has_the_same_file_in_its_own_folder_and_is_never_the_first_address_again() {
        assert_eq!(mirrored("http://a/x/b?c=d", "https://m/y/").as_deref(), Some("https://m/y/b"));
        assert_eq!(mirrored("http://a/x/b", "http://a/x"), None);
    }

    #[test]
    fn a_redirect_never_leads_from_https_to_http_nor_to_another_kind_of_place() {
        assert_eq!(redirected("https://a/x", Some("https://b/y")), Ok("https://b/y".into()));
        assert_eq!(redirected("http://a:8/x", Some("/y")), Ok("http://a:8/y".into()));
        for (from, to) in [
            ("https://a/x", Some("http://a/x")),
            ("http://a/x", Some("file:///etc")),
            ("http://a/x", Some("//b/y")),
            ("http://a/x", None),
        ] {
            assert!(redirected(from, to).is_err(), "{from} to {to:?}");
        }
    }
}
