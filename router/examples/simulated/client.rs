//! Clients that cost little: they count events, and read nothing of them.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

/// Streams that share an HTTP/2 connection.
const SHARE: u64 = 200;
/// Streams that are opened at a time.
const OPENING: usize = 64;

/// Where and how to ask.
pub(crate) struct Clients {
    pub(crate) address: String,
    pub(crate) h2: bool,
}

/// How many events all streams together have had.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<Counter>);

#[derive(Default)]
struct Counter {
    events: AtomicU64,
    wanted: AtomicU64,
    reached: Notify,
}

// === impl Progress ===

impl Progress {
    /// Waits for that many.
    pub(crate) async fn reach(&self, wanted: u64) {
        self.0.wanted.store(wanted, Ordering::SeqCst);
        while self.0.events.load(Ordering::SeqCst) < wanted {
            self.0.reached.notified().await;
        }
    }

    /// Counts the ends of events in what was read; `open`: the byte before was a line's end.
    fn count(&self, read: &[u8], open: &mut bool) -> u64 {
        let mut ends = 0;
        for byte in read {
            let line = *byte == b'\n';
            ends += u64::from(line && *open);
            *open = line && !*open;
        }
        let events = self.0.events.fetch_add(ends, Ordering::SeqCst) + ends;
        if events >= self.0.wanted.load(Ordering::SeqCst) {
            self.0.reached.notify_one();
        }
        ends
    }
}

// === impl Clients ===

impl Clients {
    /// Waits until a request is served.
    pub(crate) async fn until_served(&self, path: &str, body: &Value) {
        let request = self.request(path, body.to_string().as_bytes());
        loop {
            let (mut socket, mut start) = (self.connect().await, [0; 12]);
            socket.write_all(&request).await.unwrap();
            socket.read_exact(&mut start).await.unwrap();
            if start == *b"HTTP/1.1 200" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Opens streams that end with the process; returns when each has begun.
    pub(crate) async fn open(&self, path: &str, body: &Value, streams: u64, progress: &Progress) {
        let body = body.to_string();
        if self.h2 {
            for at in (0..streams).step_by(SHARE as usize) {
                let sender = self.handshake().await;
                let requests =
                    (at..streams.min(at + SHARE)).map(|_| self.stream(sender.clone(), path, &body));
                stream::iter(requests)
                    .buffer_unordered(OPENING)
                    .for_each(async |body| count(body, progress))
                    .await;
            }
            return;
        }
        let sockets = (0..streams).map(|_| self.post(path, &body));
        let sockets = stream::iter(sockets).buffer_unordered(OPENING);
        sockets
            .for_each(async |mut socket| {
                let progress = progress.clone();
                tokio::spawn(async move {
                    let (mut buffer, mut open) = ([0; 4096], false);
                    loop {
                        let read = socket.read(&mut buffer).await.unwrap();
                        assert!(read > 0, "a stream was cut");
                        progress.count(&buffer[..read], &mut open);
                    }
                });
            })
            .await;
    }

    /// Asks `count` times in all over so many connections, each time for an answer that ends.
    pub(crate) async fn ask(&self, path: &str, body: &Value, connections: u64, count: u64) {
        let left = Rc::new(AtomicU64::new(count));
        let request = Rc::new(self.request(path, body.to_string().as_bytes()));
        let streamed = body["stream"] == true;
        let ask = |_| {
            let (left, request) = (left.clone(), request.clone());
            async move {
                let mut socket = self.connect().await;
                let mut buffer = vec![0; 16 << 10];
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
                {
                    socket.write_all(&request).await.unwrap();
                    let mut filled = 0;
                    while !whole(&buffer[..filled], streamed) {
                        let read = socket.read(&mut buffer[filled..]).await.unwrap();
                        assert!(read > 0, "an answer was cut");
                        filled += read;
                    }
                    assert!(
                        buffer.starts_with(b"HTTP/1.1 200"),
                        "{}",
                        String::from_utf8_lossy(&buffer[..filled])
                    );
                }
            }
        };
        stream::iter(0..connections)
            .map(ask)
            .buffer_unordered(connections as usize)
            .collect::<Vec<()>>()
            .await;
    }

    /// The bytes of a request.
    pub(crate) fn request(&self, path: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "POST /v1/{path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    async fn post(&self, path: &str, body: &str) -> TcpStream {
        let mut socket = self.connect().await;
        socket.write_all(&self.request(path, body.as_bytes())).await.unwrap();
        let mut first = [0; 1];
        socket.peek(&mut first).await.unwrap();
        socket
    }

    async fn handshake(&self) -> SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn stream(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        path: &str,
        body: &str,
    ) -> hyper::body::Incoming {
        let request = http::Request::post(format!("http://{}/v1/{path}", self.address))
            .header("content-type", "application/json")
            .body(Full::new(body.to_owned().into()))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body()
    }
}

/// Counts the events of an HTTP/2 stream, in a task of its own.
fn count(mut body: hyper::body::Incoming, progress: &Progress) {
    let progress = progress.clone();
    tokio::spawn(async move {
        let mut open = false;
        while let Some(frame) = body.frame().await {
            progress.count(&frame.unwrap().into_data().unwrap(), &mut open);
        }
    });
}

/// Whether an answer is there to its end.
fn whole(answer: &[u8], streamed: bool) -> bool {
    if streamed {
        return answer.ends_with(b"\r\n0\r\n\r\n");
    }
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let name = b"content-length: ";
    let at = answer.windows(name.len()).position(|text| text == name).unwrap() + name.len();
    let digits = answer[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    answer.len() >= head + 4 + length
}
