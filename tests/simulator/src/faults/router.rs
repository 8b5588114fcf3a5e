//! A router: the real state machine of requests, assembler included, on simulated links. What the engine's
//! `dispatch.rs` does with tasks and channels, with events.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Instant,
};

use volley_proto::v1;
use volley_router::{
    engine::{
        EngineConfig, StartError, StreamError,
        request::{Left, Order, Place, Request, Taken},
    },
    generation::{Delta, Generation},
};

use super::{
    Event,
    etcd::{Etcd, View},
    net::{End, MILLI, Message, Micros, Net, Process, SECOND},
};
use crate::model;

/// Prompt tokens of a message: small, so that submissions come in pieces.
const CHUNK: usize = 7;
/// Before a link is tried again.
const RETRY: Micros = 100 * MILLI;
/// Batches that a client may leave unread.
const CLIENT_BUFFER: usize = 4;
/// Between attempts to reach a scheduler.
const BACKOFF: (Micros, Micros) = (50 * MILLI, 2 * SECOND);

/// A link's sending side. Clones are the same one.
#[derive(Clone)]
struct Link(Rc<LinkState>);

struct LinkState {
    end: End,
    serves: Cell<bool>,
    lists: Cell<u64>,
    broken: Cell<bool>,
    /// Said, but not sent yet.
    outbox: RefCell<Vec<Message>>,
}

/// A client's call: what waits to be read.
pub(super) struct Call {
    pub(super) client: usize,
    pub(super) unread: VecDeque<Vec<Delta>>,
    /// A batch for which there was no room; the second: it is the last.
    held: Option<(Vec<Delta>, bool)>,
    pub(super) error: Option<StartError>,
    pub(super) slow: bool,
}

/// What a step gave a request.
#[derive(Default)]
struct Batch {
    id: u64,
    deltas: Vec<Delta>,
    admitted: bool,
    end: Option<Taken>,
}

pub(super) struct Router {
    number: usize,
    config: EngineConfig,
    /// Where virtual time starts, for the parts that know only `Instant`.
    epoch: Instant,
    view: View,
    links: Vec<Link>,
    backoffs: BTreeMap<usize, Micros>,
    requests: BTreeMap<u64, Request<Link>>,
    pub(super) calls: BTreeMap<u64, Call>,
    /// Requests that look for a place.
    searching: BTreeSet<u64>,
    /// When requests ended.
    ended: BTreeMap<u64, Micros>,
    /// How long after its end a request's outputs may still come; any time, when things go wrong.
    patience: Option<Micros>,
    next: u64,
}

// === impl Place for Link ===

impl Place for Link {
    fn submit(&self, order: Order) -> bool {
        if self.broken.get() {
            return false;
        }
        let mut outbox = self.outbox.borrow_mut();
        let Order { request, attempt, header, prompt } = order;
        let mut header = Some(header);
        let mut rest = &prompt[..];
        loop {
            let (chunk, left) = rest.split_at(rest.len().min(CHUNK));
            rest = left;
            let (header, last) = (header.take(), rest.is_empty());
            outbox.push(Message::Submit(v1::Submit {
                request,
                attempt,
                header,
                prompt: chunk.to_vec(),
                last,
            }));
            if last {
                return true;
            }
        }
    }

    fn cancel(&self, request: u64, _attempt: u32, choice: Option<u32>) {
        self.outbox.borrow_mut().push(Message::Cancel(v1::Cancel { request, choice }));
    }

    fn lists(&self) -> u64 {
        self.lists.get()
    }

    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl std::ops::Deref for Link {
    type Target = LinkState;

    fn deref(&self) -> &LinkState {
        &self.0
    }
}

// === impl Router: links ===

impl Router {
    pub(super) fn new(number: usize, patience: Option<Micros>) -> Self {
        Self {
            number,
            config: EngineConfig::default(),
            epoch: Instant::now(),
            view: View::default(),
            links: Vec::new(),
            backoffs: BTreeMap::new(),
            requests: BTreeMap::new(),
            calls: BTreeMap::new(),
            searching: BTreeSet::new(),
            ended: BTreeMap::new(),
            patience,
            next: 1,
        }
    }

    fn process(&self) -> Process {
        Process::Router(self.number)
    }

    fn clock(&self, net: &Net) -> Instant {
        self.epoch + net.time()
    }

    /// The cluster has changed: a link to every scheduler.
    pub(super) fn follow(&mut self, etcd: &Etcd, net: &mut Net) {
        match etcd.away(self.process(), net.now) {
            0 => self.view = etcd.view().clone(),
            wait => return net.after(wait + MILLI, self.process(), Event::Watch),
        }
        for scheduler in self.view.schedulers() {
            if let std::collections::btree_map::Entry::Vacant(new) = self.backoffs.entry(scheduler) {
                new.insert(BACKOFF.0);
                net.after(0, Process::Router(self.number), Event::LinkUp(scheduler));
            }
        }
    }

    /// Tries to link up with a scheduler; the scheduler's end of the new wire.
    pub(super) fn link_up(&mut self, scheduler: usize, net: &mut Net) -> Option<End> {
        if !self.view.members.contains(&Process::Scheduler(scheduler)) {
            self.backoffs.remove(&scheduler);
            return None;
        }
        let Some(end) = net.connect(self.process(), Process::Scheduler(scheduler)) else {
            self.back_off(scheduler, net);
            return None;
        };
        self.backoffs.insert(scheduler, BACKOFF.0);
        self.links.push(Link(Rc::new(LinkState {
            end,
            serves: Cell::new(false),
            lists: Cell::new(0),
            broken: Cell::new(false),
            outbox: RefCell::default(),
        })));
        Some(end.other())
    }

    fn back_off(&mut self, scheduler: usize, net: &mut Net) {
        let backoff = self.backoffs.entry(scheduler).or_insert(BACKOFF.0);
        let wait = *backoff;
        *backoff = (wait * 2).min(BACKOFF.1);
        net.after(wait, self.process(), Event::LinkUp(scheduler));
    }

    pub(super) fn deliver(&mut self, end: End, message: Message, net: &mut Net) {
        let Some(link) = self.links.iter().find(|link| link.end == end).cloned() else { return };
        match message {
            Message::Models(serves) => {
                link.serves.set(serves);
                link.lists.set(link.lists.get() + 1);
                self.changed(net);
            }
            Message::Output(output) => self.take_step(&link, output, net),
            _ => self.abandon(&link, net),
        }
        self.flush(net);
    }

    pub(super) fn broken(&mut self, end: End, net: &mut Net) {
        if let Some(link) = self.links.iter().find(|link| link.end == end).cloned() {
            self.abandon(&link, net);
            self.flush(net);
        }
    }

    fn abandon(&mut self, link: &Link, net: &mut Net) {
        link.broken.set(true);
        net.close(link.end);
        self.links.retain(|other| !other.is(link));
        self.changed(net);
        let all: Vec<u64> = self.requests.keys().copied().collect();
        all.into_iter().for_each(|id| self.displace(id, link, true, net));
        if let Process::Scheduler(scheduler) = net.peer(link.end) {
            self.back_off(scheduler, net);
        }
    }

    fn changed(&mut self, net: &mut Net) {
        let process = self.process();
        self.searching.iter().for_each(|&id| net.after(0, process, Event::Search(id)));
    }

    /// Sends what requests have said on their links.
    fn flush(&mut self, net: &mut Net) {
        for link in &self.links {
            link.outbox.borrow_mut().drain(..).for_each(|message| net.send(link.end, message));
        }
    }
}

// === impl Router: requests ===

impl Router {
    /// A client calls: its number here, or why not.
    pub(super) fn call(
        &mut self,
        client: usize,
        generation: &Generation,
        net: &mut Net,
    ) -> Result<u64, StartError> {
        let id = self.next;
        self.next += 1;
        let mut call = Call { client, unread: VecDeque::new(), held: None, error: None, slow: false };
        let mut request = Request::new(id, model::model(), generation, 0);
        if !request.needs_scheduler() {
            call.unread.push_back(request.finish_locally());
            self.calls.insert(id, call);
            net.after(0, Process::World, Event::Readable(client));
            return Ok(id);
        }
        self.requests.insert(id, request);
        if !self.place(id, net) {
            self.requests.remove(&id);
            let message = "no scheduler serves the model".to_owned();
            return Err(StartError::Unavailable { message, retry_after: std::time::Duration::from_secs(1) });
        }
        self.calls.insert(id, call);
        self.flush(net);
        Ok(id)
    }

    fn place(&mut self, id: u64, net: &mut Net) -> bool {
        let now = self.clock(net);
        let Some(request) = self.requests.get_mut(&id) else { return true };
        let mut links: Vec<_> = self.links.iter().filter(|link| link.serves.get()).cloned().collect();
        while !links.is_empty() {
            let link = links.swap_remove(net.random.below(links.len()));
            if request.place_on(&link, now) {
                return true;
            }
        }
        false
    }

    fn take_step(&mut self, link: &Link, output: v1::StepOutput, net: &mut Net) {
        let mut current: Option<Batch> = None;
        for sequence in output.sequences {
            let id = sequence.request;
            let late = |&since: &Micros| self.patience.is_some_and(|patience| net.now > since + patience);
            if self.ended.get(&id).is_some_and(late) {
                net.broken.push(format!("request {id} of router {} runs long after its end", self.number));
            }
            if current.as_ref().is_none_or(|batch| batch.id != id)
                && let Some(batch) = current.replace(Batch { id, ..Batch::default() })
            {
                self.give(link, batch, net);
            }
            let (Some(batch), Some(request)) = (&mut current, self.requests.get_mut(&id)) else { continue };
            match request.take(sequence, &mut batch.deltas) {
                Taken::Running { admitted } => batch.admitted |= admitted,
                end => batch.end = Some(end),
            }
        }
        if let Some(batch) = current {
            self.give(link, batch, net);
        }
    }

    fn give(&mut self, link: &Link, batch: Batch, net: &mut Net) {
        let Batch { id, deltas, admitted, end } = batch;
        let finished = matches!(end, Some(Taken::Finished));
        if finished {
            self.end(id, net);
        }
        if admitted || !deltas.is_empty() {
            self.send(id, deltas, finished, net);
        }
        match end {
            Some(Taken::Displaced { unannounced }) => self.displace(id, link, unannounced, net),
            Some(Taken::Failed(error)) => self.fail(id, error, net),
            Some(Taken::Finished | Taken::Running { .. }) | None => {}
        }
    }

    fn send(&mut self, id: u64, deltas: Vec<Delta>, finished: bool, net: &mut Net) {
        let Some(call) = self.calls.get_mut(&id) else { return self.end(id, net) };
        if call.unread.len() < CLIENT_BUFFER {
            call.unread.push_back(deltas);
            return net.after(0, Process::World, Event::Readable(call.client));
        }
        call.held = Some((deltas, finished));
        if let Some(request) = self.requests.get_mut(&id) {
            request.pause();
        }
        let wait = self.config.slow_client.as_micros() as Micros;
        net.after(wait, self.process(), Event::SlowClient(id));
    }

    /// The client has read a batch: there is room for what was held.
    pub(super) fn resume(&mut self, id: u64, net: &mut Net) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let Some((deltas, finished)) = call.held.take() else { return };
        call.unread.push_back(deltas);
        net.after(0, Process::World, Event::Readable(call.client));
        if !finished {
            self.search(id, net);
        }
        self.flush(net);
    }

    pub(super) fn slow_client(&mut self, id: u64, net: &mut Net) {
        if let Some(call) = self.calls.get_mut(&id).filter(|call| call.held.is_some()) {
            call.held = None;
            call.slow = true;
            net.after(0, Process::World, Event::Readable(call.client));
            self.end(id, net);
            self.flush(net);
        }
    }

    fn displace(&mut self, id: u64, link: &Link, counts: bool, net: &mut Net) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        match request.leave(link, counts, self.config.max_moves) {
            Left::Elsewhere => {}
            Left::Moves => self.search(id, net),
            Left::TooOften => {
                let message = format!("it moved {} times", self.config.max_moves);
                self.fail(id, unavailable(message), net);
            }
        }
    }

    fn search(&mut self, id: u64, net: &mut Net) {
        self.searching.insert(id);
        net.after(0, self.process(), Event::Search(id));
    }

    /// Submits a request if a link will have it, or waits.
    pub(super) fn find_place(&mut self, id: u64, net: &mut Net) {
        if !self.searching.contains(&id) {
            return;
        }
        let now = self.clock(net);
        let Some(request) = self.requests.get_mut(&id) else {
            self.searching.remove(&id);
            return;
        };
        let deadline = request.deadline(self.config.move_deadline, now);
        if self.place(id, net) {
            self.searching.remove(&id);
        } else if now >= deadline {
            self.searching.remove(&id);
            self.fail(id, unavailable("no worker took it over in time".into()), net);
        } else {
            let wait = (deadline - now).as_micros() as Micros;
            net.after(wait.clamp(1, RETRY), self.process(), Event::Search(id));
        }
        self.flush(net);
    }

    fn fail(&mut self, id: u64, error: StartError, net: &mut Net) {
        self.end(id, net);
        if let Some(call) = self.calls.get_mut(&id) {
            call.error = Some(error);
            net.after(0, Process::World, Event::Readable(call.client));
        }
    }

    fn end(&mut self, id: u64, net: &Net) {
        if let Some(mut request) = self.requests.remove(&id) {
            self.ended.insert(id, net.now);
            request.end();
        }
    }

    /// Whether a call has more for its client.
    pub(super) fn readable(&self, id: u64) -> bool {
        self.calls.get(&id).is_some_and(|call| !call.unread.is_empty() || stream_error(call).is_some())
    }

    /// The client is gone.
    pub(super) fn hang_up(&mut self, id: u64, net: &mut Net) {
        self.calls.remove(&id);
        self.end(id, net);
        self.flush(net);
    }

    /// What is left when all is over.
    pub(super) fn leaks(&self) -> Option<String> {
        let left = self.requests.len() + self.calls.len();
        (left > 0).then(|| format!("router {} has {left} requests", self.number))
    }
}

fn unavailable(message: String) -> StartError {
    StartError::Unavailable { message, retry_after: std::time::Duration::from_secs(1) }
}

/// What a client is told when its stream ends early.
pub(super) fn stream_error(call: &Call) -> Option<StreamError> {
    match (&call.error, call.slow) {
        (Some(error), _) => Some(error.clone().into()),
        (None, true) => Some(StreamError::SlowClient),
        (None, false) => None,
    }
}
