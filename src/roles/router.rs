//! `volley router`: the HTTP API in front of the schedulers found in etcd.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use volley_membership::{Member, Membership, Role};
use volley_proto::transport::Transport;
use volley_router::{
    auth::Keys,
    config::{Config, StopWord, UnknownFields},
    engine::{Engine, EngineConfig},
    limits::Limits,
    output::Format,
    peers::Peers,
    server,
};

use super::{Error, address, cluster, fresh_id, parts::Parts, shutdown};
use crate::cli::{self, ApiArgs, RouterArgs};

/// Serves until a signal, then lets running answers finish.
pub(crate) async fn run(args: RouterArgs, metrics: PrometheusHandle) -> Result<(), Error> {
    let ending = shutdown::on_signal()?;
    let config = config(&args.api)?;
    let (listener, listening) = address::bind(&args.listen).await?;
    let membership = cluster(&args.cluster).await?;
    let mut parts = Parts::default();
    let engine = engine_config(&args.api);
    let id = engine.router_id.clone();
    start(&mut parts, (config, engine), membership.clone(), Transport::default(), listener, metrics);
    // The other routers find what this one keeps by its address.
    let address = address::advertised(args.advertise.as_deref(), listening, address::host_name);
    tracing::info!(id, address, "serving");
    let registration =
        membership.register(Role::Router, Member { id, address, model: String::new() }).await?;
    tokio::select! {
        failure = parts.failure() => return Err(failure),
        () = ending.cancelled() => {}
    }
    parts.stop().await;
    registration.revoke().await;
    Ok(())
}

/// Starts the HTTP server, and the links behind it, which are stopped after it.
pub(super) fn start(
    parts: &mut Parts,
    (config, engine): (Config, EngineConfig),
    membership: Arc<dyn Membership>,
    transport: Transport,
    listener: TcpListener,
    metrics: PrometheusHandle,
) -> Arc<Engine> {
    let links = CancellationToken::new();
    let peers = Peers::new(&engine.router_id, membership.members(Role::Router));
    let engine = Arc::new(Engine::connect(engine, membership.clone(), transport, links.clone()));
    parts.start("HTTP server", |stop| server::serve(config, engine.clone(), peers, metrics, listener, stop));
    parts.start("links", |stop| async move {
        stop.cancelled().await;
        links.cancel();
        drop(membership); // its watches end with it, so it lasts as long as the links
        Ok::<_, Error>(())
    });
    engine
}

/// What the router makes of the flags; the rest are its own defaults.
pub(super) fn config(args: &ApiArgs) -> Result<Config, Error> {
    Ok(Config {
        account: args.account.clone(),
        aliases: args.alias.clone(),
        keys: keys(args)?,
        limits: Limits {
            requests: args.limit_requests,
            prompt_tokens: args.limit_prompt_tokens,
            generated_tokens: args.limit_generated_tokens,
        },
        top_k_max: args.max_top_k,
        top_logprobs_max: args.max_top_logprobs,
        stop_word: match args.stop_word {
            cli::StopWord::Include => StopWord::Include,
            cli::StopWord::Exclude => StopWord::Exclude,
        },
        unknown_fields: match args.unknown_fields {
            cli::UnknownFields::Error => UnknownFields::Error,
            cli::UnknownFields::Warn => UnknownFields::Warn,
            cli::UnknownFields::Ignore => UnknownFields::Ignore,
        },
        tool_format: match args.tool_parser {
            cli::ToolParser::Auto => None,
            cli::ToolParser::Hermes => Some(Format::Hermes),
            cli::ToolParser::Llama3 => Some(Format::Llama),
            cli::ToolParser::Pythonic => Some(Format::Pythonic),
            cli::ToolParser::Mistral => Some(Format::Mistral),
        },
        body_limit: args.body_limit_mib << 20,
        client_timeout: Duration::from_secs(args.client_timeout),
        grace: Duration::from_secs(args.grace),
        ..Config::default()
    })
}

/// What the engine makes of them.
pub(super) fn engine_config(args: &ApiArgs) -> EngineConfig {
    EngineConfig {
        router_id: fresh_id("router"),
        client_buffer: args.client_buffer,
        move_deadline: Duration::from_secs(args.move_deadline),
        ..EngineConfig::default()
    }
}

fn keys(args: &ApiArgs) -> Result<Keys, Error> {
    let Some(path) = &args.api_keys_file else {
        return Ok(Keys::new(args.api_keys.iter().map(String::as_str)));
    };
    let failed = |source| Error::Keys { path: path.clone(), source };
    let keys = Keys::from_file(path).map_err(failed)?;
    // A file that was meant to protect the API and holds nothing must not open it to everyone.
    if !keys.required() {
        return Err(failed(std::io::Error::other("it has no key")));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn configured(flags: &[&str]) -> Result<Config, Error> {
        let all = ["volley", "router"].into_iter().chain(flags.iter().copied());
        match Cli::parse_from(all).command {
            Command::Router(args) => config(&args.api),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_that_is_not_given_leaves_the_routers_own_default() {
        assert_eq!(configured(&[]).unwrap(), Config::default());
    }

    #[test]
    fn an_empty_file_of_keys_does_not_open_the_api() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(configured(&["--api-keys-file", path]).unwrap_err().to_string().contains("it has no key"));
        std::fs::write(path, "# ours\nsecret\n").unwrap();
        assert!(configured(&["--api-keys-file", path]).unwrap().keys.required());
        assert!(configured(&["--api-keys", "a,b"]).unwrap().keys.required());
        assert!(!configured(&[]).unwrap().keys.required());
        assert!(
            configured(&["--api-keys-file", "no-such-file"])
                .unwrap_err()
                .to_string()
                .contains("no-such-file")
        );
    }
}
