//! The other routers: what one of them keeps is named by its owner, and asked for there.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::watch;
use volley_membership::Members;

use super::{error::ApiError, exchange::Exchange};

/// Characters of a router's mark.
const MARK: usize = 12;
/// Says that a request was passed on: it is not passed on again.
const PASSED_ON: HeaderName = HeaderName::from_static("x-volley-passed-on");
/// Headers that belong to one connection, or to the body as it was sent.
const HOP: [HeaderName; 8] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::TE,
    header::UPGRADE,
];

/// The routers of a cluster, this one among them.
pub struct Peers {
    mark: String,
    members: watch::Receiver<Members>,
    client: Client<HttpConnector, Body>,
}

/// Who keeps something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This router.
    Here,
    /// The router at this address.
    At(String),
    /// Nobody who is there.
    Gone,
}

/// A request as it came, to be passed on.
pub(crate) struct Forward {
    pub method: Method,
    /// Canonical.
    pub path: String,
    pub headers: HeaderMap,
    pub exchange: Arc<Exchange>,
}

// === impl Peers ===

impl Peers {
    /// `router` among the registered ones.
    pub fn new(router: &str, members: watch::Receiver<Members>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        connector.set_nodelay(true);
        // A host that vanished says nothing.
        connector.set_keepalive(Some(Duration::from_secs(15)));
        connector.set_keepalive_interval(Some(Duration::from_secs(5)));
        connector.set_keepalive_retries(Some(3));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { mark: mark(router), members, client }
    }

    /// The only router.
    pub fn alone() -> Self {
        let (_, members) = watch::channel(Members::default());
        Self::new("", members)
    }

    /// A name for something that this router keeps.
    pub(crate) fn name(&self, prefix: &str) -> String {
        format!("{prefix}{}{}", self.mark, uuid::Uuid::new_v4().simple())
    }

    /// Who keeps what is named so.
    pub(crate) fn owner(&self, name: &str, prefix: &str) -> Owner {
        let Some(owner) = name.strip_prefix(prefix).and_then(|rest| rest.get(..MARK)) else {
            return Owner::Gone;
        };
        if owner == self.mark {
            return Owner::Here;
        }
        let members = self.members.borrow();
        let member = members.values().find(|member| mark(&member.id) == owner);
        member.map_or(Owner::Gone, |member| Owner::At(member.address.clone()))
    }

    /// Lets the router at `address` answer.
    pub(crate) async fn pass_on(
        &self,
        address: &str,
        forward: Forward,
        body: Bytes,
    ) -> Result<Response, ApiError> {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(address, %error, "another router cannot be asked");
            let message = "the router that keeps this cannot be reached".into();
            ApiError::Unavailable { message, retry_after: Duration::from_secs(1) }
        };
        let mut request = http::Request::new(Body::from(body));
        *request.method_mut() = forward.method;
        let uri = format!("{}{}", address.trim_end_matches('/'), forward.path);
        *request.uri_mut() = uri.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
        *request.headers_mut() = forward.headers;
        HOP.iter().for_each(|name| drop(request.headers_mut().remove(name)));
        request.headers_mut().insert(PASSED_ON, HeaderValue::from_static("1"));
        if let Ok(id) = HeaderValue::from_str(&forward.exchange.id) {
            request.headers_mut().insert("x-request-id", id);
        }
        let answer = self.client.request(request).await.map_err(|error| failed(&error))?;
        let mut answer = answer.map(Body::new);
        HOP.iter().for_each(|name| drop(answer.headers_mut().remove(name)));
        Ok(answer)
    }
}

/// Whether a request comes from another router.
pub(crate) fn was_passed_on(headers: &HeaderMap) -> bool {
    headers.contains_key(PASSED_ON)
}

/// What names of things that a router keeps begin with.
fn mark(router: &str) -> String {
    blake3::hash(router.as_bytes()).to_hex()[..MARK].to_owned()
}

#[cfg(test)]
mod tests {
    use volley_membership::Member;

    use super::*;

    #[test]
    fn a_name_leads_to_the_router_that_gave_it_while_that_is_there() {
        let (members, watched) = watch::channel(Members::default());
        let (one, two) = (Peers::new("r1", watched.clone()), Peers::new("r2", watched));
        let name = one.name("resp_");
        assert_eq!((name.len(), one.owner(&name, "resp_")), (49, Owner::Here));
        assert_eq!(two.owner(&name, "resp_"), Owner::Gone);
        let member = Member { id: "r1".into(), address: "http://a:1".into(), model: String::new() };
        members.send_modify(|members| drop(Arc::make_mut(members).insert("r1".into(), member)));
        assert_eq!(two.owner(&name, "resp_"), Owner::At("http://a:1".into()));
        for strange in ["", "resp_", "msg_0123456789ab", "resp_é0123456789ab"] {
            assert_eq!(two.owner(strange, "resp_"), Owner::Gone);
        }
    }
}
