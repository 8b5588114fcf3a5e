//! Draws: on the device where it can, else from logits that are read back.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use super::{
    lock,
    staging::{Part, Staging},
};
use crate::{
    Draw, Drawing, Drawn, Error, Logprobs,
    cpu::{self, Isa, Pool},
    cuda::{
        Device, Event, Memory, Pinned, View,
        ops::{self, Asked, DrawRow, Edit, EditLogits, MAX_ALTERNATIVES, PenaltyRow, RestoreLogits, Sample},
    },
};

/// Logits of a row that are changed on the device; a row with more is drawn on the host, whatever its neighbours have.
const MOST_EDITS: usize = 4096;

/// What rows of logits are chosen and drawn with.
pub(super) struct Draws {
    staging: Staging,
    /// What edited logits were.
    raw: Memory<f32>,
    results: Memory<u8>,
    /// Room for results on the host.
    backs: Backs,
    /// The end of the last copy of results.
    copied: Option<Arc<dyn Event>>,
    /// Rows at most.
    rows: usize,
    /// Draws what the device can't.
    pool: Pool,
    isa: Isa,
}

/// Logits of a step's chosen rows.
pub(super) struct Rows<'a> {
    /// `[rows, stride]`
    pub(super) logits: &'a mut Memory<f32>,
    pub(super) vocab: usize,
    pub(super) stride: usize,
}

/// What is asked of the device, row by row.
#[derive(Default)]
struct Orders {
    rows: Vec<DrawRow>,
    penalties: Vec<PenaltyRow>,
    edits: Vec<Edit>,
    masks: Vec<u32>,
    asked: Vec<Asked>,
}

/// Results on their way back.
struct UnderWay {
    copied: Arc<dyn Event>,
    back: Option<Pinned>,
    backs: Backs,
    layout: Layout,
    width: usize,
    asked: Vec<Asked>,
    draws: Vec<Ordered>,
}

/// A draw that was ordered.
struct Ordered {
    /// Drawn on the host already.
    here: Option<Drawn>,
    logprobs: bool,
}

/// Pinned memory that no results are on their way to.
type Backs = Arc<Mutex<Vec<Pinned>>>;

/// Where results lie, in bytes.
struct Layout {
    tokens: Range<usize>,
    logprobs: Range<usize>,
    top_tokens: Range<usize>,
    top: Range<usize>,
}

// === impl Draws ===

impl Draws {
    pub(super) fn new(device: &Arc<dyn Device>, rows: usize, vocab: usize) -> Result<Self, Error> {
        let edits = rows * MOST_EDITS.min(vocab);
        let row =
            size_of::<DrawRow>() + size_of::<PenaltyRow>() + size_of::<Asked>() + 4 * vocab.div_ceil(32);
        let bytes = rows * (row + size_of::<u32>()) + edits * size_of::<Edit>();
        let results = Layout::new(rows, rows, MAX_ALTERNATIVES.min(vocab)).top.end;
        Ok(Self {
            staging: Staging::new(device, bytes, 6)?,
            raw: Memory::new(device, edits)?,
            results: Memory::new(device, results)?,
            // One of the step under way, one of the next.
            backs: Arc::new(Mutex::new(vec![Pinned::new(device, results)?, Pinned::new(device, results)?])),
            copied: None,
            rows,
            pool: Pool::new(1)?,
            isa: Isa::detect(),
        })
    }

    /// Sends the numbers of chosen rows to the device.
    pub(super) fn choose(&mut self, rows: &[usize]) -> Result<Part, Error> {
        self.staging.clear()?;
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let part = self.staging.put(&rows)?;
        self.staging.upload()?;
        Ok(part)
    }

    /// What was sent, on the device.
    pub(super) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// What was drawn last, on the device.
    pub(super) fn drawn(&self) -> View<'_, u32> {
        self.results.slice(0..4 * self.rows).cast()
    }

    /// Draws from row `i` as `draws[i]` says.
    pub(super) fn draw(
        &mut self,
        device: &Arc<dyn Device>,
        rows: &mut Rows<'_>,
        draws: &[Draw],
    ) -> Result<Drawing, Error> {
        let (mut orders, mut ordered) = (Orders::default(), Vec::with_capacity(draws.len()));
        for (row, draw) in draws.iter().enumerate() {
            let here =
                if draws_here(draw, rows.vocab) { Some(self.draw_here(rows, row, draw)?) } else { None };
            orders.add(draw, here.as_ref(), rows.vocab);
            ordered.push(Ordered { here, logprobs: draw.logprobs.is_some() });
        }
        let width = orders.asked.iter().map(|asked| asked.alternatives).max().unwrap_or(0) as usize;
        let layout = Layout::new(draws.len(), orders.asked.len(), width);
        let (mut back, backs) = (None, self.backs.clone());
        let copied = if draws.is_empty() {
            device.mark()?
        } else {
            // The results before these must be on their way no more.
            self.copied.take().map_or(Ok(()), |copied| copied.hold())?;
            self.launch(&**device, rows, &orders, &layout, width)?;
            let free = lock(&self.backs).pop();
            let to = free.map_or_else(|| Pinned::new(device, self.results.len()), Ok)?;
            let bytes = back.insert(to).get_mut(0..layout.top.end).unwrap_or_default();
            // SAFETY: the results' memory is as long; `back` is nobody's before `UnderWay` has waited, and it always does.
            let copied = unsafe { device.download(bytes, self.results.view().address())? };
            self.copied = Some(copied.clone());
            copied
        };
        let (asked, draws) = (orders.asked, ordered);
        Ok(Drawing::under_way(Arc::new(UnderWay { copied, back, backs, layout, width, asked, draws })))
    }

    /// On the host.
    fn draw_here(&self, rows: &Rows<'_>, row: usize, draw: &Draw) -> Result<Drawn, Error> {
        let logits = rows.logits.read_part(row * rows.stride..row * rows.stride + rows.vocab)?;
        let drawn = cpu::draw(&self.pool, self.isa, &logits, rows.vocab, std::slice::from_ref(draw));
        Ok(drawn.into_iter().next().unwrap_or_default())
    }

    fn launch(
        &mut self,
        device: &dyn Device,
        rows: &mut Rows<'_>,
        orders: &Orders,
        layout: &Layout,
        width: usize,
    ) -> Result<(), Error> {
        let staging = &mut self.staging;
        let draws = staging.put(&orders.rows)?;
        let penalties = staging.put(&orders.penalties)?;
        let edits = staging.put(&orders.edits)?;
        let masks = staging.put(&orders.masks)?;
        let asked = staging.put(&orders.asked)?;
        staging.upload()?;
        let (count, tokens, stride) = (orders.rows.len(), rows.vocab, rows.stride);
        let mut logits = rows.logits.slice_mut(0..count * stride);
        let mut raw = self.raw.slice_mut(0..orders.edits.len());
        ops::logits_edit(
            device,
            &EditLogits {
                logits: logits.reborrow(),
                edits: staging.view(&edits),
                penalties: staging.view(&penalties),
                raw: raw.reborrow(),
                tokens,
                stride,
            },
        )?;
        let (drawn, rest) = self.results.slice_mut(0..layout.top.end).split_at(layout.logprobs.start);
        let mut drawn = drawn.cast::<u32>();
        ops::sample(
            device,
            &Sample {
                logits: logits.view(),
                draws: staging.view(&draws),
                masks: (!orders.masks.is_empty()).then(|| staging.view(&masks)),
                out: drawn.slice(0..count),
                tokens,
                stride,
            },
        )?;
        if orders.asked.is_empty() {
            return Ok(());
        }
        // Log-probabilities are of the raw logits.
        let restore = RestoreLogits {
            logits: logits.reborrow(),
            edits: staging.view(&edits),
            raw: raw.view(),
            tokens,
            stride,
        };
        ops::logits_restore(device, &restore)?;
        let (out, rest) = rest.split_at(layout.top_tokens.start - layout.logprobs.start);
        let (top_tokens, top) = rest.split_at(layout.top.start - layout.top_tokens.start);
        let n = orders.asked.len();
        let (mut out, mut top_tokens, mut top) = (out.cast(), top_tokens.cast(), top.cast());
        ops::logprobs(
            device,
            &ops::Logprobs {
                logits: logits.view(),
                asked: staging.view(&asked),
                drawn: drawn.slice(0..count).view(),
                out: out.slice(0..n),
                top_tokens: top_tokens.slice(0..n * width),
                top: top.slice(0..n * width),
                width,
                tokens,
                stride,
            },
        )
    }
}

/// What the kernels don't do: they rank tokens by their logits only, and have so much room for a row.
fn draws_here(draw: &Draw, vocab: usize) -> bool {
    let alternatives = draw.logprobs.is_some_and(|n| (n as usize).min(vocab) > MAX_ALTERNATIVES);
    let edits = draw.penalties.as_ref().map_or(0, |penalties| penalties.history.seen().len())
        + draw.bias.len()
        + draw.banned.len();
    draw.is_by_surprise() || alternatives || edits > MOST_EDITS.min(vocab)
}

// === impl UnderWay ===

impl crate::drawing::UnderWay for UnderWay {
    fn wait(&self) -> Result<(), Error> {
        self.copied.wait()
    }

    fn drawn(&self) -> Result<Vec<Drawn>, Error> {
        self.copied.wait()?;
        let mut entries = 0..self.asked.len();
        let drawn = self.draws.iter().enumerate().map(|(i, draw)| {
            draw.here.clone().unwrap_or_else(|| Drawn {
                token: self.word(&self.layout.tokens, i),
                mirostat: None,
                logprobs: draw.logprobs.then(|| entries.next()).flatten().map(|entry| self.logprobs(entry)),
            })
        });
        Ok(drawn.collect())
    }
}

impl UnderWay {
    fn word(&self, range: &Range<usize>, i: usize) -> u32 {
        let (bytes, at) = (self.back.as_deref().unwrap_or_default(), range.start + 4 * i);
        bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// Entry `i` of the log-probabilities.
    fn logprobs(&self, i: usize) -> Logprobs {
        let float = |range, i| f32::from_bits(self.word(range, i));
        let (layout, alternatives) = (&self.layout, self.asked[i].alternatives as usize);
        let top = (i * self.width..i * self.width + alternatives)
            .map(|at| (self.word(&layout.top_tokens, at), float(&layout.top, at)))
            .filter(|(token, _)| *token != u32::MAX);
        Logprobs { logprob: float(&layout.logprobs, i), top: top.collect() }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.copied.wait().is_ok() {
            lock(&self.backs).extend(self.back.take());
        }
    }
}

// === impl Orders ===

impl Orders {
    /// Adds a row: one that was drawn `here` already only passes its token on.
    fn add(&mut self, draw: &Draw, here: Option<&Drawn>, vocab: usize) {
        let row = self.rows.len() as u32;
        let given = here.map(|drawn| drawn.token).or(draw.given);
        let mut mask = -1;
        if let (Some(allowed), None) = (&draw.allowed, given) {
            let words = vocab.div_ceil(32);
            mask = (self.masks.len() / words) as i32;
            self.masks.extend(allowed.iter().copied().chain(std::iter::repeat(0)).take(words));
        }
        self.rows.push(DrawRow {
            temperature: draw.temperature,
            top_p: draw.top_p,
            min_p: draw.min_p,
            top_k: draw.top_k,
            seed: draw.seed,
            choice: draw.choice,
            position: draw.position,
            given: given.map_or(-1, |token| token as i32),
            mask,
        });
        let penalties = draw.penalties.as_ref();
        self.penalties.push(PenaltyRow {
            frequency: penalties.map_or(0.0, |penalties| penalties.frequency),
            presence: penalties.map_or(0.0, |penalties| penalties.presence),
            repetition: penalties.map_or(1.0, |penalties| penalties.repetition),
            unused: 0.0,
        });
        if given.is_none() {
            self.edit(row, draw);
        }
        if let (Some(alternatives), None) = (draw.logprobs, here) {
            self.asked.push(Asked { row, alternatives: alternatives.min(vocab as u32) });
        }
    }

    /// Changes to a row's logits, one for each token.
    fn edit(&mut self, row: u32, draw: &Draw) {
        let first = self.edits.len();
        let edit = |token, history, bias| Edit { row, token, history, bias };
        if let Some(penalties) = &draw.penalties {
            let seen = penalties.history.seen().iter();
            self.edits.extend(
                seen.map(|seen| edit(seen.token, Edit::HISTORY | seen.generated.min(Edit::HISTORY - 1), 0.0)),
            );
        }
        self.edits.extend(draw.bias.iter().map(|&(token, bias)| edit(token, 0, bias)));
        self.edits.extend(draw.banned.iter().map(|&token| edit(token, Edit::BANNED, 0.0)));
        self.edits[first..].sort_by_key(|edit| edit.token);
        let mut kept = first;
        for i in first..self.edits.len() {
            let next = self.edits[i];
            if kept > first && self.edits[kept - 1].token == next.token {
                let same = &mut self.edits[kept - 1];
                same.history |= next.history;
                same.bias += next.bias;
            } else {
                self.edits[kept] = next;
                kept += 1;
            }
        }
        self.edits.truncate(kept);
    }
}

// === impl Layout ===

impl Layout {
    /// For tokens of so many rows, and so many entries of log-probabilities with up to `width` alternatives.
    fn new(rows: usize, entries: usize, width: usize) -> Self {
        let after = |start: usize, words: usize| start..(start + 4 * words).next_multiple_of(16);
        let tokens = after(0, rows);
        let logprobs = after(tokens.end, entries);
        let top_tokens = after(logprobs.end, entries * width);
        let top = after(top_tokens.end, entries * width);
        Self { tokens, logprobs, top_tokens, top }
    }
}
