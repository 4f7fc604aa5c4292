//! Where rows come from. Each kind of input becomes one of three sources ([`any::Source`]): a list that is
//! in memory ([`list::List`]: folders, tables, JSON, zips), Parquet files, or shards, which are read as they
//! pass.

pub(super) mod any;
mod columns;
pub(super) mod detect;
mod fingerprint;
mod folder;
mod json_file;
mod lines;
mod list;
mod parquet;
mod parquet_json;
mod shards;
mod spool;
mod table;
mod tables;
mod zip;
