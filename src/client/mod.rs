//! A small client of any OpenAI-compatible server, for `bench` and `chat`.
//!
//! Plain HTTP/1.1 over hyper, a connection per request, server-sent events; no TLS, no redirects, no retries. A
//! benchmark's client runs beside the server on the same cores, so it does as little as it can.

use std::{borrow::Cow, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

mod sse;

use sse::Sse;

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// Asks for a stream that can be resumed, and names one.
const RESUME: &str = "x-volley-resume";
/// The most of an error's body that is shown.
const SHOWN: usize = 300;

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// `host:port`.
    authority: String,
    /// What comes before `/completions`: the URL's own path, `/v1` when it has none.
    prefix: String,
    key: Option<String>,
}

/// A request that did not get its answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The URL is none that this client can use.
    #[error("{url:?}: {why}")]
    Url {
        /// As given.
        url: String,
        /// What was expected.
        why: &'static str,
    },
    /// No connection.
    #[error("cannot connect to {authority}: {why}{hint}")]
    Connect {
        /// `host:port`.
        authority: String,
        /// The operating system's reason.
        why: String,
        /// What to look at.
        hint: &'static str,
    },
    /// The server answered with an error.
    #[error("{status}: {body}")]
    Status {
        /// Not 200.
        status: StatusCode,
        /// What its body says is wrong; the start of one that doesn't.
        body: String,
    },
    /// The connection broke, or the answer was none.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// A resumed stream doesn't go on where it broke off.
    #[error("the stream goes on out of turn: {0}")]
    OutOfTurn(String),
    /// An error event in the stream.
    #[error("the stream ended with an error: {0}")]
    Stream(String),
}

/// What is read of a chunk of a completion or of a chat completion.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    /// Tokens, on the chunk that has them.
    #[serde(default)]
    pub usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    #[serde(default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Generated.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// What a client must know to go on with a stream elsewhere: see `deploy/examples/resume.py`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resume {
    /// The server's name for the stream; none before it has begun.
    pub token: Option<String>,
    /// The last event that came whole.
    pub last: Option<String>,
}

/// A streamed answer.
pub(crate) struct Stream {
    /// The server's name for it, if it can be resumed.
    pub token: Option<String>,
    body: Incoming,
    sse: Sse,
    finished: bool,
}

// === impl Server ===

impl Server {
    /// Reads `http://host[:port][/path]`.
    pub(crate) fn parse(url: &str, key: Option<String>) -> Result<Self, Error> {
        let bad = |why| Error::Url { url: url.to_owned(), why };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(bad("https is not supported here: use http, or a proxy")),
            Some(_) => return Err(bad("expected http://host:port")),
            None => url,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let uri: hyper::Uri = authority.parse().map_err(|_| bad("expected http://host:port"))?;
        let host = uri.host().ok_or_else(|| bad("expected http://host:port"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let path = path.trim_end_matches('/');
        let prefix = if path.is_empty() { "/v1".to_owned() } else { format!("/{path}") };
        Ok(Self { authority, prefix, key })
    }

    /// The id of the first model that the server lists.
    pub(crate) async fn first_model(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let body = self.get(&format!("{}/models", self.prefix)).await?;
        let models: Models = serde_json::from_slice(&body)
            .map_err(|e| Error::Broken(format!("{}/models: {e}", self.prefix)))?;
        let first = models.data.into_iter().next();
        first
            .map(|m| m.id)
            .ok_or_else(|| Error::Broken("the server lists no model: name one with --model".into()))
    }

    /// The whole body of a path of the server (not of the API).
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Error> {
        let response = self.send(Method::GET, path, Bytes::new(), None).await?;
        collect(response).await
    }

    /// Posts to an endpoint of the API and reads the events of its answer: of one that can be resumed, or is, where
    /// `resume` says so.
    pub(crate) async fn stream(
        &self,
        endpoint: &str,
        body: Bytes,
        resume: Option<&Resume>,
    ) -> Result<Stream, Error> {
        let path = format!("{}/{endpoint}", self.prefix);
        let response = self.send(Method::POST, &path, body, resume).await?;
        let token = response.headers().get(RESUME).and_then(|token| token.to_str().ok()).map(str::to_owned);
        Ok(Stream { token, body: response.into_body(), sse: Sse::default(), finished: false })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        resume: Option<&Resume>,
    ) -> Result<Response<Incoming>, Error> {
        let connect = |why: String, hint| Error::Connect { authority: self.authority.clone(), why, hint };
        let failed = |e: std::io::Error| {
            let refused = e.kind() == std::io::ErrorKind::ConnectionRefused;
            connect(e.to_string(), if refused { ": is `volley serve` running?" } else { "" })
        };
        let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| connect("no answer".into(), ""))?
            .map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let broken = |e: hyper::Error| Error::Broken(e.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(broken)?;
        tokio::spawn(connection); // ends with the answer, or when its reader is dropped
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if let Some(Resume { token, last }) = resume {
            request = request.header(RESUME, token.as_deref().unwrap_or("new"));
            if let Some(last) = last {
                request = request.header("last-event-id", last);
            }
        }
        let request = request.body(Full::new(body)).map_err(|e| Error::Broken(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let body = collect(response).await?;
        Err(Error::Status { status, body: message(&body) })
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

/// What an error's body says is wrong: its message, where it has one as the API does.
fn message(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = json.as_ref().and_then(|json| json.pointer("/error/message")?.as_str());
    let text = text.map_or_else(|| String::from_utf8_lossy(body), Cow::Borrowed);
    text.chars().take(SHOWN).collect()
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = response.into_body().collect().await.map_err(|e| Error::Broken(e.to_string()))?;
    Ok(body.to_bytes())
}

// === impl Stream ===

impl Stream {
    /// The last event's id, in a stream that can be resumed.
    pub(crate) fn id(&self) -> Option<&str> {
        self.sse.id()
    }

    /// Hands the next chunk to `read`; `None` after `[DONE]`. The text borrows from the buffer, so that reading a
    /// token copies nothing.
    pub(crate) async fn next<T>(&mut self, read: impl FnOnce(&Chunk<'_>) -> T) -> Result<Option<T>, Error> {
        let event = loop {
            if let Some(event) = self.sse.next() {
                break event;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.sse.push(&data);
                    }
                }
                Some(Err(e)) => return Err(Error::Broken(e.to_string())),
                // A few servers end without [DONE]; one that broke has not finished its choice either.
                None if self.finished => return Ok(None),
                None => return Err(Error::Broken("no finish_reason and no [DONE]".into())),
            }
        };
        if event == "[DONE]" {
            return Ok(None);
        }
        let chunk: Chunk<'_> =
            serde_json::from_str(&event).map_err(|e| Error::Broken(format!("an event is no chunk: {e}")))?;
        if let Some(error) = &chunk.error {
            let text = error.get("message").and_then(serde_json::Value::as_str);
            return Err(Error::Stream(text.map_or_else(|| error.to_string(), str::to_owned)));
        }
        self.finished |= chunk.choices().iter().any(|c| c.finish_reason.is_some());
        Ok(Some(read(&chunk)))
    }
}

// === impl Error ===

impl Error {
    /// Whether another server of the cluster may do better.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Url { .. } | Self::OutOfTurn(_) => false,
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Connect { .. } | Self::Broken(_) | Self::Stream(_) => true,
        }
    }
}

// === impl Chunk ===

impl Chunk<'_> {
    /// The first choice's new text; empty when there is none.
    pub(crate) fn text(&self) -> &str {
        let text = self.choices().first().and_then(|choice| {
            choice.text.as_deref().or_else(|| choice.delta.as_ref().and_then(|d| d.content.as_deref()))
        });
        text.unwrap_or_default()
    }

    fn choices(&self) -> &[Choice<'_>] {
        self.choices.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_means_v1() {
        let shown = |url: &str| Server::parse(url, None).map(|s| s.to_string()).map_err(|e| e.to_string());
        assert_eq!(shown("http://127.0.0.1:8000"), Ok("http://127.0.0.1:8000/v1".into()));
        assert_eq!(shown("localhost:8000/"), Ok("http://localhost:8000/v1".into()));
        assert_eq!(shown("http://[::1]:1/inference/v1/"), Ok("http://[::1]:1/inference/v1".into()));
        assert_eq!(shown("http://host"), Ok("http://host:80/v1".into()));
        assert!(shown("https://host").is_err_and(|e| e.contains("https")));
        assert!(shown("ftp://host").is_err());
        assert!(shown("http://a b").is_err());
    }

    #[test]
    fn an_error_is_shown_by_its_message() {
        assert_eq!(
            message(br#"{"error": {"message": "Model not found: x", "code": "NOT_FOUND"}}"#),
            "Model not found: x"
        );
        assert_eq!(message(b"Bad Gateway"), "Bad Gateway");
    }

    #[tokio::test]
    async fn a_refused_connection_asks_whether_the_server_runs() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = Server::parse(&free.to_string(), None).unwrap().first_model().await.unwrap_err();
        assert!(error.to_string().contains("is `volley serve` running?"), "{error}");
    }

    #[test]
    fn both_kinds_of_chunk_are_read() {
        let read =
            |json: &str| serde_json::from_str::<Chunk<'_>>(json).map(|c| (c.text().to_owned(), c.usage));
        let usage = Usage { prompt_tokens: 3, completion_tokens: 2 };
        let cases = [
            (r#"{"choices":[{"index":0,"text":"a\n"}]}"#, "a\n", None),
            (r#"{"choices":[{"delta":{"content":"b","role":"assistant"}}],"usage":null}"#, "b", None),
            (
                r#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
                "",
                Some(usage),
            ),
            (r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#, "", Some(usage)),
            (r#"{"choices":null}"#, "", None),
        ];
        for (json, text, usage) in cases {
            assert_eq!(read(json).unwrap(), (text.to_owned(), usage), "{json}");
        }
    }
}
