//! The table of settings, and [`Config`]: what they are.

use crate::config::backplane::{BackplaneUrl, redact_url};
use crate::config::value::{
    HookFailure, LogFormat, Origins, ProxyProtocol, RejectedHandshakes, Scheduling, SteeringMode,
    Value, ValueKind,
};
use crate::policy::limits::{LIMIT_SETTINGS, LimitSetting, Limits};
use crate::policy::namespaces::Namespaces;
use crate::policy::networks::Network;
use crate::policy::rights::Rights;
use crate::policy::setting::{self, SettingRange};
use std::fmt;
use std::net::SocketAddr;

/// One thing an operator may set.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Its name in the file: `section.name` or `name`.
    pub key: &'static str,
    /// The values that it takes, with their range.
    pub kind: ValueKind,
    /// Its effect in one or two sentences, for `--help`, the sample and `docs/configuration.md`.
    pub doc: &'static str,
    access: Access,
}

/// Where the value of a setting is.
#[derive(Clone, Copy)]
enum Access {
    /// In a field of the configuration.
    Own {
        default: fn() -> String,
        set: fn(&mut Config, &str) -> Result<(), String>,
        get: fn(&Config) -> String,
    },
    /// Among the limits.
    Limit(&'static LimitSetting),
}

impl Setting {
    /// The default as one would write it; empty: none.
    pub fn default_text(&self) -> String {
        match self.access {
            Access::Own { default, .. } => default(),
            Access::Limit(limit) => (limit.get)(&Limits::PRODUCTION).to_string(),
        }
    }

    /// `--limits-message-bytes-max`, without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// `CAMPANILE_LIMITS_MESSAGE_BYTES_MAX`.
    pub fn env(&self) -> String {
        format!("CAMPANILE_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The value as one would write it.
    pub fn text(&self, config: &Config) -> String {
        match self.access {
            Access::Own { get, .. } => get(config),
            Access::Limit(limit) => (limit.get)(&config.limits).to_string(),
        }
    }

    /// A value of this setting as it may stand in a log or a message: without secrets.
    pub fn shown(&self, text: &str) -> String {
        match self.kind {
            ValueKind::Secret if !text.is_empty() => "(not shown)".to_owned(),
            ValueKind::Backplane => redact_url(text),
            _ => text.to_owned(),
        }
    }

    /// Sets the value. Fails with the reason why it cannot be that.
    pub(super) fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        self.kind.check(text)?;
        match self.access {
            Access::Own { set, .. } => set(config, text),
            Access::Limit(limit) => {
                (limit.set)(&mut config.limits, Value::read(text)?);
                Ok(())
            }
        }
    }
}

impl Config {
    /// Whether tokens are accepted at all.
    pub fn has_tokens(&self) -> bool {
        self.auth_hmac_secret.is_some()
            || self.auth_keys_file.is_some()
            || self.auth_jwks_url.is_some()
    }
}

/// The setting of this key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

macro_rules! settings {
    (
        $( $field:ident : $type:ty, $key:literal, $default:literal, $kind:expr, $doc:literal; )+
    ) => {
        /// The configuration: what was set, and defaults for the rest.
        #[derive(Clone, PartialEq)]
        // Settings are described for a terminal.
        #[allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links)]
        pub struct Config {
            $( #[doc = $doc] pub $field: $type, )+
            /// Every limit.
            pub limits: Limits,
            /// The text of the file that `auth.keys_file` names.
            pub auth_keys_text: Option<String>,
            /// Keys of secrets that had a line break at their end, which was taken away.
            pub secrets_trimmed: Vec<&'static str>,
            /// Whether `auth.hmac_secret` was set to nothing, as by a variable that was not there.
            pub is_secret_blank: bool,
        }

        impl Default for Config {
            fn default() -> Config {
                Config {
                    $( $field: Value::read($default).expect("a default is a good value"), )+
                    limits: Limits::PRODUCTION,
                    auth_keys_text: None,
                    secrets_trimmed: Vec::new(),
                    is_secret_blank: false,
                }
            }
        }

        /// What is set here, without limits.
        const OWN: &[Setting] = &[
            $( Setting {
                key: $key,
                kind: $kind,
                doc: $doc,
                access: Access::Own {
                    default: || $default.to_owned(),
                    set: |config, text| { config.$field = Value::read(text)?; Ok(()) },
                    get: |config| config.$field.write(),
                },
            }, )+
        ];
    };
}

/// All of them, in the order in which they are printed: first what is declared here, then limits.
pub static SETTINGS: &[Setting] = &{
    let mut all = [OWN[0]; OWN.len() + LIMIT_SETTINGS.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < OWN.len() { OWN[at] } else { of_limit(&LIMIT_SETTINGS[at - OWN.len()]) };
        at += 1;
    }
    all
};

const fn of_limit(limit: &'static LimitSetting) -> Setting {
    let (key, kind) = (limit.key, ValueKind::Plain(limit.range));
    Setting { key, kind, doc: limit.doc, access: Access::Limit(limit) }
}

/// A time in milliseconds.
const fn ms(min: u64, max: u64) -> ValueKind {
    ValueKind::Plain(setting::ms(min, max))
}

/// A number of things.
const fn count(min: u64, max: u64, unit: &'static str) -> ValueKind {
    ValueKind::Plain(setting::count(min, max, unit))
}

/// One of these words.
const fn choice(words: &'static [&'static str]) -> ValueKind {
    ValueKind::Plain(SettingRange::Choice(words))
}

/// A number of bytes.
const fn bytes(min: u64, max: u64) -> ValueKind {
    ValueKind::Plain(setting::bytes(min, max))
}

const BOOL: ValueKind = ValueKind::Plain(SettingRange::Bool);
const MINUTE_MS: u64 = 60_000;

settings! {
    listen: SocketAddr, "listen", "0.0.0.0:8080", ValueKind::Address,
        "The public port: WebSockets at /ws, the page at /. Port 0 takes any free one.";
    backplane: BackplaneUrl, "backplane", "memory", ValueKind::Backplane,
        "How instances reach each other: `memory` for one instance alone, or where Redis is: one server or several with commas between them (`redis://`), what Sentinel names (`redis+sentinel://`), a Cluster (`redis+cluster://`), or one server through its Unix socket (`redis+unix://`).";
    shards: usize, "shards", "0", count(0, 1024, "shards"),
        "Shards, each a thread with its own connections. 0: one per core. May exceed the cores.";
    cores: Vec<usize>, "cores", "", ValueKind::Cores,
        "Cores that shards are pinned to, in turn, such as 0-3,6. Empty: all that this process may use.";
    private_fd_tables: bool, "private_fd_tables", "false", BOOL,
        "One table of open files per shard, so that the limit on open files counts per shard and shards do not contend for one table.";
    scheduling: Scheduling, "scheduling", "auto", choice(Scheduling::WORDS),
        "How the kernel schedules our threads. batch (SCHED_BATCH): a thread that wakes does not preempt a running one, so where threads share a core more messages leave in one write. other: the kernel's default, for cores shared with programs that seldom pause. auto: other, and batch for a thread whose core our threads saturate and nobody else uses; decided once a second.";
    backplane_priority: u64, "backplane_priority", "15", count(0, 20, "steps of nice(2)"),
        "Priority of the backplane's thread over the shards, which all wait for it. Where raising it is not permitted (CAP_SYS_NICE, LimitNICE= of systemd) all have the same.";
    steering: SteeringMode, "steering", "even", choice(SteeringMode::WORDS),
        "Which shard gets a new connection. even: the one that has fewer. cpu: the one on the core that received it, for hosts that bind a network queue to each core. kernel: by the kernel's hash.";
    echo_path: Option<String>, "echo_path", "", ValueKind::HttpPath,
        "Path of a plain echo of text and binary messages, for conformance suites. Empty: none.";
    namespaces: Namespaces, "namespaces", "", ValueKind::Namespaces,
        "Settings by namespace. In the file a table for each namespace, [namespaces.chat]; messages to users are configured in [namespaces.\"@users\"] (history_size, history_ttl_s).";
    page: bool, "page", "true", BOOL,
        "Whether GET / on the public port serves a small page to try things out.";
    origins: Origins, "origins", "", ValueKind::Origins,
        "Origins whose pages may connect, such as https://example.org; * for any. Empty: any where a token is needed; where clients may be anonymous, only pages of the same host (on any port) and of the visitor's own machine.";
    rejected_handshakes: RejectedHandshakes, "rejected_handshakes", "http", choice(RejectedHandshakes::WORDS),
        "How a WebSocket is refused whose token or origin is not admitted. http: with 401 or 403, of which a browser's script sees nothing but a failure. close: it is accepted, receives an `error` with the reason, and is closed with 4401 or 4403.";
    proxy_protocol: ProxyProtocol, "proxy_protocol", "off", choice(ProxyProtocol::WORDS),
        "Whether a TCP load balancer says in a PROXY header (version 1 or 2) whose connection it carries. optional: where a connection begins with one. required: a connection without one is refused. A header is accepted from trusted_proxies only.";
    trusted_proxies: Vec<Network>, "trusted_proxies", "", ValueKind::Networks,
        "Networks of the load balancers. What they say of a client's address is believed: a PROXY header, and the last hop of X-Forwarded-For (or else of Forwarded) that is not one of them. A balancer that writes only Forwarded must remove an X-Forwarded-For of its client. Empty: nobody is believed.";
    listen_direct: bool, "listen_direct", "false", BOOL,
        "Whether clients connect to the public port themselves, with no balancer in between that hides their addresses. Then the limits per address (limits.connections_per_address_max and others) hold for the peers of sockets too, except for loopback and trusted_proxies; otherwise only for clients that a trusted proxy has named.";
    drain_ms: u64, "drain_ms", "10000", ms(0, 60 * MINUTE_MS),
        "Over how long a stopping node spreads its closes, so that clients do not all reconnect at once. With the closing handshakes the default stays below the 30 s that orchestrators grant.";
    node_name: Option<String>, "node.name", "", ValueKind::Name,
        "This node's name, shown to clients and in logs. Empty: made up at each start.";
    auth_anonymous: Option<bool>, "auth.anonymous", "auto", ValueKind::BoolAuto,
        "Whether clients without a token may connect. auto: only while none of auth.hmac_secret, auth.keys_file and auth.jwks_url is set.";
    auth_hmac_secret: Option<String>, "auth.hmac_secret", "", ValueKind::Secret,
        "The HS256 secret of client tokens. Empty: no tokens.";
    auth_hmac_secret_file: Option<String>, "auth.hmac_secret_file", "", ValueKind::File,
        "A file that has auth.hmac_secret, read at start. A line break at its end is not part of it.";
    auth_keys_file: Option<String>, "auth.keys_file", "", ValueKind::File,
        "A file with the keys of an identity provider: a JWK Set (JSON), or public keys and certificates in PEM; read at start and at SIGHUP. Tokens are good that one of them or auth.hmac_secret has signed: HS, RS and PS 256 to 512, ES256, ES384, EdDSA. Empty: none.";
    auth_jwks_url: Option<String>, "auth.jwks_url", "", ValueKind::Url,
        "Where an identity provider publishes its public keys (a JWK Set), such as https://example.eu.auth0.com/.well-known/jwks.json. They are read at the start, when they are old, and when a token names a key that is not among them; without auth.keys_file the node is not ready before. Empty: nowhere.";
    auth_jwks_tls_ca_file: Option<String>, "auth.jwks_tls_ca_file", "", ValueKind::File,
        "The authorities (PEM) that may have signed the certificate of auth.jwks_url; read at each connect. Empty: those that browsers trust.";
    auth_jwks_timeout_ms: u64, "auth.jwks_timeout_ms", "5000", ms(100, MINUTE_MS),
        "How long reading auth.jwks_url may take.";
    auth_jwks_refresh_min_s: u64, "auth.jwks_refresh_min_s", "10", count(1, 3600, "seconds"),
        "The shortest pause between two readings of auth.jwks_url, whatever tokens name and the provider says.";
    auth_jwks_refresh_max_s: u64, "auth.jwks_refresh_max_s", "3600", count(1, 86_400, "seconds"),
        "The longest: within both, the provider's Cache-Control counts.";
    auth_issuer: Option<String>, "auth.issuer", "", ValueKind::Name,
        "What a token's `iss` must be. Empty: it is not looked at.";
    auth_audience: Option<String>, "auth.audience", "", ValueKind::Name,
        "What a token's `aud` must be, or have among others. Empty: it is not looked at.";
    auth_required_claims: Option<String>, "auth.required_claims", "", ValueKind::Name,
        "Claims that a token must have, such as token_use=access,azp=web: a value, or a list with it. Empty: none.";
    auth_user_claim: Option<String>, "auth.user_claim", "", ValueKind::Name,
        "The claim that names the user: its name, or a path with dots, such as cognito:username. Empty: sub.";
    auth_rooms_claim: Option<String>, "auth.rooms_claim", "", ValueKind::Name,
        "The claim with the rooms of the user, such as https://example.com/rooms or app_metadata.rooms. Empty: rooms.";
    auth_send_claim: Option<String>, "auth.send_claim", "", ValueKind::Name,
        "The claim with the users to whom it may send. Empty: send.";
    auth_rights_claim: Option<String>, "auth.rights_claim", "", ValueKind::Name,
        "The claim with the rights of the user, such as resource_access.campanile.roles. Empty: rights.";
    auth_leeway_s: u64, "auth.leeway_s", "2", count(0, 600, "seconds"),
        "How far the clocks of this machine and of the token's maker may differ, for `exp` and `nbf`.";
    auth_first_message_timeout_ms: u64, "auth.first_message_timeout_ms", "0", ms(0, 10 * MINUTE_MS),
        "How long a client that connects without a token may take to send one in its first message. Until then it is a handshake, and may do nothing else. 0: a client has to connect with its token.";
    auth_expiry_notice_s: u64, "auth.expiry_notice_s", "60", count(0, 24 * 60 * 60, "seconds"),
        "How long before its token expires a client receives `token_expires`. 0: never.";
    auth_allow_weak_secret: bool, "auth.allow_weak_secret", "false", BOOL,
        "Whether auth.hmac_secret and ops.api_key may be shorter than 16 bytes.";
    auth_anonymous_rights: Option<Rights>, "auth.anonymous_rights", "auto", ValueKind::RightsAuto,
        "Rights of a client without a token. auto: the same as auth.user_rights.";
    auth_user_rights: Rights, "auth.user_rights", "publish", ValueKind::Rights,
        "Rights of a user whose token has no `rights`. With send its clients may send to every user, with broadcast to everybody: give them to those who need them, by a token or here.";
    ops_listen: SocketAddr, "ops.listen", "127.0.0.1:8090", ValueKind::Address,
        "The operators' port: API, metrics, health. /healthz, /readyz and /metrics answer every host that can reach it. Port 0 takes any free one.";
    ops_public_paths: Vec<String>, "ops.public_paths", "", ValueKind::ApiPaths,
        "Paths of the operators' API that the public port serves as well, with what is below them, for requests with ops.api_key. All others are answered 404, as on every other path. Empty: none.";
    ops_api_key: Option<String>, "ops.api_key", "", ValueKind::Secret,
        "The key that /v1/* requires as `Authorization: Bearer …`. Empty: /v1/* answers this machine only.";
    ops_api_key_file: Option<String>, "ops.api_key_file", "", ValueKind::File,
        "A file that has ops.api_key, read at start. A line break at its end is not part of it.";
    log_level: String, "log.level", "info", choice(&["error", "warn", "info", "debug", "trace"]),
        "The least serious lines that are logged. debug has a line per connection.";
    log_format: LogFormat, "log.format", "text", choice(LogFormat::WORDS),
        "How log lines are written (to stderr).";
    redis_prefix: String, "redis.prefix", "campanile", ValueKind::Prefix,
        "What every Redis channel and key starts with. Instances with the same prefix are one system.";
    redis_linger_ms: u64, "redis.linger_ms", "15000", ms(0, 60 * MINUTE_MS),
        "How long a topic stays subscribed after its last local member left, so that reloading a page costs nothing.";
    redis_canary_interval_ms: u64, "redis.canary_interval_ms", "1000", ms(50, MINUTE_MS),
        "How often a canary message is sent through Redis.";
    redis_canary_timeout_ms: u64, "redis.canary_timeout_ms", "2000", ms(100, 10 * MINUTE_MS),
        "How long without a canary until the connection is closed and the node is not ready. At least twice redis.canary_interval_ms.";
    redis_timeout_ms: u64, "redis.timeout_ms", "2000", ms(50, 10 * MINUTE_MS),
        "How long connecting to Redis, and its answer, may take.";
    redis_backoff_ms_max: u64, "redis.backoff_ms_max", "250", ms(10, 10 * MINUTE_MS),
        "The longest pause between two attempts to connect to Redis. A server that comes back without its data waits up to 5 s for instances that can put histories back.";
    redis_tls_ca_file: Option<String>, "redis.tls_ca_file", "", ValueKind::File,
        "The authorities (PEM) that may have signed the certificate of a rediss:// server; read at each connect. Empty: those that browsers trust.";
    redis_monitor_interval_ms: u64, "redis.monitor_interval_ms", "5000", ms(0, 10 * MINUTE_MS),
        "How often Redis is queried for /metrics and /v1/stats (INFO, CONFIG GET, CLIENT LIST ID). 0: never.";
    hooks_connect_url: Option<String>, "hooks.connect_url", "", ValueKind::Url,
        "A service that is asked about each client that connects and whose token and origin are admitted: docs/hooks.md. Empty: none.";
    hooks_join_url: Option<String>, "hooks.join_url", "", ValueKind::Url,
        "A service that is asked about joins, in namespaces with hook_join. Empty: none.";
    hooks_publish_url: Option<String>, "hooks.publish_url", "", ValueKind::Url,
        "A service that is asked about messages that clients publish to rooms, in namespaces with hook_publish. Empty: none.";
    hooks_headers: Vec<String>, "hooks.headers", "", ValueKind::HeaderNames,
        "Header lines of a client's request that hooks.connect_url receives. Empty: none.";
    hooks_secret: Option<String>, "hooks.secret", "", ValueKind::Secret,
        "The key with which questions are signed (HMAC-SHA256), so that a service knows from whom they are. Empty: they are not signed.";
    hooks_secret_file: Option<String>, "hooks.secret_file", "", ValueKind::File,
        "A file that has hooks.secret, read at start. A line break at its end is not part of it.";
    hooks_tls_ca_file: Option<String>, "hooks.tls_ca_file", "", ValueKind::File,
        "The authorities (PEM) that may have signed the certificate of an https:// service; read at each connect. Empty: those that browsers trust.";
    hooks_on_failure: HookFailure, "hooks.on_failure", "deny", choice(HookFailure::WORDS),
        "What becomes of a question without an answer: no connection, a timeout, a status other than 200, an answer that is not as documented, an open circuit. deny: it is refused. allow: what the other checks allow is allowed.";
    hooks_timeout_ms: u64, "hooks.timeout_ms", "2000", ms(10, MINUTE_MS),
        "How long an answer of a hook may take, its connection included.";
    hooks_waiting_timeout_ms: u64, "hooks.waiting_timeout_ms", "5000", ms(10, MINUTE_MS),
        "How long a question may wait until it is asked. Beyond: hooks.on_failure.";
    hooks_concurrency_max: usize, "hooks.concurrency_max", "256", count(1, 65_536, "questions"),
        "Questions to hooks under way at a time, and connections to each service. Beyond: they wait.";
    hooks_waiting_max: usize, "hooks.waiting_max", "16384", count(1, 10_000_000, "questions"),
        "Questions to hooks of the whole node that are not answered. Beyond: HTTP 503 with Retry-After for clients that connect, error overloaded for joins and messages.";
    hooks_waiting_bytes_max: usize, "hooks.waiting_bytes_max", "33554432", bytes(64 * 1024, 16 * 1024 * 1024 * 1024),
        "Bytes of these questions. Beyond: as with hooks.waiting_max.";
    hooks_answer_bytes_max: usize, "hooks.answer_bytes_max", "65536", bytes(256, 16 * 1024 * 1024),
        "The body of an answer of a hook. Beyond: it is no answer.";
    hooks_cache_bytes_max: usize, "hooks.cache_bytes_max", "16777216", bytes(0, 16 * 1024 * 1024 * 1024),
        "Answers with ttl_s that are remembered. Beyond: the oldest are forgotten.";
    hooks_circuit_failures: u64, "hooks.circuit_failures", "20", count(1, 1_000_000, "failures"),
        "Failures of a hook in a row after which it is not asked for hooks.circuit_open_ms, and then with one question at first.";
    hooks_circuit_open_ms: u64, "hooks.circuit_open_ms", "2000", ms(10, 10 * MINUTE_MS),
        "How long a hook that has failed hooks.circuit_failures times is not asked.";
}

/// Without secrets: a configuration may be logged.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            SETTINGS.iter().map(|setting| (setting.key, setting.shown(&setting.text(self))));
        f.debug_map().entries(shown).finish()
    }
}
