//! `bascule-image bundle`.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bascule_image::keys::KeyDir;
use bascule_image::limits::MAX_CHUNK_BYTES;
use bascule_image::manifest::sha256;
use bascule_image::release::Release;
use bascule_image::trust::SIGNED_AT;
use bascule_image::write::{BundleSpec, Summary, create_bundle};
use bascule_image::{BundleError, BundleRead, BundleReader, Digest, ForwardOnly, Manifest, Opening, TrustStore};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

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
    Verify {
        /// The bundle, or - for standard input.
        bundle: PathBuf,
        /// The root.json that devices pin.
        #[arg(long)]
        root: PathBuf,
    },
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
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Bytes of a chunk, 4K to 1M.
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

impl Bundle {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Bundle::Create(create) => create.run(),
            Bundle::Inspect { bundle, json } => inspect(&bundle, json),
            Bundle::Verify { bundle, root } => verify(&bundle, &root),
        }
    }
}

impl Create {
    fn run(self) -> anyhow::Result<()> {
        let mut release = Release::read(&self.release)?;
        if !self.compatible.is_empty() {
            release.compatible = self.compatible;
        }
        let mut total = 0;
        for (_, image) in &self.payloads {
            total += std::fs::metadata(image).with_context(|| format!("reading {image:?} failed"))?.len();
        }
        let now = value::now()?;
        let spec = BundleSpec {
            release,
            payloads: self.payloads,
            level: self.level,
            chunk_bytes: u32::try_from(self.chunk_size).unwrap_or(u32::MAX),
            now,
            expires: self.expires.from(now)?,
            bases: Vec::new(),
            delta_level: 19,
            full: Default::default(),
        };
        let bar = show::progress(total, "compressing");
        let made = create_bundle(&spec, &KeyDir::open(self.keys), &self.output, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        if self.json {
            show::json(
                &json!({ "bundle": self.output, "bytes": made.bundle_bytes, "digest": made.digest, "manifest": made.manifest }),
            );
        } else {
            tell(&self.output, &made);
        }
        Ok(())
    }
}

fn tell(output: &Path, made: &Summary) {
    show::line(format_args!("{}  {}", output.display(), show::size(made.bundle_bytes)));
    describe(&made.manifest, &made.digest);
}

fn describe(manifest: &Manifest, digest: &Digest) {
    let requires = &manifest.requires;
    show::line(format_args!("  product      {} {} (order {})", manifest.product, manifest.version, manifest.order));
    show::line(format_args!("  compatible   {}", manifest.compatible.join(", ")));
    show::line(format_args!("  epoch        {}", manifest.security_epoch));
    if *requires != Default::default() {
        show::line(format_args!("  requires     {}", serde_json::to_string(requires).unwrap_or_default()));
    }
    show::line(format_args!("  manifest     {digest}"));
    for payload in &manifest.payloads {
        let stored = show::size(payload.blobs.length + payload.chunk_table.length);
        show::line(format_args!("  payload      {}: {}, stored in {stored}", payload.role, show::size(payload.size)));
        show::line(format_args!("               SHA-256 {}", payload.sha256));
    }
}

fn input(bundle: &Path) -> anyhow::Result<Box<dyn BundleRead>> {
    if bundle == Path::new("-") {
        return Ok(Box::new(ForwardOnly::new(std::io::stdin())));
    }
    let file = File::open(bundle).with_context(|| format!("opening {bundle:?} failed"))?;
    Ok(Box::new(file))
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
        describe(&manifest, &digest);
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        show::line(format_args!("  signed at    {}", text(&signed(SIGNED_AT))));
        show::line(format_args!("  expires      {}", text(&signed("expires"))));
    }
    Ok(())
}

fn verify(bundle: &Path, root: &Path) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("making a temporary directory failed")?;
    let trust = TrustStore::new(root, scratch.path().join("accepted.json"));
    let mut reader = BundleReader::open(input(bundle)?, &trust, value::now()?)?;
    let payloads = reader.payloads().to_vec();
    let bar = show::progress(payloads.iter().map(|payload| payload.size).sum(), "checking");
    let mut buffer = vec![0; MAX_CHUNK_BYTES as usize];
    for (index, payload) in payloads.iter().enumerate() {
        reader.begin_payload(index)?;
        let mut whole = Sha256::new();
        while let Some(chunk) = reader.next_chunk(&mut buffer)? {
            whole.update(buffer.get(..chunk.len as usize).unwrap_or_default());
            bar.inc(u64::from(chunk.len));
        }
        if Digest(whole.finalize().into()) != payload.sha256 {
            let fault = format!("the image of {:?} has another SHA-256 than its manifest says", payload.role);
            return Err(BundleError::ManifestInvalid(fault).into());
        }
    }
    bar.finish_and_clear();
    show::line(format_args!("{} is whole and signed", bundle.display()));
    describe(reader.manifest(), &reader.manifest_digest());
    show::line(format_args!("  expires      {}", reader.accepted().expires()));
    reader.finish()?;
    Ok(())
}
