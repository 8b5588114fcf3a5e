//! What the router's metrics mean, for whoever reads /metrics.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Tells the recorder.
pub(crate) fn describe() {
    describe_counter!(
        "volley_http_requests_total",
        "Requests answered, by route, status and the code of the error, if it is one; 499: the client left"
    );
    describe_histogram!(
        "volley_http_request_seconds",
        Unit::Seconds,
        "From a request's headers to its answer's end"
    );
    describe_histogram!(
        "volley_time_to_first_token_seconds",
        Unit::Seconds,
        "From a request's headers to its first token"
    );
    describe_counter!("volley_prompt_tokens_total", "Prompt tokens of complete answers");
    describe_counter!("volley_cached_prompt_tokens_total", "Of these, taken from a prefix cache");
    describe_counter!("volley_completion_tokens_total", "Generated tokens of complete answers");
    describe_gauge!("volley_router_active_requests", "Prompts in flight");
    describe_gauge!("volley_router_links", "Schedulers that this router is linked to");
    describe_counter!(
        "volley_router_moves_total",
        "Requests taken away from a scheduler that was lost, or had no worker"
    );
    describe_counter!("volley_router_cancels_total", "Cancellations sent to schedulers");
    describe_counter!("volley_router_pauses_total", "Sequences paused because their client read too slowly");
    describe_counter!("volley_router_slow_clients_total", "Clients dropped because they read too slowly");
    describe_counter!("volley_router_tokens_total", "Tokens received from schedulers");
    describe_counter!("volley_router_text_microseconds_total", "Time that text threads spent making text");
}
