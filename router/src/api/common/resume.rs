//! Streams that any router can take up again: an extension that no SDK trips over.
//!
//! ```text
//!  client ── x-volley-resume: new ──────────────────────────▶ router A
//!         ◀─ x-volley-resume: TOKEN, events with `id: 7,3` ──  (dies)
//!  client ── the same body, x-volley-resume: TOKEN ─────────▶ router B
//!            last-event-id: 7,3
//!         ◀─ the events behind those ────────────────────────
//! ```
//!
//! An event's id says how many events each choice has had. Nothing is stored for this: the token names the answer's
//! id, time and seed, so the same tokens are drawn again, and what the client has is left out.

use std::{
    fmt::{self, Display},
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::generate::Ask;
use crate::http::{error::ApiError, sse::Outbox};

/// Asks for resumable streams, and names one.
const RESUME: HeaderName = HeaderName::from_static(NAME);
const NAME: &str = "x-volley-resume";
/// The last event that the client has: the header that browsers' event sources send.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// Asks for a stream that can be resumed.
const NEW: &str = "new";

/// What a request says of resuming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Its stream shall be one that can be resumed.
    New,
    /// It goes on with a stream, behind so many events of each choice (none: from its start).
    On(Origin, Vec<u32>),
}

/// What a stream's bytes come from, beside the request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The answer's id.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    pub seed: u64,
    /// Of the model: tokens, template and weights.
    fingerprint: String,
    /// Of the prompts: the request must be the same one.
    prompts: String,
}

/// Counts a stream's events, and tells which of them the client has.
pub(crate) struct Marks {
    sent: Vec<u32>,
    seen: Vec<u32>,
}

/// An event's id.
struct EventId<'a>(&'a [u32]);

// === impl Resume ===

impl Resume {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(RESUME) else { return Ok(None) };
        let bad = |name: &HeaderName| ApiError::value(name.as_str(), format!("{name} is malformed"));
        let value = value.to_str().map_err(|_| bad(&RESUME))?;
        if value == NEW {
            return Ok(Some(Self::New));
        }
        let origin = value.parse().map_err(|()| bad(&RESUME))?;
        let Some(last) = headers.get(LAST_EVENT) else { return Ok(Some(Self::On(origin, Vec::new()))) };
        let last = last.to_str().map_err(|_| bad(&LAST_EVENT))?;
        let seen: Result<_, _> = last.split(',').map(str::parse).collect();
        Ok(Some(Self::On(origin, seen.map_err(|_| bad(&LAST_EVENT))?)))
    }
}

// === impl Origin ===

impl Origin {
    fn new(kind: &str, ask: &Ask) -> Self {
        Self {
            id: format!("{kind}{}", uuid::Uuid::new_v4()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            seed: ask.settings.draws.seed(),
            fingerprint: ask.model.fingerprint(),
            prompts: String::new(),
        }
    }

    /// Of the answer that a request asks for, whose id begins with `kind`; and for a stream that can be resumed,
    /// what of it the client has.
    pub(crate) fn of(
        kind: &str,
        ask: &Ask,
        resume: Option<&Resume>,
    ) -> Result<(Self, Option<Marks>), ApiError> {
        let Some(resume) = resume.cloned() else { return Ok((Self::new(kind, ask), None)) };
        let refused = |name: &HeaderName, message: &str| Err(ApiError::value(name.as_str(), message));
        if ask.settings.stream.is_none() {
            return refused(&RESUME, "only a stream can be resumed: set stream to true");
        }
        let prompts = digest(&ask.prompts);
        let choices = ask.prompts.len() * ask.settings.n as usize;
        let (origin, seen) = match resume {
            Resume::New => (Self { prompts, ..Self::new(kind, ask) }, vec![0; choices]),
            Resume::On(origin, _) if origin.fingerprint != ask.model.fingerprint() => {
                let message = "the stream's model is not served any more, so it can't be resumed".into();
                return Err(ApiError::NotFound { param: NAME, message });
            }
            Resume::On(origin, _) if origin.prompts != prompts || !origin.id.starts_with(kind) => {
                return refused(&RESUME, "this is not the request whose stream is to be resumed");
            }
            Resume::On(origin, seen) if seen.is_empty() => (origin, vec![0; choices]),
            Resume::On(_, seen) if seen.len() != choices => {
                return refused(&LAST_EVENT, "last-event-id must have a number for each choice");
            }
            Resume::On(origin, seen) => (origin, seen),
        };
        Ok((origin, Some(Marks { sent: vec![0; choices], seen })))
    }

    /// The header that lets a client resume.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        headers.extend(HeaderValue::from_str(&self.to_string()).ok().map(|token| (RESUME, token)));
    }
}

/// Tells prompts apart.
fn digest(prompts: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for prompt in prompts {
        hasher.update(&(prompt.len() as u64).to_le_bytes());
        prompt.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, created, seed, fingerprint, prompts } = self;
        write!(f, "1.{created}.{seed}.{fingerprint}.{prompts}.{id}")
    }
}

impl FromStr for Origin {
    type Err = ();

    fn from_str(token: &str) -> Result<Self, ()> {
        let fields: Vec<&str> = token.split('.').collect();
        let &["1", created, seed, fingerprint, prompts, id] = fields.as_slice() else { return Err(()) };
        // The id is repeated in every event: it is one of ours.
        let fits = |text: &str| {
            text.len() <= 64 && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
        };
        if ![fingerprint, prompts, id].into_iter().all(fits) {
            return Err(());
        }
        Ok(Self {
            id: id.to_owned(),
            created: created.parse().map_err(|_| ())?,
            seed: seed.parse().map_err(|_| ())?,
            fingerprint: fingerprint.to_owned(),
            prompts: prompts.to_owned(),
        })
    }
}

// === impl Marks ===

impl Marks {
    /// Counts an event of a choice, and names the event that is written next after it. False: the client has it.
    pub(crate) fn count(&mut self, choice: u32, out: &mut Outbox) -> bool {
        let (Some(sent), Some(seen)) = (self.sent.get_mut(choice as usize), self.seen.get(choice as usize))
        else {
            return true;
        };
        *sent += 1;
        if *sent <= *seen {
            return false;
        }
        out.name(&EventId(&self.sent));
        true
    }
}

impl Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, count) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{count}")?;
        }
        Ok(())
    }
}
