//! The `s3://` store: one bucket, two clients that write to it, and what both of them need.
//!
//! Two kinds of executor run this code. The **control executor** does whatever blocks or happens
//! once per process: it reads the environment and the AWS files, keeps credentials and host
//! addresses fresh, and probes the bucket. The **data cores** only sign and send. They get an
//! [`S3Shared`]: settings that never change, and snapshots (credentials, addresses) that only
//! control writes and cores read without waiting. No tokio runtime is involved on either side.
//!
//! In reading order:
//!
//! | module | what it holds | runs on |
//! |---|---|---|
//! | `start` | [`start()`], [`prepare`], and every reason why a store cannot start | control |
//! | `environment`, `shared_files`, `profile` | the AWS variables and files, checked before a library reads them | control |
//! | `endpoint_url` | `AWS_ENDPOINT_URL_S3` and the like, checked | control |
//! | `credential_chain` | region, endpoint and credentials from `aws-config`; refreshes credentials | control |
//! | [`probe`] | asks the bucket before the first payload arrives | control |
//! | `shared` | what control publishes to the cores | both |
//! | [`host_names`] | host name to addresses: resolved by control, read by cores | both |
//! | [`proxies`], `tls`, [`clock`] | which requests use a proxy; trust roots; offset of the store's clock | both |
//! | [`dial`], `race`, `tunnel` | from a server's address to a connected byte stream | both |
//! | `idle_pool` | idle connections of one executor, for either client | both |
//! | `credential_snapshot`, `client_state` | one executor's credentials and clock; how refusals are classified | both |
//! | [`direct`] | the lean client (`S3_CLIENT=direct`): PUT and nothing else | cores |
//! | [`sdk`], `connector`, `hyper_pool` | the client on `aws-sdk-s3`, and its bridge to this runtime | both |

mod client_state;
pub mod clock;
pub(crate) mod connector;
mod credential_chain;
mod credential_snapshot;
pub mod dial;
pub mod direct;
mod endpoint_url;
mod environment;
pub mod host_names;
mod hyper_pool;
mod idle_pool;
pub mod probe;
mod profile;
pub mod proxies;
mod race;
pub mod sdk;
mod shared;
mod shared_files;
mod start;
mod tls;
mod tunnel;

use shared::Location;
pub use shared::{PublishedCredentials, S3Shared};
pub use start::{Overrides, Probed, S3Control, S3Target, StartError, prepare, start};
