//! Manifests with other numbers: what is taken keeps every bound.

use bascule_image::limits::{MAX_DELTAS, MAX_PAYLOAD_BYTES, MAX_TABLES_BYTES};
use bascule_image::{Digest, Manifest};
use serde_json::{Value, json};

use super::files::change_number;
use super::judge::{Finding, Outcome, timed};
use super::random::Random;

pub(super) fn run(random: &mut Random) -> Result<Outcome, Finding> {
    let mut value = manifest(random);
    for _ in 0..=random.below(2) {
        change_number(&mut value, random);
    }
    let mut bytes = value.to_string().into_bytes();
    if random.once_in(4) {
        random.damage(&mut bytes);
    }
    let (parsed, took) = timed(bytes.len(), || Manifest::parse(&bytes))?;
    if let Ok(manifest) = &parsed {
        bounds(manifest).map_err(|what| Finding::new("took a manifest", what))?;
    }
    Ok(Outcome { taken: parsed.is_ok(), bytes: bytes.len(), took })
}

fn bounds(manifest: &Manifest) -> Result<(), &'static str> {
    let mut tables = 0u128;
    for payload in &manifest.payloads {
        let deltas = &payload.deltas;
        let table = |table: &bascule_image::manifest::TableRef| u128::from(table.unpacked.unwrap_or(table.length));
        tables += table(&payload.chunk_table);
        let refs = deltas.iter().map(|delta| &delta.table).chain([&payload.chunk_table]);
        for about in refs {
            if about.length > MAX_TABLES_BYTES || table(about) > u128::from(MAX_TABLES_BYTES) {
                return Err("with too long a table");
            }
        }
        if payload.size == 0 || payload.size > MAX_PAYLOAD_BYTES || payload.blobs.length > payload.size {
            return Err("with too large a payload");
        }
        if deltas.len() > MAX_DELTAS {
            return Err("with too many deltas");
        }
        if deltas.iter().any(|delta| delta.base.size > MAX_PAYLOAD_BYTES || delta.blobs > payload.size) {
            return Err("with too large a delta");
        }
    }
    if tables > u128::from(MAX_TABLES_BYTES) { Err("with too long tables together") } else { Ok(()) }
}

fn manifest(random: &mut Random) -> Value {
    let digest = Digest([5; 32]);
    let table = |random: &mut Random| {
        let length = random.of_any_length(24);
        if random.once_in(2) {
            json!({ "length": length, "sha256": digest, "unpacked": random.of_any_length(24) })
        } else {
            json!({ "length": length, "sha256": digest })
        }
    };
    let mut payloads = Vec::new();
    for number in 0..=random.below(3) {
        let size = 1 + random.of_any_length(41);
        let blobs = random.below(size);
        let deltas = (0..random.of_any_length(7)).map(|_| {
            let base = json!({ "version": "1.0.0", "size": random.of_any_length(41), "sha256": digest });
            json!({ "base": base, "table": table(random), "blobs": random.below(size) })
        });
        let deltas: Vec<_> = deltas.collect();
        let place = ["inside", "beside", "absent"].get(random.place(3));
        payloads.push(json!({
            "role": format!("role{number}"), "size": size, "sha256": digest, "chunk_table": table(random),
            "blobs": { "length": blobs, "place": place },
            "deltas": deltas,
        }));
    }
    json!({
        "product": "demo", "version": "2.0.0", "order": random.next(), "compatible": ["board"],
        "security_epoch": 0, "payloads": payloads,
    })
}
