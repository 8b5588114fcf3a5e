//! Every way an HTTP request can fail, and the one place that gives each its status and envelope.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::engine::{GrammarError, ModelError, StartError, StreamError, TextError};

/// How much of a model's name an error repeats.
const NAME_SHOWN: usize = 128;

/// Why a request was not, or not completely, answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// The client must change the request: 400.
    #[error("{message}")]
    Invalid {
        /// Machine-readable, such as `invalid_value`.
        code: &'static str,
        /// The field, as a path such as `messages[1].role`.
        param: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// The client must present a good key: 401.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The client must name another model: 404. Fireworks' SDK looks for the first sentence as it is.
    #[error("Model not found, inaccessible, and/or not deployed: {0}. GET /v1/models lists what is served.")]
    ModelNotFound(String),
    /// What the request refers to is not there (any more): 404.
    #[error("{message}")]
    NotFound {
        /// The field.
        param: &'static str,
        /// What is missing.
        message: String,
    },
    /// Nothing lives at this path: 404.
    #[error("Path not found: {0}")]
    PathNotFound(String),
    /// The path takes other methods: 405.
    #[error("Method not allowed: {0}")]
    MethodNotAllowed(String),
    /// The client stopped sending its body: 408.
    #[error("The request body did not arrive in time")]
    BodyTimeout,
    /// The client must send less: 413.
    #[error("Payload Too Large: a request body may have {limit} bytes")]
    BodyTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// The client must send JSON: 415.
    #[error("Unsupported media type: {0}")]
    UnsupportedMediaType(String),
    /// The client's key has used up its rate: 429.
    #[error("Rate limit reached: {limit} {kind} per minute. Try again in {} s", .retry_after.as_secs())]
    RateLimited {
        /// Of what.
        kind: &'static str,
        /// How many a minute.
        limit: u32,
        /// When to try again.
        retry_after: Duration,
    },
    /// A bound was reached; later is better: 503.
    #[error("The service is overloaded: {message}")]
    Overloaded {
        /// Which bound.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The model is known, but nothing serves it: 503, with Fireworks' code for it.
    #[error("No worker serves this model now. Please retry your request in a moment.")]
    Loading {
        /// When to try again.
        retry_after: Duration,
    },
    /// What serves it went away; later is better: 503.
    #[error("The service is unavailable: {message}")]
    Unavailable {
        /// What is missing.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request's deadline passed: 504.
    #[error("The request's deadline passed")]
    Deadline,
    /// A fault of ours: 500.
    #[error("Internal error: {0}")]
    Internal(String),
}

/// Whose clients an answer is for: how an error looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `{error: {object, type, code, message, param}}`.
    OpenAi,
    /// `{type: "error", error: {type, message}}`.
    Anthropic,
}

/// What a client of Anthropic's API sees of an error.
#[derive(Serialize)]
struct AnthropicEnvelope<'a> {
    r#type: &'static str,
    error: AnthropicFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct AnthropicFields {
    r#type: &'static str,
    message: String,
}

/// What a client sees of an error. All four keys are always there: SDKs index them.
#[derive(Serialize)]
struct Envelope<'a> {
    error: Fields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Fields<'a> {
    object: &'static str,
    r#type: &'static str,
    code: &'a str,
    message: String,
    param: Option<&'a str>,
}

// === impl ApiError ===

impl ApiError {
    /// A value that is not allowed.
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::with_code("invalid_value", param, message)
    }

    /// A field that must be there.
    pub(crate) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Field required, field: '{param}'");
        Self::with_code("missing_required_parameter", param, message)
    }

    /// A field that this server doesn't implement, with a value that matters.
    pub(crate) fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("{param} is not supported");
        Self::with_code("unsupported_parameter", param, message)
    }

    /// A fault of one field.
    pub(crate) fn with_code(
        code: &'static str,
        param: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Invalid { code, param: Some(param.into()), message: message.into() }
    }

    /// The same fault, of the field at that path.
    pub(crate) fn at(self, path: String) -> Self {
        match self {
            Self::Invalid { code: "missing_required_parameter", .. } => Self::missing(path),
            Self::Invalid { code, message, .. } => Self::Invalid { code, param: Some(path), message },
            other => other,
        }
    }

    /// The same fault in the words of an API that calls fields otherwise: the first pair that fits.
    pub(crate) fn renamed(self, names: &[(&str, &str)]) -> Self {
        let Self::Invalid { code, param: Some(param), message } = self else { return self };
        let theirs = names.iter().find(|(ours, _)| param.contains(ours));
        let theirs = theirs.map_or_else(|| param.clone(), |(ours, theirs)| param.replacen(ours, theirs, 1));
        Self::Invalid { code, message: message.replace(&param, &theirs), param: Some(theirs) }
    }

    /// A fault of the body as a whole.
    pub(crate) fn body(code: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { code, param: None, message: message.into() }
    }

    /// Why the model that a request names can't be had.
    pub(crate) fn model(error: ModelError, requested: &str) -> Self {
        match error {
            ModelError::NotFound => Self::ModelNotFound(requested.chars().take(NAME_SHOWN).collect()),
            ModelError::NotReady { retry_after } => Self::Loading { retry_after },
            ModelError::Invalid(reason) => Self::Internal(reason),
        }
    }

    /// A text fault, blamed on the field that the text came from.
    pub(crate) fn text(error: TextError, param: &str) -> Self {
        match error {
            TextError::NoTemplate => Self::value("model", "This model has no chat template; use completions"),
            TextError::Busy => {
                Self::Overloaded { message: error.to_string(), retry_after: Duration::from_secs(1) }
            }
            error => Self::value(param, error.to_string()),
        }
    }

    /// A grammar's fault, blamed on the field that it came from.
    pub(crate) fn grammar(error: GrammarError, param: &str) -> Self {
        use volley_grammar::Error;
        match error {
            GrammarError::Refused(Error::Invalid(message)) => Self::value(param, message),
            GrammarError::Refused(Error::Broken(message)) => Self::Internal(message),
            GrammarError::Refused(Error::TooComplex(_)) | GrammarError::Slow => {
                Self::with_code("schema_too_complex", param, error.to_string())
            }
        }
    }

    /// The HTTP status, also of an error that comes after a stream began.
    pub fn status(&self) -> StatusCode {
        self.classify().0
    }

    /// What sort of error it is, for machines: one of a few dozen.
    pub(crate) fn code(&self) -> &'static str {
        self.classify().2
    }

    /// Status, `type` and `code`: Fireworks' upper-case codes for what a gateway says, OpenAI's style for the rest.
    fn classify(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            Self::Invalid { code, .. } => (StatusCode::BAD_REQUEST, REQUEST, code),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "error", "UNAUTHORIZED"),
            Self::ModelNotFound(_) | Self::PathNotFound(_) => (StatusCode::NOT_FOUND, "error", "NOT_FOUND"),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, "not_found"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "payload_too_large"),
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_media_type")
            }
            Self::RateLimited { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded")
            }
            Self::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "error", "OVERLOADED"),
            Self::Loading { .. } => (StatusCode::SERVICE_UNAVAILABLE, "error", "DEPLOYMENT_SCALING_UP"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "error", "UNAVAILABLE"),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, "error", "DEADLINE_EXCEEDED"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error"),
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::ModelNotFound(_) => Some("model"),
            Self::NotFound { param, .. } => Some(param),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::Overloaded { retry_after, .. }
            | Self::Loading { retry_after }
            | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The envelope: a response's body, or (without an id) the last event of a stream that failed.
    pub(crate) fn envelope(&self, request_id: Option<&str>) -> String {
        let (_, r#type, code) = self.classify();
        let error = Fields { object: "error", r#type, code, message: self.to_string(), param: self.param() };
        crate::http::json::line(&Envelope { error, request_id })
    }

    /// The same, for Anthropic's clients.
    pub(crate) fn anthropic(&self, request_id: Option<&str>) -> String {
        let r#type = match self.status() {
            StatusCode::BAD_REQUEST => "invalid_request_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        let error = AnthropicFields { r#type, message: self.to_string() };
        crate::http::json::line(&AnthropicEnvelope { r#type: "error", error, request_id })
    }

    /// The whole response.
    pub(crate) fn respond(&self, request_id: &str, style: Style) -> Response {
        let envelope = match style {
            Style::OpenAi => self.envelope(Some(request_id)),
            Style::Anthropic => self.anthropic(Some(request_id)),
        };
        let mut response = Response::new(Body::from(envelope));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self, Self::Unauthorized(_)) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::BodyTimeout) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // SDKs would try a 5xx again, and these end the same way.
        if matches!(self, Self::Deadline | Self::Internal(_)) {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(after) = self.retry_after() {
            // Clients obey 1 to 60 s; beyond, some fall back to hammering.
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from((after.as_secs_f64().ceil() as u64).clamp(1, 60)),
            );
        }
        response
    }
}

/// The edge finds the error in the response's extensions and renders it, with the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Overloaded { message, retry_after } => Self::Overloaded { message, retry_after },
            StartError::Unavailable { message, retry_after } => Self::Unavailable { message, retry_after },
            StartError::TooLarge(message) => Self::body("context_length_exceeded", message),
            StartError::Deadline => Self::Deadline,
            StartError::Internal(message) => Self::Internal(message),
        }
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        let retry_after = Duration::from_secs(1);
        match error {
            StreamError::Lost(message) => Self::Unavailable { message, retry_after },
            StreamError::SlowClient => Self::Unavailable { message: error.to_string(), retry_after },
            StreamError::Deadline => Self::Deadline,
            StreamError::Internal(message) => Self::Internal(message),
        }
    }
}
