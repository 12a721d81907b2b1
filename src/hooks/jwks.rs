//! The keys of an identity provider, read from a URL (a JWK Set, RFC 7517 §5) and read again.
//!
//! They are read when the node starts, when what the provider says of their age (`Cache-Control`) is
//! over, and when a token names a key that is not among them ([`KeyRequests`]); [`Schedule`] says
//! when. What was read last holds for as long as the provider cannot be reached. The shards take a new
//! set over on their next tick.
//!
//! Only public keys are taken from a URL: a secret that many can read is none. A redirect is not
//! followed.
//!
//! Invariant: one request at a time, at most one in `auth.jwks_refresh_min_s` once there are keys,
//! whatever tokens name. Never on a shard's thread.

use crate::auth::{FetchedKeys, JwksPlan, VerifyingKeys};
use crate::hooks::client::{AskLimits, HttpAnswer, HttpClient};
use crate::link::exchange::Exchange;
use crate::link::health::Health;
use crate::link::key_requests::KeyRequests;
use crate::link::ledger::Ledger;
use crate::metrics::{JwksCounters, JwksMirror};
use hyper::StatusCode;
use hyper::header::{ACCEPT, CACHE_CONTROL, HeaderMap, HeaderValue};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

/// The longest answer.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// The pause after the first failure, while there are no keys. It doubles up to the usual one.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// What the keeper of the keys is given.
pub struct JwksSetup {
    /// Where they are, and how often they are read.
    pub plan: JwksPlan,
    /// Where they go.
    pub keys: Arc<Exchange<FetchedKeys>>,
    /// Who wants them to be read again.
    pub requests: Arc<KeyRequests>,
    /// Where it is written that they are there.
    pub health: Arc<Health>,
    /// What is counted.
    pub mirror: Arc<JwksMirror>,
    /// Where what it holds is counted.
    pub ledger: Arc<Ledger>,
}

/// When they are read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    /// Without a request.
    due: Instant,
    /// Not before, however often that is asked for.
    not_before: Instant,
}

/// Keeps the keys until the process ends. Needs a tokio runtime around it.
pub async fn keep(setup: JwksSetup) {
    let JwksSetup { plan, keys, requests, health, mirror, ledger } = setup;
    let client = HttpClient::new(plan.tls_ca_file.as_deref(), 1, &ledger);
    let bell = listen(&requests);
    let (mut counters, mut failures) = (JwksCounters::default(), 0u32);
    let mut logged = String::new();
    loop {
        let reading = requests.begin_reading();
        let answer = read(&client, &plan).await;
        let now = Instant::now();
        let schedule = match answer {
            Ok((set, max_age)) => {
                if failures > 0 || counters.read_ok == 0 {
                    tracing::info!(url = %plan.url, keys = set.len(), "the keys of tokens were read");
                }
                counters.read_ok += 1;
                counters.keys = set.len() as u64;
                counters.last_unix_s = now_unix_s();
                failures = 0;
                logged.clear();
                keys.set(Arc::new(FetchedKeys { keys: set, reading }));
                health.set_keys_missing(false);
                after_success(&plan, max_age, now)
            }
            Err(why) => {
                if why != logged {
                    tracing::warn!(url = %plan.url, why, "the keys of tokens cannot be read");
                }
                logged = why;
                failures = failures.saturating_add(1);
                counters.read_failed += 1;
                after_failure(&plan, counters.read_ok > 0, failures, now)
            }
        };
        mirror.publish(&counters);
        wait(schedule, &requests, &bell).await;
    }
}

/// Until they are to be read again.
async fn wait(schedule: Schedule, requests: &KeyRequests, bell: &AsyncFd<OwnedFd>) {
    sleep_until(schedule.not_before).await;
    // A request that came while they were read, or shortly after, is carried out now.
    while !requests.take() {
        if !requests.may_sleep() {
            continue;
        }
        match timeout_at(schedule.due, bell.readable()).await {
            Err(_) => return,
            Ok(ready) => {
                requests.clear();
                ready.expect("the event loop lives as long as this task").clear_ready();
            }
        }
    }
}

fn after_success(plan: &JwksPlan, max_age: Option<Duration>, now: Instant) -> Schedule {
    let (min, max) = (plan.refresh_min, plan.refresh_max.max(plan.refresh_min));
    let due = now + max_age.unwrap_or(max).clamp(min, max);
    Schedule { due, not_before: now + min }
}

/// With keys, an outage is waited for at the usual pace; without any, sooner.
fn after_failure(plan: &JwksPlan, has_keys: bool, failures: u32, now: Instant) -> Schedule {
    let doubled = FIRST_RETRY * 2u32.pow(failures.clamp(1, 16) - 1);
    let due = now + if has_keys { plan.refresh_min } else { doubled.min(plan.refresh_min) };
    Schedule { due, not_before: due }
}

async fn read(
    client: &HttpClient,
    plan: &JwksPlan,
) -> Result<(VerifyingKeys, Option<Duration>), String> {
    let url = plan.url.parse().map_err(|error| format!("the URL: {error}"))?;
    let headers =
        [(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"))];
    let limits = AskLimits { timeout: plan.timeout, body_bytes_max: BODY_BYTES_MAX };
    let answer = client.get(&url, &headers, limits).await.map_err(|error| error.to_string())?;
    understand(&answer)
}

fn understand(answer: &HttpAnswer) -> Result<(VerifyingKeys, Option<Duration>), String> {
    if answer.status.is_redirection() {
        return Err(format!(
            "status {}: redirects are not followed, name the place itself",
            answer.status
        ));
    }
    if answer.status != StatusCode::OK {
        return Err(format!("status {}", answer.status));
    }
    let text =
        std::str::from_utf8(&answer.body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    Ok((VerifyingKeys::read_public(text)?, max_age(&answer.headers)))
}

/// For how long the answer is fresh (RFC 9111 §5.2.2). One that must not be stored is read again as
/// soon as that may be; one that says nothing, as late.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> = values
        .flat_map(|value| value.split(','))
        .map(|directive| directive.trim().to_ascii_lowercase())
        .collect();
    if directives.iter().any(|directive| directive == "no-store" || directive == "no-cache") {
        return Some(Duration::ZERO);
    }
    let seconds = directives.iter().find_map(|directive| directive.strip_prefix("max-age="))?;
    seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The bell as tokio waits for it: a descriptor of its own for the same eventfd.
#[allow(deprecated)] // its danger is a descriptor that closes too early; this one is owned
fn listen(requests: &KeyRequests) -> AsyncFd<OwnedFd> {
    let own = requests.as_fd().try_clone_to_owned();
    let own = own.expect("a thread that has just started gets a descriptor");
    AsyncFd::with_interest(own, Interest::READABLE).expect("an eventfd can be polled")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::body::Bytes;

    fn plan() -> JwksPlan {
        JwksPlan {
            url: "http://127.0.0.1/".into(),
            tls_ca_file: None,
            timeout: Duration::from_secs(1),
            refresh_min: Duration::from_secs(10),
            refresh_max: Duration::from_secs(600),
        }
    }

    fn answer(status: u16, header: &str, body: &str) -> HttpAnswer {
        let mut headers = HeaderMap::new();
        if !header.is_empty() {
            headers.insert(CACHE_CONTROL, header.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        HttpAnswer { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    #[test]
    fn keys_are_read_again_when_they_are_old_within_what_is_configured() {
        let now = Instant::now();
        for (header, after_s) in [
            ("", 600),
            ("public, max-age=60", 60),
            ("max-age=\"60\"", 60),
            ("Max-Age=5", 10),
            ("max-age=99999999999", 600),
            ("max-age=-1", 600),
            ("no-store", 10),
            ("max-age=60, no-cache", 10),
        ] {
            let (_, age) = understand(&answer(200, header, SET)).expect("a good set");
            let schedule = after_success(&plan(), age, now);
            assert_eq!(schedule.due - now, Duration::from_secs(after_s), "{header}");
            assert_eq!(schedule.not_before - now, Duration::from_secs(10));
        }
    }

    #[test]
    fn a_provider_that_is_away_is_asked_soon_while_there_are_no_keys_and_at_the_usual_pace_then() {
        let now = Instant::now();
        let pause = |has_keys, failures| {
            let schedule = after_failure(&plan(), has_keys, failures, now);
            assert_eq!(schedule.due, schedule.not_before, "a request does not hurry");
            (schedule.due - now).as_millis()
        };
        assert_eq!(
            [1, 2, 3, 6, 7, u32::MAX].map(|n| pause(false, n)),
            [250, 500, 1000, 8000, 10_000, 10_000]
        );
        assert_eq!([1, 9].map(|n| pause(true, n)), [10_000; 2]);
    }

    #[test]
    fn what_is_no_set_of_public_keys_is_refused_with_the_reason() {
        let why = |status, body: &str| understand(&answer(status, "", body)).unwrap_err();
        assert!(why(302, "").contains("redirects are not followed"));
        assert_eq!(why(500, SET), "status 500 Internal Server Error");
        assert!(why(200, "<html>").contains("not a JWK Set"));
        assert!(why(200, "{}").contains("not a JWK Set"));
        let secret = r#"{"keys":[{"kty":"oct","k":"c2l4dGVlbiBieXRlcyBvciBtb3Jl"}]}"#;
        assert!(why(200, secret).contains("no key in it"), "{}", why(200, secret));
        let pem = "-----BEGIN PUBLIC KEY-----\n";
        assert!(why(200, pem).contains("not a JWK Set"));
    }
}
