//! What holds for every request, whatever its route: the path's canonical form, CORS, the id, the error
//! envelope, headers, a panic that takes only its own connection.
//!
//! ```text
//!  request ─▶ serve ─▶ routes (axum) ─▶ admit (drain, keys) ─▶ api
//! ```

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tower::ServiceExt;
use tracing::Instrument;

use super::{
    body,
    error::{ApiError, Style},
    exchange::{self, Exchange, Streamed},
    path,
};
use crate::{
    api::{self, App},
    engine::Generate,
};

/// The model that the path names, for the first SDKs.
#[derive(Clone, Debug)]
pub(crate) struct PathModel(pub String);

/// The methods that some route takes.
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
/// What a page's script may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, request-id, retry-after, openai-processing-ms, fireworks-prompt-tokens, \
     fireworks-cached-prompt-tokens, fireworks-server-time-to-first-token, fireworks-server-processing-time, \
     fireworks-sampling-options, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
     x-ratelimit-limit-tokens-prompt, x-ratelimit-remaining-tokens-prompt, x-ratelimit-limit-tokens-generated, \
     x-ratelimit-remaining-tokens-generated, x-ratelimit-over-limit, x-volley-resume",
);

/// Every route, by its canonical path.
pub(crate) fn routes<E: Generate>(app: Arc<App<E>>) -> Router {
    Router::new()
        .route("/chat/completions", post(api::chat::create::<E>))
        .route("/completions", post(api::completions::create::<E>))
        .route("/responses", post(api::responses::create::<E>))
        .route("/responses/{id}", get(api::responses::retrieve::<E>).delete(api::responses::delete::<E>))
        .route("/responses/{id}/cancel", post(api::responses::cancel::<E>))
        .route("/messages", post(api::messages::create::<E>))
        .route("/messages/count_tokens", post(api::messages::count_tokens::<E>))
        .route("/embeddings", post(api::embeddings::create::<E>))
        .route("/tokenize", post(api::tokenize::tokenize::<E>))
        .route("/detokenize", post(api::tokenize::detokenize::<E>))
        .route("/models", get(api::models::list::<E>))
        .route("/models/{*id}", get(api::models::retrieve::<E>))
        .route_layer(middleware::from_fn_with_state(app.clone(), admit::<E>))
        .route("/", get(api::health::root))
        .route("/health", get(api::health::health))
        .route("/healthz", get(api::health::health))
        .route("/ready", get(api::health::ready::<E>))
        .route("/metrics", get(api::health::metrics::<E>))
        .route("/version", get(api::health::version))
        .route("/openapi.json", get(api::document::serve::<E>))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

/// A route's name for metrics: few, whatever is asked for.
fn label(path: &str) -> &'static str {
    match path {
        "/chat/completions" => "/chat/completions",
        "/completions" => "/completions",
        "/messages" | "/messages/count_tokens" => "/messages",
        "/embeddings" => "/embeddings",
        "/tokenize" | "/detokenize" => "/tokenize",
        "/models" => "/models",
        "/health" | "/healthz" => "/health",
        "/ready" => "/ready",
        "/metrics" => "/metrics",
        "/responses" => "/responses",
        path if path.starts_with("/models/") => "/models/*",
        path if path.starts_with("/responses/") => "/responses/*",
        _ => "other",
    }
}

/// Answers any request.
pub(crate) async fn serve(routes: Router, request: Request) -> Result<Response, Infallible> {
    let asked = request.uri().path().to_owned();
    let canonical = path::canonical(&asked);
    let route = canonical.as_ref().map_or("other", |canonical| label(&canonical.path));
    let exchange = Arc::new(Exchange::new(request.headers(), asked, route));
    let span = exchange::span(&exchange, request.headers());
    let origin = request.headers().get(header::ORIGIN).cloned();

    let mut response = match canonical {
        _ if request.method() == Method::OPTIONS => preflight(request.headers()),
        None => refused(request, ApiError::body("invalid_path", "The path is malformed")),
        Some(canonical) => {
            let request = rewrite(request, canonical, exchange.clone());
            let answer = AssertUnwindSafe(routes.oneshot(request)).catch_unwind().instrument(span);
            match answer.await {
                Ok(Ok(response)) => response,
                Err(_panic) => refused_late(ApiError::Internal("a fault, reported to the log".into())),
            }
        }
    };
    if let Some(error) = response.extensions().get::<Arc<ApiError>>() {
        let style = if route == "/messages" { Style::Anthropic } else { Style::OpenAi };
        let mut rendered = error.respond(&exchange.id, style);
        // What the route said beside the error; its length was that of an empty body.
        let said = response.headers().iter();
        let kept =
            said.filter(|(name, _)| *name == header::ALLOW || name.as_str().starts_with("x-ratelimit-"));
        rendered.headers_mut().extend(kept.map(|(name, value)| (name.clone(), value.clone())));
        exchange.fail(error);
        response = rendered;
    }
    finish_headers(response.headers_mut(), &exchange, origin);
    if response.extensions().get::<Streamed>().is_none() {
        exchange.finish(response.status());
    }
    Ok(response)
}

/// The request as the routes know it.
fn rewrite(mut request: Request, canonical: path::Canonical, exchange: Arc<Exchange>) -> Request {
    // A canonical path is made of the segments of a valid one.
    let path = if canonical.path.is_empty() { "/" } else { &canonical.path };
    *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
    request.extensions_mut().insert(exchange);
    if let Some(engine) = canonical.engine {
        request.extensions_mut().insert(PathModel(engine));
    }
    request
}

fn finish_headers(headers: &mut HeaderMap, exchange: &Exchange, origin: Option<HeaderValue>) {
    if let Ok(id) = HeaderValue::from_str(&exchange.id) {
        headers.insert("x-request-id", id.clone());
        // The first OpenAI SDK reads only this name.
        headers.insert("request-id", id);
    }
    headers.insert("openai-processing-ms", HeaderValue::from(exchange.elapsed().as_millis() as u64));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
}

/// The answer to a browser's question whether it may ask. Needs no key: browsers send none.
fn preflight(asked: &HeaderMap) -> Response {
    const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    // A `*` would not cover Authorization.
    const REQUESTED: HeaderName = header::ACCESS_CONTROL_REQUEST_HEADERS;
    headers.extend(
        asked.get(REQUESTED).map(|requested| (header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone())),
    );
    response
}

/// An error for a request whose body nobody will read.
fn refused(request: Request, error: ApiError) -> Response {
    body::discard(request);
    refused_late(error)
}

fn refused_late(error: ApiError) -> Response {
    axum::response::IntoResponse::into_response(error)
}

async fn not_found(request: Request) -> Response {
    let path = request.extensions().get::<Arc<Exchange>>().map_or_else(String::new, |x| x.path.clone());
    refused(request, ApiError::PathNotFound(path))
}

async fn method_not_allowed(request: Request) -> Response {
    let method = request.method().to_string();
    refused(request, ApiError::MethodNotAllowed(method))
}

/// Lets a request through with its tenant, before anything of its body is read. What costs something counts
/// against its key's rates.
async fn admit<E: Generate>(State(app): State<Arc<App<E>>>, mut request: Request, next: Next) -> Response {
    let tenant = match app.check_open().and_then(|()| app.config.keys.check(request.headers())) {
        Ok(tenant) => tenant,
        Err(error) => return refused(request, error),
    };
    request.extensions_mut().insert(tenant.clone());
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (mut response, over) = match app.limiter.admit(&tenant) {
        Ok(()) => (next.run(request).await, false),
        Err(error) => (refused(request, error), true),
    };
    app.limiter.tell(&tenant, over, response.headers_mut());
    response
}
