//! `GET /models` and `GET /models/<id>`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Serialize;
use volley_proto::v1::ModelCard;

use super::App;
use crate::{
    engine::Generate,
    http::{error::ApiError, path},
};

/// `GET /models`.
#[derive(Serialize)]
pub struct List {
    object: &'static str,
    data: Vec<Entry>,
}

/// A model that is served.
#[derive(Serialize)]
pub struct Entry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    kind: &'static str,
    supports_chat: bool,
    supports_image_input: bool,
    supports_tools: bool,
    context_length: u32,
}

pub(crate) async fn list<E: Generate>(State(app): State<Arc<App<E>>>) -> Json<List> {
    let cards = app.engine.models();
    let mut data: Vec<Entry> = cards.iter().map(|card| app.entry(card)).collect();
    // The models themselves first: a client that takes the first gets the name that the operator knows.
    for (alias, _) in &app.config.aliases {
        let names = app.names(alias);
        let meant = |card: &&Arc<ModelCard>| names.iter().any(|name| name.eq_ignore_ascii_case(&card.name));
        data.extend(cards.iter().find(meant).map(|card| Entry { id: alias.clone(), ..app.entry(card) }));
    }
    Json(List { object: "list", data })
}

/// The id is the rest of the path, with its slashes written out or encoded; it is decoded once, here.
pub(crate) async fn retrieve<E: Generate>(
    State(app): State<Arc<App<E>>>,
    request: Request,
) -> Result<Json<Entry>, ApiError> {
    let path = request.uri().path();
    let id = path::decode(path.strip_prefix("/models/").unwrap_or(path));
    let model = app.model(&id).await?;
    let entry = app.entry(&model.card);
    // An alias is listed under its own name.
    let listed = app.config.aliases.iter().any(|(alias, _)| *alias == id);
    Ok(Json(if listed { Entry { id: id.into_owned(), ..entry } } else { entry }))
}

// === impl App ===

impl<E: Generate> App<E> {
    fn entry(&self, card: &ModelCard) -> Entry {
        Entry {
            id: self.id(&card.name),
            object: "model",
            created: card.created,
            owned_by: self.config.account.clone(),
            kind: "HF_BASE_MODEL",
            supports_chat: card.has_chat_template,
            supports_image_input: false,
            supports_tools: card.has_chat_template,
            context_length: card.context_length,
        }
    }
}
