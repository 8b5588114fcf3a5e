//! `volley bench`: a closed-loop, streaming benchmark of any OpenAI-compatible server.
//!
//! Closed loop: `C` clients each keep one request open, until `N` are done. What the figures mean:
//!
//! | figure | meaning |
//! | --- | --- |
//! | tok/s | completion tokens of all requests ÷ the time from the first send to the last byte |
//! | TTFT | from the send to the first chunk with text |
//! | ITL | gaps between a request's chunks with text (a server that puts several tokens in a chunk shows tok/chunk > 1) |
//! | e2e | from the send to the end of the stream |
//!
//! Token counts are the server's own usage where it sends one, else chunks.

use std::{io::Write, time::Duration};

use crate::{
    cli::BenchArgs,
    client::{self, Server},
};

mod load;
mod prompts;
mod report;
#[cfg(test)]
mod tests;

use load::Load;

/// A benchmark that could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server can't be used.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// `--extra` is no JSON object.
    #[error("--extra: expected a JSON object: {0}")]
    Extra(String),
    /// The results could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where to.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Every request of a load failed.
    #[error("every request failed; the first error: {0}")]
    AllFailed(String),
}

/// Runs the loads one after the other; a table on stdout, and JSON where `--json` says.
pub(crate) async fn run(args: &BenchArgs) -> Result<(), Error> {
    let server = Server::parse(&args.url, args.api_key.clone())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => server.first_model().await?,
    };
    let extra = match &args.extra {
        None => serde_json::Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|e| Error::Extra(e.to_string()))?,
    };
    let json_on_stdout = args.json.as_deref() == Some("-");
    if !json_on_stdout {
        println!("{server}, {model}: {} prompts, {} tokens each", args.mode, args.max_tokens);
        println!("{}", report::head(args.health));
    }
    let mut rows = Vec::new();
    for &concurrency in &args.concurrency {
        let load = Load {
            server: server.clone(),
            endpoint: args.endpoint,
            bodies: prompts::bodies(args, &model, &extra, concurrency),
            concurrency,
            timeout: Duration::from_secs(args.timeout),
            poll_health: args.health,
        };
        let row = report::row(args, &model, &load::run(load).await);
        if !json_on_stdout {
            println!("{}", report::line(&row, args.health));
            if let Some(error) = &row.first_error {
                println!("  first error: {error}");
            }
        }
        if let (0, Some(error)) = (row.ok, &row.first_error) {
            return Err(Error::AllFailed(error.clone()));
        }
        rows.push(row);
    }
    if let Some(path) = &args.json {
        let failed = |source| Error::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(&rows).map_err(|e| failed(e.into()))?;
        match json_on_stdout {
            true => writeln!(std::io::stdout(), "{text}").map_err(failed)?,
            false => std::fs::write(path, text + "\n").map_err(failed)?,
        }
    }
    Ok(())
}
