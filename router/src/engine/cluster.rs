//! The schedulers as the router knows them: a link to each, kept up, and the models that they serve.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OnceCell, watch};
use volley_proto::v1::ModelCard;

use super::{
    ModelError,
    artefacts::{self, FetchError},
    link::Link,
};
use crate::text::{model::Model, tokenizer::TextPool};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The links that are up, and what is served over them.
pub(crate) struct Cluster {
    state: Mutex<State>,
    /// Marked at every change of links or models.
    changed: watch::Sender<()>,
    pool: TextPool,
    /// Spreads the choice of two links.
    draws: AtomicU64,
}

#[derive(Default)]
struct State {
    links: Vec<Arc<Link>>,
    /// Names that were ever served, in lower case: such a model is away, not unknown.
    known: HashSet<String>,
    /// What is served, for the log.
    served: BTreeSet<String>,
    /// By hash; a cell per model, so that it is fetched once.
    models: HashMap<String, Arc<OnceCell<Arc<Model>>>>,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(pool: TextPool) -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()), pool, draws: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, link: Arc<Link>) {
        let mut state = self.state();
        state.links.push(link);
        metrics::gauge!("volley_router_links").set(state.links.len() as f64);
    }

    /// A link is over. `news`: not by this router's own end, so that what it served is missed.
    pub(crate) fn remove(&self, link: &Arc<Link>, news: bool) {
        let mut state = self.state();
        state.links.retain(|other| !Arc::ptr_eq(other, link));
        metrics::gauge!("volley_router_links").set(state.links.len() as f64);
        if news {
            state.log_models();
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// A link has a new list of models.
    pub(crate) fn models_changed(&self) {
        let mut state = self.state();
        let cards: Vec<_> = state.links.iter().flat_map(|link| link.cards()).collect();
        state.known.extend(cards.iter().map(|card| card.name.to_ascii_lowercase()));
        // A model that nothing serves any more is dropped; requests that run hold their own.
        state.models.retain(|hash, _| cards.iter().any(|card| card.hash == *hash));
        state.log_models();
        drop(state);
        self.changed.send_replace(());
    }

    /// Tells of every change from now on.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The served models, one card per name: the newest.
    pub(crate) fn cards(&self) -> Vec<Arc<ModelCard>> {
        let links = self.state().links.clone();
        let mut newest: BTreeMap<String, Arc<ModelCard>> = BTreeMap::new();
        for card in links.iter().filter(|link| !link.is_broken()).flat_map(|link| link.cards()) {
            let best = newest.entry(card.name.clone()).or_insert_with(|| card.clone());
            if (card.created, &card.hash) > (best.created, &best.hash) {
                *best = card;
            }
        }
        newest.into_values().collect()
    }

    /// A link that serves `hash`: the less loaded of two drawn ones. Not one of `refused`.
    pub(crate) fn pick(&self, hash: &str, refused: &[Arc<Link>]) -> Option<Arc<Link>> {
        let mut links = self.state().links.clone();
        links.retain(|link| {
            !link.is_broken() && link.serves(hash) && !refused.iter().any(|other| Arc::ptr_eq(other, link))
        });
        let draw = mix(self.draws.fetch_add(1, Ordering::Relaxed)) as usize;
        let count = links.len();
        let first = links.get(draw.checked_rem(count)?)?.clone();
        // The second is drawn among the others.
        let second = (draw / count).checked_rem(count - 1).map(|other| (draw % count + 1 + other) % count);
        match second.and_then(|second| links.get(second)) {
            Some(second) if second.load() < first.load() => Some(second.clone()),
            _ => Some(first),
        }
    }

    /// The model of that name, with its files.
    pub(crate) async fn model(&self, name: &str) -> Result<Arc<Model>, ModelError> {
        let cards = self.cards();
        let exact = cards.iter().find(|card| card.name == name);
        let card = exact.or_else(|| cards.iter().find(|card| card.name.eq_ignore_ascii_case(name)));
        let Some(card) = card else {
            let state = self.state();
            let away = state.known.is_empty() || state.known.contains(&name.to_ascii_lowercase());
            return Err(if away { not_ready() } else { ModelError::NotFound });
        };
        let cell = self.state().models.entry(card.hash.clone()).or_default().clone();
        let model = cell.get_or_try_init(|| self.load(card)).await?;
        Ok(model.clone())
    }

    async fn load(&self, card: &Arc<ModelCard>) -> Result<Arc<Model>, ModelError> {
        let link = self.pick(&card.hash, &[]).ok_or_else(not_ready)?;
        let files = artefacts::fetch(&link, &card.hash).await.map_err(|error| {
            tracing::warn!(model = card.name, scheduler = link.scheduler, %error, "cannot fetch the model's files");
            match error {
                FetchError::Status(_) => not_ready(),
                bad => ModelError::Invalid(bad.to_string()),
            }
        })?;
        let (card, pool) = (ModelCard::clone(card), self.pool.clone());
        let built = tokio::task::spawn_blocking(move || Model::from_files(card, &files, pool)).await;
        match built {
            Ok(Ok(model)) => Ok(Arc::new(model)),
            Ok(Err(bad)) => Err(ModelError::Invalid(bad.to_string())),
            Err(panic) => Err(ModelError::Invalid(panic.to_string())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Tells the log which models came and went.
    fn log_models(&mut self) {
        let cards = self.links.iter().filter(|link| !link.is_broken()).flat_map(|link| link.cards());
        let served: BTreeSet<String> = cards.map(|card| card.name.clone()).collect();
        for model in served.difference(&self.served) {
            tracing::info!(model, "a model is served");
        }
        for model in self.served.difference(&served) {
            tracing::warn!(model, "a model is served no more");
        }
        self.served = served;
    }
}

fn not_ready() -> ModelError {
    ModelError::NotReady { retry_after: RETRY_AFTER }
}

/// SplitMix64's output function: consecutive numbers become unrelated ones.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (n ^ (n >> 31)) >> 1
}
