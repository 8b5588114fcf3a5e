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
//! Given several servers of one cluster, a stream that breaks off is resumed at the next, and must go on with its very
//! next event.
//!
//! Token counts are the server's own usage where it sends one, else chunks.

use std::{io::Write, time::Duration};

use crate::{
    cli::BenchArgs,
    client::{self, Server},
};

mod answer;
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
    let servers = args.url.iter().map(|url| Server::parse(url, args.api_key.clone()));
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let model = match (&args.model, servers.first()) {
        (Some(model), _) => model.clone(),
        (None, Some(server)) => server.first_model().await?,
        (None, None) => String::new(), // the command line has one at least
    };
    let extra = match &args.extra {
        None => serde_json::Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|e| Error::Extra(e.to_string()))?,
    };
    let json_on_stdout = args.json.as_deref() == Some("-");
    if !json_on_stdout {
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        println!("{}, {model}: {} prompts, {} tokens each", servers.join(" "), args.mode, args.max_tokens);
        println!("{}", report::head(args.health));
    }
    let mut rows = Vec::new();
    for &concurrency in &args.concurrency {
        let load = Load {
            servers: servers.clone(),
            endpoint: args.endpoint,
            bodies: prompts::bodies(args, &model, &extra, concurrency),
            concurrency,
            timeout: Duration::from_secs(args.timeout),
            poll_health: args.health,
        };
        let row = report::row(args, &model, &load::run(load).await);
        if !json_on_stdout {
            println!("{}", report::line(&row, args.health));
            if row.resumed > 0 {
                println!("  {} times a stream went on at another server", row.resumed);
            }
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
