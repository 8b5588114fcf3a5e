//! Addresses: where to listen, and what others are told.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net::TcpListener;

use super::Error;

/// Listens at `host:port`, or says clearly why not.
pub(super) async fn bind(listen: &str) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => " (another process has it: choose another with --listen)",
            io::ErrorKind::InvalidInput => " (expected HOST:PORT)",
            _ => "",
        };
        Error::Listen { address: listen.to_owned(), source, hint }
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

/// The URL that others reach this process at: what the operator says, else where it listens, else the host's name.
pub(super) fn advertised(
    advertise: Option<&str>,
    listening: SocketAddr,
    host: impl Fn() -> String,
) -> String {
    if let Some(address) = advertise {
        return if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    }
    match listening.ip().is_unspecified() {
        true => format!("http://{}:{}", host(), listening.port()),
        false => format!("http://{listening}"),
    }
}

/// The URL for a person on this machine.
pub(super) fn local_url(listening: SocketAddr) -> String {
    let ip: IpAddr = match listening.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    format!("http://{}", SocketAddr::new(ip, listening.port()))
}

/// The host's name, as the other containers of a network resolve it.
pub(super) fn host_name() -> String {
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let told = |advertise, listening: &str| {
            advertised(advertise, listening.parse().unwrap(), || "pod-1".to_owned())
        };
        assert_eq!(told(None, "127.0.0.1:9001"), "http://127.0.0.1:9001");
        assert_eq!(told(None, "0.0.0.0:9001"), "http://pod-1:9001");
        assert_eq!(told(None, "[::]:9001"), "http://pod-1:9001");
        assert_eq!(told(Some("10.0.0.7:1"), "0.0.0.0:9001"), "http://10.0.0.7:1");
        assert_eq!(told(Some("http://a:1"), "0.0.0.0:9001"), "http://a:1");
        assert_eq!(local_url("0.0.0.0:80".parse().unwrap()), "http://127.0.0.1:80");
        assert_eq!(local_url("[::]:80".parse().unwrap()), "http://[::1]:80");
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_to_be() {
        let (_listener, local) = bind("127.0.0.1:0").await.unwrap();
        let message = bind(&local.to_string()).await.unwrap_err().to_string();
        assert!(message.contains("another process has it") && message.contains("--listen"), "{message}");
        assert!(bind("nonsense").await.unwrap_err().to_string().contains("HOST:PORT"));
    }
}
