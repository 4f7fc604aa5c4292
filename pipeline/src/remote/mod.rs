//! Shards in object stores and behind web servers.
//!
//! | specification | store | settings, as the environment names them |
//! |---|---|---|
//! | `s3://bucket/key` | Amazon S3 and what speaks its protocol | `AWS_*` |
//! | `gs://bucket/key` | Google Cloud Storage | `GOOGLE_*` |
//! | `az://container/key`, `abfs://container@account.dfs.core.windows.net/key` | Azure | `AZURE_*` |
//! | `http://host/path?query`, `https://...` | any web server | [`RemoteOptions::http_bearer_token`] |
//! | `file:///path` | this machine | none |
//!
//! Names and meanings of the settings are those of the `object_store` crate: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`,
//! `AWS_SKIP_SIGNATURE` (for public buckets), `GOOGLE_APPLICATION_CREDENTIALS`,
//! `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` and so on; the credentials of a machine's
//! role are found without any. The profiles of `~/.aws` are not read.
//!
//! # What a shard is while it is read
//!
//! Resolving a specification asks for the size, ETag and time of change of every shard, once; a listing
//! tells them of a thousand shards at a time, and of the `.qfidx` files beside them. Every
//! later answer is held against them: a shard that is not the one resolved ends the read with an
//! error that names both ETags. A server that has neither ETags nor times is held to the size alone.
//!
//! # Reading ahead
//!
//! An open shard keeps [`RemoteOptions::parallel_requests`] range requests of
//! [`RemoteOptions::part_bytes`] under way ahead of its reader, each into its own buffer, which is
//! freed when the reader is through with it. Memory for the bytes of all readers together is at most
//!
//! ```text
//! open readers × parallel_requests × (part_bytes + 512 KiB)
//! ```
//!
//! where 512 KiB is what the connection holds: 18 MiB a reader at default settings. A server that
//! does not know ranges, or not how long the object is, is read in one stream, through a buffer of
//! `parallel_requests × part_bytes`.
//!
//! # Failures and outages
//!
//! A request that fails (a reset, an answer that may pass such as 503, a body that ends early, fewer
//! bytes than [`RemoteOptions::least_bytes_per_s`]) is made again after a pause, from the byte it had
//! reached: no byte is handed out twice, none is left out. Only when it has not got on for
//! [`RemoteOptions::outage`] does the reader see an error. The first request of a store that waits for
//! [`RemoteOptions::warn_after`] is logged, and when the last one gets on, that is; readers share
//! nothing else but connections: one that waits holds up no other.
//!
//! What the server says for good (401, 403, 404, 405, 410, 501, ...) is an error at once.
//!
//! A reader that waits looks at its [`Stop`](crate::stop::Stop) twenty times a second. Dropping it
//! aborts its requests. All requests of the process run on two threads, which start with the first
//! remote shard and end when the last [`ShardLocation`](crate::source::ShardLocation) is dropped.
//!
//! # Credentials
//!
//! Requests to a store are signed, and never follow a redirect to another origin. A web server may
//! redirect (not from https to http); the bearer token goes to the servers that the user named alone,
//! over https or within this machine. URLs with a user or password are refused. Messages, names of
//! shards and saved configurations have no queries of URLs: they hold signatures
//! ([`DisplayUrl`](crate::source::DisplayUrl)).
//!
//! # Cache
//!
//! With [`RemoteOptions::cache`], a shard that is read from beginning to end is kept in a folder of
//! this machine, and read from there the next time. It is found by its URL and ETag (or size and
//! time of change), so that a changed shard is never taken for the one in the cache.
//!
//! - A file appears under its name complete or not at all. Its SHA-256 is noted as it is written,
//!   and checked when a process opens it for the first time; a file that does not fit is fetched again.
//! - Any number of processes may share a folder. One of them fetches a shard; others that want it
//!   meanwhile read the store directly.
//! - All files together, half-written ones with their final size, stay within
//!   [`CacheOptions::max_bytes`]: the least recently opened ones go first, never one that some process
//!   has open. A shard for which no room can be made is read without the cache.
//! - Locks are those of the operating system, and end with their process; what a killed process left
//!   half-written is removed by the next one that fetches something.
//! - Trouble with the folder (a full disk, missing rights) is logged, and costs the cache, not the read.
//!
//! Ranges are read from the cached file if there is one, else from the store.

mod bytes;
mod cache;
mod client;
mod failure;
mod keep;
mod keys;
mod list;
mod object;
mod open;
mod options;
mod patience;
mod read;
mod runtime;
mod store;
mod version;
mod web;

pub use bytes::ShardBytes;
pub use failure::inmost;
pub(crate) use list::{is_remote, Resolver};
pub(crate) use object::{RemoteObject, Sidecar};
pub use options::{CacheOptions, RemoteOptions};
pub use runtime::install_tls;
