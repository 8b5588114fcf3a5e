//! What guided sequences may draw: masks, computed beside the forward pass.
//!
//! ```text
//! step thread:   … draw ─ token ─▶ forward pass of the next step ─────────▶ draw …
//!                            │                                      ▲
//! mask threads:              └▶ the matcher takes it in; next mask ─┘
//! ```
//!
//! A grammar is compiled on a thread of its own. Until it is, the sequence's draws are deferred: no step
//! waits for a compiler unless it has nothing else to do.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use volley_grammar::{Compiler, Error, Grammar, Matcher};
use volley_kernels::Draw;

/// The longest wait for a grammar with nothing else to do: a new sequence waits as long at most.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// The least wait for a mask that is being computed: less is not worth a row computed twice.
const LEAST_WAIT: Duration = Duration::from_millis(2);
/// A mask takes a fraction of a millisecond, a step several: one thread keeps up with this many cores' steps.
const CORES_PER_THREAD: usize = 8;

/// Makes guides, and owns the threads that serve them.
pub(crate) struct Guides {
    compiler: Arc<Compiler>,
    compiles: Sender<Job>,
    masks: Sender<Job>,
}

/// What one sequence may draw. The matcher is here, or on its way through a thread.
pub(super) struct Guide {
    masks: Sender<Job>,
    state: State,
}

enum State {
    /// A thread has the matcher, and will answer.
    Away(Readiness, Receiver<Answer>),
    Ready(Box<Matcher>, Vec<u32>),
    Failed(Error),
}

/// How far the next mask is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// The grammar may still have to be compiled.
    Compiling,
    /// The mask is being computed.
    Computing,
    Ready,
}

/// Work for a thread: take in the tokens, and say what may come next.
struct Job {
    from: From,
    tokens: Vec<u32>,
    answer_to: Sender<Answer>,
}

enum From {
    Grammar(Grammar),
    Matcher(Box<Matcher>),
}

type Answer = Result<(Box<Matcher>, Vec<u32>), Error>;

/// How long a step may wait for a mask. `others` are the sequences in the step that don't wait for a grammar.
pub(super) fn patience(readiness: Readiness, others: usize, forward: Duration) -> Duration {
    match readiness {
        Readiness::Compiling if others > 0 => Duration::ZERO,
        Readiness::Compiling => IDLE_WAIT,
        Readiness::Computing | Readiness::Ready => forward.max(LEAST_WAIT),
    }
}

// === impl Guides ===

impl Guides {
    /// Starts the threads. They end when the guides have, and all that they made.
    pub(crate) fn start(compiler: Compiler) -> std::io::Result<Self> {
        let compiler = Arc::new(compiler);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let compiles = threads("volley-grammar", 1, &compiler, volley_kernels::cpu::lower_priority)?;
        let masks = threads("volley-mask", cores.div_ceil(CORES_PER_THREAD), &compiler, || ())?;
        Ok(Self { compiler, compiles, masks })
    }

    /// A guide for a sequence that has drawn `tokens` already.
    pub(super) fn guide(&self, grammar: String, tokens: Vec<u32>) -> Guide {
        let grammar = Grammar::from_wire(grammar);
        let state = match self.compiler.compiled(&grammar) {
            Some(matcher) => send(&self.masks, From::Matcher(Box::new(matcher)), tokens),
            None => send(&self.compiles, From::Grammar(grammar), tokens),
        };
        Guide { masks: self.masks.clone(), state }
    }
}

/// Hands work to a thread.
fn send(to: &Sender<Job>, from: From, tokens: Vec<u32>) -> State {
    let readiness = match from {
        From::Grammar(_) => Readiness::Compiling,
        From::Matcher(_) => Readiness::Computing,
    };
    let (answer_to, answer) = channel();
    match to.send(Job { from, tokens, answer_to }) {
        Ok(()) => State::Away(readiness, answer),
        Err(_) => State::Failed(gone()),
    }
}

/// Starts threads that share a queue.
fn threads(name: &str, count: usize, compiler: &Arc<Compiler>, begin: fn()) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..count {
        let (jobs, compiler) = (jobs.clone(), compiler.clone());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            begin();
            let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            while let Ok(job) = next() {
                let _ = job.answer_to.send(answer(&compiler, job.from, &job.tokens)); // else it has ended
            }
        })?;
    }
    Ok(sender)
}

fn answer(compiler: &Compiler, from: From, tokens: &[u32]) -> Answer {
    let mut matcher = match from {
        From::Grammar(grammar) => Box::new(compiler.compile(&grammar)?),
        From::Matcher(matcher) => matcher,
    };
    matcher.advance(tokens)?;
    let mask = matcher.mask()?;
    Ok((matcher, mask))
}

// === impl Guide ===

impl Guide {
    /// How far the next mask is.
    pub(super) fn readiness(&self) -> Readiness {
        match self.state {
            State::Away(readiness, _) => readiness,
            State::Ready(..) | State::Failed(_) => Readiness::Ready,
        }
    }

    /// What may be drawn next, once that is known: waits for it as long as `patience`.
    pub(super) fn mask(&mut self, patience: Duration) -> Option<Result<&[u32], Error>> {
        if let State::Away(_, answer) = &self.state {
            self.state = match answer.recv_timeout(patience) {
                Ok(Ok((matcher, mask))) => State::Ready(matcher, mask),
                Ok(Err(error)) => State::Failed(error),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => State::Failed(gone()),
            };
        }
        match &self.state {
            State::Away(..) => None,
            State::Ready(_, mask) => Some(Ok(mask)),
            State::Failed(error) => Some(Err(error.clone())),
        }
    }

    /// Takes in what was drawn under the last mask; the next one is begun.
    pub(super) fn push(&mut self, token: u32) {
        self.state = match std::mem::replace(&mut self.state, State::Failed(gone())) {
            State::Ready(matcher, _) => send(&self.masks, From::Matcher(matcher), vec![token]),
            // Nothing is drawn where there is no mask.
            state => state,
        };
    }
}

/// Lets a draw take only what a mask allows. Tokens that are banned besides give way where nothing else is left:
/// a text that can only end must end.
pub(super) fn restrict(draw: &mut Draw, mask: &[u32]) {
    let mut allowed = mask.to_vec();
    for token in draw.banned.drain(..) {
        if let Some(word) = allowed.get_mut(token as usize / 32) {
            *word &= !(1 << (token % 32));
        }
    }
    let nothing = allowed.iter().all(|word| *word == 0);
    draw.allowed = Some(if nothing { mask.to_vec() } else { allowed });
}

fn gone() -> Error {
    Error::Broken("the threads that compute masks have ended".to_owned())
}
