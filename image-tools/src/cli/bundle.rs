//! `bascule-image bundle`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bascule_image::delta::image::Tally;
use bascule_image::keys::KeyDir;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::manifest::{BlobsPlace, sha256};
use bascule_image::release::Release;
use bascule_image::trust::SIGNED_AT;
use bascule_image::write::{BundleSpec, DEFAULT_DELTA_LEVEL, DEFAULT_LEVEL, Summary, create_bundle};
use bascule_image::{BundleFile, BundleRead, Digest, ForwardOnly, Manifest, Opening, Payload};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::delta::{NoTransforms, made_of};
use super::from::{Bases, From, from};
use super::verify::{Verify, name};
use super::{show, value};

/// The commands about bundles.
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Make a bundle.
    Create(Create),
    /// Show what a bundle says of itself, without checking its signatures.
    Inspect {
        /// The bundle, or - for standard input.
        bundle: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a bundle whole: signatures, and every byte of every image.
    Verify(Verify),
}

/// What a bundle is made of.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The directory made by `keys init`.
    #[arg(long)]
    keys: PathBuf,
    /// The release.toml of the root in the image.
    #[arg(long)]
    release: PathBuf,
    /// An image and the slot role it is for; may be repeated.
    #[arg(long = "payload", value_name = "ROLE=FILE", required = true, value_parser = value::payload)]
    payloads: Vec<(String, PathBuf)>,
    /// The bundle to write.
    #[arg(short, long)]
    output: PathBuf,
    /// The zstd level.
    #[arg(long, default_value_t = DEFAULT_LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// An image that devices may run now, or an older bundle with it: a delta is made against it; may be repeated.
    /// Devices whose version is not VERSION pass the delta over; a bundle tells its version itself.
    #[arg(long = "from", value_name = "[ROLE][@VERSION=]IMAGE", value_parser = from)]
    bases: Vec<From>,
    /// The zstd level of deltas.
    #[arg(long, default_value_t = DEFAULT_DELTA_LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    delta_level: i32,
    #[command(flatten)]
    transforms: NoTransforms,
    /// Where the full data go, which devices need that run another image: in the bundle, in files beside it, nowhere.
    #[arg(long, value_enum, default_value_t = Full::Inside)]
    full: Full,
    /// Bytes of a chunk: a multiple of 4K up to 1M.
    #[arg(long, default_value_t = u64::from(MAX_CHUNK_BYTES), value_parser = value::size)]
    chunk_size: u64,
    /// Hardware it runs on, instead of what release.toml says; may be repeated.
    #[arg(long)]
    compatible: Vec<String>,
    /// When its signatures expire: a span or a date.
    #[arg(long, default_value = "2y", value_parser = value::expiry)]
    expires: value::Expiry,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where the full data go.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Full {
    Inside,
    Beside,
    Absent,
}

impl Bundle {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Bundle::Create(create) => create.run(),
            Bundle::Inspect { bundle, json } => inspect(&bundle, json),
            Bundle::Verify(verify) => verify.run(),
        }
    }
}

impl Create {
    fn run(self) -> anyhow::Result<()> {
        let mut release = Release::read(&self.release)?;
        if !self.compatible.is_empty() {
            release.compatible = self.compatible;
        }
        let roles: Vec<_> = self.payloads.iter().map(|(role, _)| role.as_str()).collect();
        let bases = Bases::open(&self.bases, &roles, &self.keys, &self.output)?;
        let mut total = 0u64;
        for (role, image) in &self.payloads {
            let size = std::fs::metadata(image).with_context(|| format!("reading {image:?} failed"))?.len();
            let deltas = bases.specs.iter().filter(|base| base.role == *role).count() as u64;
            total = total.saturating_add(size.saturating_mul(deltas.saturating_add(1)));
        }
        let now = value::now()?;
        let spec = BundleSpec {
            release,
            payloads: self.payloads,
            level: self.level,
            chunk_bytes: u32::try_from(self.chunk_size).unwrap_or(u32::MAX),
            now,
            expires: self.expires.from(now)?,
            bases: bases.specs.clone(),
            delta_level: self.delta_level,
            transforms: self.transforms.left(),
            full: match self.full {
                Full::Inside => BlobsPlace::Inside,
                Full::Beside => BlobsPlace::Beside,
                Full::Absent => BlobsPlace::Absent,
            },
        };
        let bar = show::progress(total, "compressing");
        let made = create_bundle(&spec, &KeyDir::open(self.keys), &self.output, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if self.json {
            show::json(&json!({
                "bundle": self.output, "bytes": made.bundle_bytes, "digest": made.digest, "manifest": made.manifest,
                "deltas_made_of": made.deltas,
            }));
        } else {
            tell(&self.output, &made);
        }
        Ok(())
    }
}

fn tell(output: &Path, made: &Summary) {
    show::line(format_args!("{}  {}", output.display(), show::size(made.bundle_bytes)));
    describe(&made.manifest, &made.digest, &made.deltas);
}

/// What a manifest says; `deltas` are what its deltas make the images of, where that is known.
pub(crate) fn describe(manifest: &Manifest, digest: &Digest, deltas: &[Tally]) {
    let requires = &manifest.requires;
    show::line(format_args!("  product      {} {} (order {})", manifest.product, manifest.version, manifest.order));
    show::line(format_args!("  compatible   {}", manifest.compatible.join(", ")));
    show::line(format_args!("  epoch        {}", manifest.security_epoch));
    if *requires != Default::default() {
        show::line(format_args!("  requires     {}", serde_json::to_string(requires).unwrap_or_default()));
    }
    show::line(format_args!("  manifest     {digest}"));
    let mut tallies = deltas.iter();
    for payload in &manifest.payloads {
        let full = payload.blobs.length.saturating_add(payload.chunk_table.length);
        let place = match payload.blobs.place {
            BlobsPlace::Inside => format!("stored in {}", show::size(full)),
            BlobsPlace::Beside => {
                format!("{} stored beside, in {}", show::size(full), manifest.full_data_name(&payload.role))
            }
            BlobsPlace::Absent => "only deltas, no full data".to_owned(),
        };
        show::line(format_args!("  payload      {}: {}, {place}", payload.role, show::size(payload.size)));
        show::line(format_args!("               SHA-256 {}", payload.sha256));
        describe_deltas(payload, full, &mut tallies);
    }
}

fn describe_deltas(payload: &Payload, full: u64, tallies: &mut dyn Iterator<Item = &Tally>) {
    for delta in &payload.deltas {
        let bytes = delta.blobs.saturating_add(delta.table.length);
        let (stored, share) = (show::size(bytes), show::share(bytes, full));
        show::line(format_args!("  delta        {} from {}: {stored}, {share} of the full", payload.role, name(delta)));
        if delta.base.version.is_some() {
            show::line(format_args!("               SHA-256 {}", delta.base.sha256));
        }
        if let Some(tally) = tallies.next() {
            show::line(format_args!("               made of {}", made_of(tally)));
        }
    }
}

/// Opens a bundle from a path or standard input.
pub(crate) fn input(bundle: &Path) -> anyhow::Result<Box<dyn BundleRead>> {
    if bundle == Path::new("-") {
        return Ok(Box::new(ForwardOnly::new(std::io::stdin())));
    }
    Ok(Box::new(BundleFile::open(bundle).with_context(|| format!("opening {bundle:?} failed"))?))
}

fn inspect(bundle: &Path, as_json: bool) -> anyhow::Result<()> {
    let opening = Opening::inspect(input(bundle)?)?;
    let manifest = Manifest::parse(&opening.manifest)?;
    let digest = sha256(&opening.manifest);
    let timestamp: Value = serde_json::from_slice(&opening.metadata.timestamp).unwrap_or_default();
    let signed = |key: &str| timestamp.pointer(&format!("/signed/{key}")).cloned().unwrap_or_default();
    let roots: Vec<u64> = opening.metadata.roots.iter().map(|(version, _)| *version).collect();
    if as_json {
        let metadata = json!({
            "version": signed("version"),
            "expires": signed("expires"),
            "signed_at": signed(SIGNED_AT),
            "roots": roots,
        });
        show::json(&json!({ "verified": false, "digest": digest, "manifest": manifest, "metadata": metadata }));
    } else {
        show::line(format_args!("{} (signatures not checked)", bundle.display()));
        describe(&manifest, &digest, &[]);
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        show::line(format_args!("  signed at    {}", text(&signed(SIGNED_AT))));
        show::line(format_args!("  expires      {}", text(&signed("expires"))));
    }
    Ok(())
}
