//! Rules about the workspace as a whole: who may use whom, required crates, entries at the top, no unsafe code.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use super::sources::Source;
use crate::cargo;

/// A crate of ours and the crates of ours that it may use.
type May = (&'static str, &'static [&'static str]);

/// Who may use whom.
const MAY_USE: [May; 7] = [
    ("bascule-core", &[]),
    ("bascule-boot", &["bascule-core"]),
    ("bascule-image", &["bascule-core", "bascule-boot"]),
    ("bascule-hooks", &["bascule-core"]),
    ("bascule-agent", &["bascule-core", "bascule-boot", "bascule-image", "bascule-hooks"]),
    ("bascule-tests", &["bascule-core", "bascule-boot", "bascule-image", "bascule-hooks", "bascule-agent"]),
    ("xtask", &[]),
];

/// Crates of others that the decisions may use.
const CORE_MAY_USE: [&str; 2] = ["serde", "thiserror"];

/// Crates of others that the project stands on; each is declared and used.
const REQUIRED: [&str; 8] = ["tokio", "nix", "gpt", "serde_json", "sha2", "zstd", "tracing", "systemd-journal-logger"];

/// What may stand at the top of the workspace, beside dot files.
const TOP: [&str; 13] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "bootloader-glue",
    "docs",
    "image-tools",
    "tests",
    "updater-hooks",
    "xtask",
];

/// Where builds go; git does not see it.
const BUILDS: &str = "target";

/// Checks the workspace.
pub(super) fn check(sources: &[Source]) -> Result<Vec<Finding>> {
    let packages = packages()?;
    let mut findings = top()?;
    findings.extend(dependencies(&packages));
    findings.extend(required(&packages, sources));
    findings.extend(no_unsafe_code(&packages));
    Ok(findings)
}

/// One crate of ours, as far as the rules look at it.
struct Package {
    name: String,
    /// Its manifest, from the top of the workspace.
    manifest: String,
    text: String,
    /// Name and kind (`normal`, `dev`, `build`) of what it depends on.
    dependencies: Vec<(String, String)>,
}

impl Package {
    /// The line of its manifest that begins with `word`, or the first.
    fn line_of(&self, word: &str) -> usize {
        let found = self.text.lines().position(|line| {
            line.strip_prefix(word).is_some_and(|rest| rest.starts_with(['.', ' ', '=']) || rest.is_empty())
        });
        found.map_or(1, |index| index + 1)
    }
}

fn packages() -> Result<Vec<Package>> {
    let printed = cargo::output(cargo::plain().args(["metadata", "--no-deps", "--offline", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&printed).context("cargo metadata did not print JSON")?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    packages.iter().map(package).collect()
}

fn package(json: &Value) -> Result<Package> {
    let text_of = |json: &Value, key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    let path = text_of(json, "manifest_path").context("a package without a manifest")?;
    let dependencies = json.get("dependencies").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let dependency =
        |json: &Value| Some((text_of(json, "name")?, text_of(json, "kind").unwrap_or_else(|| "normal".to_owned())));
    Ok(Package {
        name: text_of(json, "name").context("a package without a name")?,
        text: fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?,
        manifest: path
            .strip_prefix(&format!("{}/", cargo::workspace().display()))
            .map_or_else(|| path.clone(), str::to_owned),
        dependencies: dependencies.iter().filter_map(dependency).collect(),
    })
}

fn dependencies(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some((_, may)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            let reason = format!("`{}` is not one of the crates of the house", package.name);
            findings.push(Finding::error(&package.manifest, package.line_of("name"), reason));
            continue;
        };
        for (name, kind) in &package.dependencies {
            let ours = MAY_USE.iter().any(|(ours, _)| ours == name);
            let outside_core =
                package.name == "bascule-core" && kind != "dev" && !CORE_MAY_USE.contains(&name.as_str());
            if (ours && !may.contains(&name.as_str())) || outside_core {
                let reason = format!("`{}` may not use `{name}`", package.name);
                findings.push(Finding::error(&package.manifest, package.line_of(name), reason));
            }
        }
    }
    findings
}

fn required(packages: &[Package], sources: &[Source]) -> Vec<Finding> {
    let missing = |crate_name: &&str| {
        let declared = packages
            .iter()
            .filter(|package| package.name != "xtask")
            .any(|package| package.dependencies.iter().any(|(name, kind)| name == crate_name && kind == "normal"));
        !(declared && is_used(crate_name, sources))
    };
    let finding = |crate_name: &str| {
        Finding::error(
            "Cargo.toml",
            1,
            format!("`{crate_name}` is required, and no crate of ours declares and uses it"),
        )
    };
    REQUIRED.into_iter().filter(|name| missing(name)).map(finding).collect()
}

/// Whether product code names the crate, in a path or in an attribute.
fn is_used(crate_name: &str, sources: &[Source]) -> bool {
    let named = format!("{}::", crate_name.replace('-', "_"));
    let mut lines = sources.iter().filter(|source| !source.path.starts_with("xtask/")).flat_map(Source::product_lines);
    lines.any(|(_, line)| !line.trim_start().starts_with("//") && line.contains(&named))
}

fn top() -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for entry in fs::read_dir(cargo::workspace())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !(name.starts_with('.') || name == BUILDS || TOP.contains(&name.as_str())) {
            findings.push(Finding::error(name, 1, "nothing of this name belongs to the top of the workspace"));
        }
    }
    for name in TOP {
        if !cargo::workspace().join(name).exists() {
            findings.push(Finding::error(name, 1, "this belongs to the top of the workspace and is missing"));
        }
    }
    Ok(findings)
}

fn no_unsafe_code(packages: &[Package]) -> Vec<Finding> {
    let lines = |text: &str| text.lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let root = fs::read_to_string(cargo::workspace().join("Cargo.toml")).unwrap_or_default();
    let mut findings = Vec::new();
    if !lines(&root).iter().any(|line| line == "unsafe_code = \"forbid\"") {
        findings.push(Finding::error("Cargo.toml", 1, "the lints of the workspace do not forbid unsafe code"));
    }
    for package in packages {
        let inherits = lines(&package.text).windows(2).any(|pair| pair == ["[lints]", "workspace = true"]);
        if !inherits {
            let reason =
                format!("`{}` does not take the lints of the workspace, which forbid unsafe code", package.name);
            findings.push(Finding::error(&package.manifest, 1, reason));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up(name: &str, dependencies: &[(&str, &str)]) -> Package {
        let text = format!(
            "[package]\nname = {name:?}\n[dependencies]\n{}",
            dependencies.iter().map(|(name, _)| format!("{name}.workspace = true\n")).collect::<String>()
        );
        let dependencies = dependencies.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect();
        Package { name: name.to_owned(), manifest: format!("{name}/Cargo.toml"), text, dependencies }
    }

    fn found(name: &str, dependencies_of: &[(&str, &str)]) -> Vec<String> {
        dependencies(&[made_up(name, dependencies_of)]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn crates_beside_each_other_do_not_know_each_other_not_even_in_their_tests() {
        let reason = "bascule-boot/Cargo.toml:5: `bascule-boot` may not use `bascule-image`";
        assert_eq!(found("bascule-boot", &[("bascule-core", "normal"), ("bascule-image", "dev")]), [reason]);
        assert_eq!(found("bascule-core", &[("bascule-boot", "dev")]).len(), 1);
        assert!(found("bascule-agent", &[("bascule-boot", "normal"), ("tokio", "normal")]).is_empty());
    }

    #[test]
    fn the_decisions_use_serde_and_thiserror_only() {
        let core = [("serde", "normal"), ("thiserror", "normal"), ("proptest", "dev")];
        assert!(found("bascule-core", &core).is_empty());
        let reason = "bascule-core/Cargo.toml:4: `bascule-core` may not use `tokio`";
        assert_eq!(found("bascule-core", &[("tokio", "normal")]), [reason]);
    }

    #[test]
    fn xtask_uses_no_crate_of_ours_and_there_are_no_other_crates() {
        assert_eq!(found("xtask", &[("bascule-core", "normal")]).len(), 1);
        assert_eq!(
            found("bascule-more", &[]),
            ["bascule-more/Cargo.toml:2: `bascule-more` is not one of the crates of the house"]
        );
    }

    #[test]
    fn a_required_crate_must_be_declared_and_used() {
        let all: Vec<_> = REQUIRED.iter().map(|name| (*name, "normal")).collect();
        let used: String = REQUIRED.iter().map(|name| format!("use {}::x;\n", name.replace('-', "_"))).collect();
        let count = |dependencies: &[(&str, &str)], text: &str| {
            required(&[made_up("bascule-agent", dependencies)], &[Source::from_text("agent/src/x.rs", text)]).len()
        };
        assert_eq!(count(&all, &used), 0);
        assert_eq!(count(&all[1..], &used), 1);
        assert_eq!(count(&all, &used.replace("use zstd::x", "// zstd::x")), 1);
    }

    #[test]
    fn a_crate_that_leaves_the_lints_out_is_found() {
        let mut package = made_up("bascule-core", &[]);
        assert_eq!(no_unsafe_code(&[package]).len(), 1);
        package = made_up("bascule-core", &[]);
        package.text.push_str("\n[lints]\nworkspace = true\n");
        assert!(no_unsafe_code(&[package]).is_empty());
    }
}
