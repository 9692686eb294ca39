//! The bundle format, its trust, and disk images; the tool `bascule-image`.
