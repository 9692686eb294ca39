//! Finds where this machine gets Debian from, so that the guests come from the same place.

use std::path::Path;

use anyhow::Result;

/// The release that the demo systems are made of, whatever the host runs.
pub(super) const SUITE: &str = "bookworm";

/// Releases whose archive also carries [`SUITE`].
const RELEASES: [&str; 6] = ["bookworm", "trixie", "stable", "oldstable", "testing", "sid"];

/// The lines of `sources.list` for [`SUITE`] from the host's own configuration of apt.
///
/// Third-party archives are left out. No line means that the host says nothing usable and the tool's default holds.
pub(super) fn lines() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let main_list = Path::new("/etc/apt/sources.list");
    if main_list.exists() {
        found.extend(from_list(&std::fs::read_to_string(main_list)?));
    }
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut files = match std::fs::read_dir(parts) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?,
        Err(_) => Vec::new(),
    };
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => found.extend(from_list(&std::fs::read_to_string(&file)?)),
            Some("sources") => found.extend(from_stanzas(&std::fs::read_to_string(&file)?)),
            _ => {}
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Reads the one-line format: `deb [options] URI suite component...`.
fn from_list(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let (options, rest) = match rest.trim_start().strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let components: Vec<&str> = words.collect();
        found.extend(entry(uri, suite, &components, options));
    }
    found
}

/// Reads the stanza format: `Types:`, `URIs:`, `Suites:`, `Components:`, `Signed-By:`.
fn from_stanzas(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let without_comments: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in without_comments.join("\n").split("\n\n") {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
        };
        let disabled = field("Enabled").eq_ignore_ascii_case("no");
        if disabled || !field("Types").split_whitespace().any(|kind| kind == "deb") {
            continue;
        }
        let components: Vec<&str> = field("Components").split_whitespace().collect();
        for uri in field("URIs").split_whitespace() {
            for suite in field("Suites").split_whitespace() {
                found.extend(entry(uri, suite, &components, field("Signed-By")));
            }
        }
    }
    found
}

fn entry(uri: &str, suite: &str, components: &[&str], signed_by: &str) -> Option<String> {
    let foreign_key = signed_by.contains('/') && !signed_by.contains("debian-archive");
    if foreign_key || !components.contains(&"main") {
        return None;
    }
    let (release, pocket) = suite.split_once('-').unwrap_or((suite, ""));
    if !RELEASES.contains(&release) || !["", "updates", "security"].contains(&pocket) {
        return None;
    }
    let dash = if pocket.is_empty() { "" } else { "-" };
    Some(format!("deb {uri} {SUITE}{dash}{pocket} main"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_debian_archive_is_taken_and_turned_to_the_suite_of_the_demo() {
        let list = "# deb http://no.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a.example/debian trixie main contrib\n\
            deb http://a.example/security trixie-security main\n\
            deb [signed-by=/etc/apt/keyrings/x.gpg] http://b.example/x bookworm main\n\
            deb http://b.example/docker bookworm stable\n\
            deb http://b.example/pg bookworm-pgdg main\n";
        assert_eq!(
            from_list(list),
            ["deb http://a.example/debian bookworm main", "deb http://a.example/security bookworm-security main"]
        );
    }

    #[test]
    fn stanzas_give_a_line_for_each_suite_unless_they_are_disabled() {
        let stanzas = "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian\nSuites: bookworm bookworm-updates\n\
            Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://b.example/debian\nSuites: bookworm\nComponents: main\n\n\
            Types: deb-src\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n";
        assert_eq!(
            from_stanzas(stanzas),
            ["deb http://a.example/debian bookworm main", "deb http://a.example/debian bookworm-updates main"]
        );
    }
}
