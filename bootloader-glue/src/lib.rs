//! Everything that knows how a boot loader picks a slot group.
