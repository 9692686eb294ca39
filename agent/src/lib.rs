//! The daemon `basculed` and its command line `bascule`.
