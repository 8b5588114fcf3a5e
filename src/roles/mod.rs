//! The roles as processes: flags in, the role's crate started, signals obeyed. Decides nothing else.
//!
//! ```text
//! serve      router + scheduler + worker in one process (inproc://), or N supervised worker processes
//! router     HTTP ─▶ schedulers, found in etcd
//! scheduler  registered in etcd, claims workers
//! worker     registered in etcd; loads and runs a model
//! ```

mod address;
mod admin;
mod banner;
mod children;
mod load;
mod parts;
mod router;
mod scheduler;
mod serve;
mod shutdown;
mod worker;

use std::{io, path::PathBuf, sync::Arc};

use volley_membership::{Etcd, Membership};

pub(crate) use self::{
    router::run as router, scheduler::run as scheduler, serve::run as serve, worker::run as worker,
};
use crate::{cli::ClusterArgs, models, supervise};

/// Why a role could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The address can't be listened at.
    #[error("cannot listen at {address}: {source}{hint}")]
    Listen {
        /// As given.
        address: String,
        /// The operating system's reason.
        source: io::Error,
        /// What the user can do.
        hint: &'static str,
    },
    /// The file of API keys can't be read.
    #[error("cannot read the API keys in {}: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no model to serve.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The model can't be loaded or run.
    #[error(transparent)]
    Worker(#[from] volley_worker::Error),
    /// It was loaded, and its tokenizer or template can't be used.
    #[error("cannot serve {name}: {reason}")]
    Unusable {
        /// The model.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The cluster's state can't be used.
    #[error(transparent)]
    Membership(#[from] volley_membership::Error),
    /// Worker processes can't be kept running.
    #[error(transparent)]
    Supervise(#[from] supervise::Error),
    /// The operating system refused something basic.
    #[error("{doing}: {source}")]
    System {
        /// What.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A part ended although nobody asked it to.
    #[error("the {part} ended unexpectedly{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    Ended {
        /// Which.
        part: &'static str,
        /// What it said.
        reason: Option<String>,
    },
}

/// The cluster in etcd, which may come up later.
async fn cluster(args: &ClusterArgs) -> Result<Arc<dyn Membership>, Error> {
    Ok(Arc::new(Etcd::connect(&args.etcd, &args.etcd_prefix).await?))
}

/// An id for the life of this process: readable, and never used again.
fn fresh_id(role: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{role}-{}-{}", address::host_name(), &random[..12])
}
