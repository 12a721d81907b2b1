//! A client that is admitted but for the word of a service: what that is asked, and what comes of its
//! answer.

use crate::ids::is_name;
use crate::link::hooks::{ConnectQuestion, HookAdmission, HookVerdict};
use crate::net::upgrade::reject::RejectReason;
use crate::net::upgrade::routes::HandshakeRefusal;
use crate::plan::{Plan, RejectedHandshakes};
use crate::shard::{Opening, write_rejection};
use bytes::Bytes;
use http::request::Parts;
use std::net::IpAddr;

/// What the service is asked about the client of a request.
pub(super) fn question(
    head: &Parts,
    opening: &Opening,
    address: Option<IpAddr>,
    plan: &Plan,
) -> ConnectQuestion {
    let header = |name: &String| {
        let values = head.headers.get_all(name.as_str()).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let values: Vec<&str> = values.collect();
        (!values.is_empty()).then(|| (name.as_str().into(), values.join(", ").into()))
    };
    ConnectQuestion {
        user: opening.identity.user.clone(),
        address: address.map(|address| address.to_canonical()),
        query: without_token(head.uri.query().unwrap_or("")).into(),
        headers: plan.hooks.headers.iter().filter_map(header).collect(),
        rooms: opening.rooms.clone(),
    }
}

/// A query without the token, which is nobody else's.
fn without_token(query: &str) -> String {
    let is_token = |pair: &&str| pair.split('=').next() == Some("token");
    query.split('&').filter(|pair| !is_token(pair)).collect::<Vec<_>>().join("&")
}

/// What comes of the answer.
pub(super) fn decide(
    opening: Opening,
    verdict: HookVerdict,
    plan: &Plan,
    now_unix_s: u64,
) -> Result<Opening, HandshakeRefusal> {
    match verdict {
        HookVerdict::Allow(None) => Ok(opening),
        HookVerdict::Allow(Some(admission)) => {
            let rooms_max = plan.limits.rooms_per_connection_max;
            Ok(admitted(opening, *admission, rooms_max, now_unix_s))
        }
        HookVerdict::Deny { reason } => Err(denied(&opening, &reason, plan)),
        // A replaced payload is no answer about a client: the thread that asks refuses it.
        HookVerdict::Failed | HookVerdict::Replace { .. } => {
            let reason = RejectReason::HookFailed;
            Err(HandshakeRefusal { reason, response: reason.response(), user: None })
        }
    }
}

/// What the service says holds instead of what the token says.
fn admitted(
    mut opening: Opening,
    admission: HookAdmission,
    rooms_max: usize,
    now_unix_s: u64,
) -> Opening {
    let HookAdmission { user, info, rights, grants, join, expires_in_s } = admission;
    let identity = &mut opening.identity;
    identity.user = user.or(identity.user.take());
    identity.info = info.or(identity.info.take());
    identity.rights = rights.unwrap_or(identity.rights);
    identity.grants = grants.or(identity.grants.take());
    if let Some(expires_in_s) = expires_in_s {
        let at_s = now_unix_s.saturating_add(expires_in_s);
        let expires_unix_s = identity.expires_unix_s.map_or(at_s, |token_s| token_s.min(at_s));
        identity.expires_unix_s = Some(expires_unix_s);
    }
    opening.rooms.extend(join.into_iter().filter(|room| is_name(room)));
    opening.rooms.sort_unstable();
    opening.rooms.dedup();
    opening.rooms.truncate(rooms_max);
    opening
}

fn denied(opening: &Opening, text: &str, plan: &Plan) -> HandshakeRefusal {
    let reason = RejectReason::HookDenied;
    let response = match plan.rejected_handshakes {
        RejectedHandshakes::Http => reason.response_because(text),
        RejectedHandshakes::Close => {
            let mut response = opening.response.to_vec();
            write_rejection(opening.encoding, true, text, &mut response);
            Bytes::from(response)
        }
    };
    HandshakeRefusal { reason, response, user: opening.identity.user.as_deref().map(Into::into) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_out_of_the_query() {
        for (query, wanted) in [
            ("", ""),
            ("token=a.b.c", ""),
            ("room_id=a&token=a.b.c&tenant=1", "room_id=a&tenant=1"),
            ("tokens=1", "tokens=1"),
        ] {
            assert_eq!(without_token(query), wanted);
        }
    }
}
