//! Services of the operator that are asked over HTTP.

use crate::config::{Config, HookFailure};
use std::fmt;

/// Which services are asked what, and how.
#[derive(Clone, Default, PartialEq)]
pub struct HooksPlan {
    /// Whom to ask about clients that connect.
    pub connect_url: Option<String>,
    /// Whom to ask about joins, in namespaces with `hook_join`.
    pub join_url: Option<String>,
    /// Whom to ask about messages, in namespaces with `hook_publish`.
    pub publish_url: Option<String>,
    /// Header lines of a client that the service sees, in lower case.
    pub headers: Vec<String>,
    /// The key of the signature.
    pub secret: Option<String>,
    /// The authorities that may have signed a certificate; `None`: public ones.
    pub tls_ca_file: Option<String>,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// How long a question may wait until it is asked.
    pub waiting_timeout_ms: u64,
    /// Questions asked at a time.
    pub concurrency_max: usize,
    /// Questions that are not answered, of the whole node.
    pub waiting_max: usize,
    /// Their bytes.
    pub waiting_bytes_max: usize,
    /// The longest body of an answer.
    pub answer_bytes_max: usize,
    /// The longest payload that an answer may put in place of a message's.
    pub payload_bytes_max: usize,
    /// Answers that are remembered, in bytes.
    pub cache_bytes_max: usize,
    /// Failures in a row that open a circuit.
    pub circuit_failures: u64,
    /// How long it stays open.
    pub circuit_open_ms: u64,
    /// Whether what could not be asked is allowed.
    pub allows_on_failure: bool,
}

impl HooksPlan {
    /// As configured.
    pub(super) fn of(config: &Config) -> HooksPlan {
        HooksPlan {
            connect_url: config.hooks_connect_url.clone(),
            join_url: config.hooks_join_url.clone(),
            publish_url: config.hooks_publish_url.clone(),
            headers: config.hooks_headers.iter().map(|name| name.to_lowercase()).collect(),
            secret: config.hooks_secret.clone(),
            tls_ca_file: config.hooks_tls_ca_file.clone(),
            timeout_ms: config.hooks_timeout_ms,
            waiting_timeout_ms: config.hooks_waiting_timeout_ms,
            concurrency_max: config.hooks_concurrency_max,
            waiting_max: config.hooks_waiting_max,
            waiting_bytes_max: config.hooks_waiting_bytes_max,
            answer_bytes_max: config.hooks_answer_bytes_max,
            payload_bytes_max: config.limits.message_bytes_max,
            cache_bytes_max: config.hooks_cache_bytes_max,
            circuit_failures: config.hooks_circuit_failures,
            circuit_open_ms: config.hooks_circuit_open_ms,
            allows_on_failure: config.hooks_on_failure == HookFailure::Allow,
        }
    }

    /// The URLs, with the settings that name them.
    pub fn urls(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("hooks.connect_url", &self.connect_url),
            ("hooks.join_url", &self.join_url),
            ("hooks.publish_url", &self.publish_url),
        ];
        all.into_iter().filter_map(|(key, url)| Some((key, url.as_deref()?)))
    }
}

/// Without the secret: a plan is logged.
impl fmt::Debug for HooksPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HooksPlan")
            .field("urls", &self.urls().collect::<Vec<_>>())
            .field("secret", &self.secret.is_some())
            .field("timeout_ms", &self.timeout_ms)
            .field("allows_on_failure", &self.allows_on_failure)
            .finish_non_exhaustive()
    }
}
