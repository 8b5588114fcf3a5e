//! How the parts reach each other: TCP between processes, an in-memory duplex inside one.
//!
//! An address is a URL: `http://host:port` or `inproc://name`. The same gRPC runs over both.

use std::{
    collections::HashMap,
    error::Error,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::transport::{Channel, Endpoint, server::Connected};

/// Bytes that an in-memory connection buffers in each direction.
const DUPLEX_BUFFER: usize = 1 << 20;

/// Opens connections and listeners. Clones share the in-process names.
#[derive(Clone, Default)]
pub struct Transport {
    inproc: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<DuplexStream>>>>,
}

/// Incoming connections, for [`tonic::transport::Server::serve_with_incoming`].
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

/// A byte stream over TCP or within the process.
#[derive(Debug)]
pub enum Connection {
    /// Between processes.
    Tcp(TcpStream),
    /// Within one.
    Inproc(DuplexStream),
}

// === impl Transport ===

impl Transport {
    /// Listens at `inproc://{name}`; a second listener of the same name takes its place.
    pub fn listen_inproc(&self, name: &str) -> Incoming {
        let (connect, accepted) = mpsc::unbounded_channel();
        self.names().insert(name.to_owned(), connect);
        stream::unfold(accepted, |mut accepted| async {
            accepted.recv().await.map(|io| (Ok(Connection::Inproc(io)), accepted))
        })
        .boxed()
    }

    /// Serves the connections of a bound TCP listener. A failed accept is passed on and is not the end.
    pub fn listen_tcp(listener: TcpListener) -> Incoming {
        stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            });
            Some((accepted, listener))
        })
        .boxed()
    }

    /// Connects to `address`. The channel notices a dead or frozen peer within a few seconds.
    pub async fn connect(&self, address: &str) -> Result<Channel, ConnectError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError {
            address: address.to_owned(),
            source,
        };
        if let Some(name) = address.strip_prefix("inproc://") {
            let (transport, name) = (self.clone(), name.to_owned());
            let connector = tower::service_fn(move |_| {
                let io = transport.dial_inproc(&name);
                async move { io.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://inproc");
            return endpoint.connect_with_connector(connector).await.map_err(|e| failed(e.into()));
        }
        Endpoint::from_shared(address.to_owned())
            .map_err(|e| failed(e.into()))?
            .connect_timeout(Duration::from_secs(3))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|e| failed(e.into()))
    }

    fn dial_inproc(&self, name: &str) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(DUPLEX_BUFFER);
        let listening = self.names().get(name).is_some_and(|listener| listener.send(far).is_ok());
        if listening { Ok(near) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<DuplexStream>>> {
        self.inproc.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {address}: {}", bottom(source.as_ref()))]
pub struct ConnectError {
    address: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why a call or a stream ended, in words: what the peer said, or that the connection broke, and of what.
pub fn why(status: &tonic::Status) -> String {
    match status.source() {
        Some(source) => format!("the connection broke: {}", bottom(source)),
        None if status.message().is_empty() => status.code().to_string(),
        None => status.message().to_owned(),
    }
}

/// Of an error the operating system's or the protocol's own words, not the layers around them.
fn bottom<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    error.source().map_or(error, bottom)
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Inproc(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Inproc(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Inproc(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Inproc(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn a_connections_end_is_told_in_words_and_a_peers_word_as_it_is() {
        #[derive(Debug, thiserror::Error)]
        #[error("h2 protocol error")]
        struct Layer(#[source] io::Error);

        let reset = Layer(io::Error::new(io::ErrorKind::ConnectionReset, "reset by peer"));
        assert_eq!(why(&Status::from_error(Box::new(reset))), "the connection broke: reset by peer");
        assert_eq!(
            why(&Status::aborted("a newer scheduler has this worker")),
            "a newer scheduler has this worker"
        );
        assert_eq!(why(&Status::new(Code::Cancelled, "")), Code::Cancelled.to_string());
    }
}
