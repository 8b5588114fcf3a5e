//! One request and its answer: from one server, or going on at the next where a stream breaks off.

use std::time::{Duration, Instant};

use hyper::body::Bytes;
use sha2::{Digest, Sha256};

use crate::client::{Error, Resume, Server, Usage};

/// How often a stream is tried to be resumed, and the pause before: longer together than a scheduler takes to be replaced.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(200);

/// One finished request.
#[derive(Debug)]
pub(super) struct Answer {
    /// Which of the load's.
    pub(super) number: usize,
    /// To the first chunk with text, or to the end when there was none.
    pub(super) first: Duration,
    /// Between chunks with text.
    pub(super) gaps: Vec<Duration>,
    pub(super) whole: Duration,
    /// Chunks with text.
    pub(super) chunks: u64,
    pub(super) usage: Option<Usage>,
    /// How often it went on at another server.
    pub(super) resumed: u64,
    /// Of its text.
    pub(super) digest: [u8; 32],
}

/// What has been heard.
struct Heard {
    start: Instant,
    first: Option<Instant>,
    last: Instant,
    gaps: Vec<Duration>,
    chunks: u64,
    usage: Option<Usage>,
    text: Sha256,
    /// How to go on elsewhere.
    resume: Resume,
}

/// Sends the `number`-th request to its server and hears the answer to its end. Where there are several servers, a stream
/// that breaks off is resumed at the next.
pub(super) async fn hear(
    servers: &[Server],
    number: usize,
    path: &str,
    body: Bytes,
) -> Result<Answer, Error> {
    let mut heard = Heard::new();
    let (mut resumed, mut tries) = (0, 0);
    for server in servers.iter().cycle().skip(number % servers.len().max(1)) {
        let begun = heard.resume.token.is_some();
        let result = heard.hear(server, path, body.clone(), servers.len() > 1).await;
        match result {
            Ok(went_on) => return Ok(heard.answer(number, resumed + u64::from(begun && went_on))),
            Err((error, _)) if servers.len() == 1 || tries == TRIES || !error.may_pass() => {
                return Err(error);
            }
            Err((_, went_on)) => resumed += u64::from(begun && went_on),
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Err(Error::Broken("there is no server".into()))
}

// === impl Heard ===

impl Heard {
    fn new() -> Self {
        let start = Instant::now();
        let (gaps, text, resume) = (Vec::new(), Sha256::new(), Resume::default());
        Self { start, first: None, last: start, gaps, chunks: 0, usage: None, text, resume }
    }

    /// Hears what a server has to say; whether it took the stream on, also beside an error.
    async fn hear(
        &mut self,
        server: &Server,
        path: &str,
        body: Bytes,
        resumable: bool,
    ) -> Result<bool, (Error, bool)> {
        let resume = resumable.then_some(&self.resume);
        let mut stream = server.stream(path, body, resume).await.map_err(|error| (error, false))?;
        self.resume.token = stream.token.take().or(self.resume.token.take());
        loop {
            let next = stream.next(|chunk| {
                self.text.update(chunk.text());
                (!chunk.text().is_empty(), chunk.usage)
            });
            let Some((has_text, usage)) = next.await.map_err(|error| (error, true))? else { return Ok(true) };
            self.usage = usage.or(self.usage);
            if let Some(id) = stream.id().filter(|id| self.resume.last.as_deref() != Some(id)) {
                if resumable && events(id) != self.resume.last.as_deref().map_or(0, events) + 1 {
                    let message = format!("event {id} after {:?}", self.resume.last);
                    return Err((Error::OutOfTurn(message), true));
                }
                self.resume.last = Some(id.to_owned());
            }
            if has_text {
                self.say();
            }
        }
    }

    /// A chunk with text has come.
    fn say(&mut self) {
        let now = Instant::now();
        match self.first {
            None => self.first = Some(now),
            Some(_) => self.gaps.push(now - self.last),
        }
        self.last = now;
        self.chunks += 1;
    }

    fn answer(self, number: usize, resumed: u64) -> Answer {
        let whole = self.start.elapsed();
        Answer {
            number,
            first: self.first.map_or(whole, |first| first - self.start),
            gaps: self.gaps,
            whole,
            chunks: self.chunks,
            usage: self.usage,
            resumed,
            digest: self.text.finalize().into(),
        }
    }
}

/// How many events an id counts: it has a number for each choice.
fn events(id: &str) -> u64 {
    id.split(',').filter_map(|count| count.parse::<u64>().ok()).sum()
}
