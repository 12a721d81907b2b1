//! Settings that are good one by one and contradict each other.

use crate::config::backplane::BackplaneUrl;
use crate::config::error::ConfigError;
use crate::config::settings::Config;
use crate::config::value::{ProxyProtocol, Value};

/// Secrets shorter than this can be found by trying.
const SECRET_BYTES_MIN: usize = 16;

impl Config {
    /// What cannot be seen one setting at a time.
    pub(super) fn contradictions(&self) -> Vec<ConfigError> {
        let mut found = Vec::new();
        let mut because = |broken: bool, message: String| {
            if broken {
                found.push(ConfigError::Contradiction { message });
            }
        };
        let limits = &self.limits;
        because(
            limits.outbox_bytes_max < limits.message_bytes_max,
            format!(
                "limits.outbox_bytes_max = {} is less than limits.message_bytes_max = {}: one \
                 message would close a client. Write at least {} for the former",
                limits.outbox_bytes_max, limits.message_bytes_max, limits.message_bytes_max
            ),
        );
        because(
            self.namespaces.have_history() && limits.outbox_bytes_max < limits.recovery_bytes_max,
            format!(
                "limits.outbox_bytes_max = {} is less than limits.recovery_bytes_max = {}: who \
                 comes back would be closed as too slow. Write at most {} for the latter",
                limits.outbox_bytes_max, limits.recovery_bytes_max, limits.outbox_bytes_max
            ),
        );
        // The last one is already as old as the interval when the next one flies.
        let needed_ms = 2 * self.redis_canary_interval_ms;
        because(
            self.redis_canary_timeout_ms < needed_ms,
            format!(
                "redis.canary_timeout_ms = {} is less than twice redis.canary_interval_ms: \
                 canaries would not be in time. Write at least {needed_ms} for the former",
                self.redis_canary_timeout_ms
            ),
        );
        because(
            self.ops_api_key.as_deref().is_some_and(|key| !fits_a_header(key)),
            "ops.api_key: no header can carry it. Write ASCII with nothing blank around it".into(),
        );
        let is_plain =
            matches!(&self.backplane, BackplaneUrl::Redis(servers) if !servers.login.is_tls);
        because(
            self.redis_tls_ca_file.is_some() && is_plain,
            "redis.tls_ca_file is set, and backplane is redis://, which is without TLS. Write \
             rediss:// for the latter, or leave the former out"
                .to_owned(),
        );
        because(
            self.listen == self.ops_listen && self.listen.port() != 0,
            format!(
                "listen and ops.listen are both {}: give one of them another port",
                self.listen
            ),
        );
        because(
            self.echo_path.as_deref().is_some_and(|path| path == "/" || path == "/ws"),
            "echo_path is already the page or the WebSocket: write for example /echo".to_owned(),
        );
        found.extend(self.hook_contradictions());
        found.extend(self.direct_contradiction());
        found.extend(self.secret_contradictions());
        found.extend(self.public_port_contradictions());
        let of_namespaces = self.namespaces.contradictions(self.has_tokens());
        found.extend(
            of_namespaces.into_iter().map(|message| ConfigError::Contradiction { message }),
        );
        found
    }

    fn hook_contradictions(&self) -> Vec<ConfigError> {
        let (joins, publishes) = self.namespaces.have_hooks();
        if self.hooks_connect_url.is_some() && self.auth_first_message_timeout_ms > 0 {
            let message = "hooks.connect_url and auth.first_message_timeout_ms: a client whose token \
                           comes as its first message would not be asked about. Leave one out";
            return vec![ConfigError::Contradiction { message: message.to_owned() }];
        }
        let kinds = [
            ("hook_join", joins, "hooks.join_url", &self.hooks_join_url),
            ("hook_publish", publishes, "hooks.publish_url", &self.hooks_publish_url),
        ];
        let broken = kinds.into_iter().filter_map(|(setting, is_set, key, url)| match url {
            None if is_set => Some(format!(
                "{setting} = true of a namespace without {key}: nobody could be asked"
            )),
            Some(_) if !is_set => Some(format!(
                "{key} without {setting} = true of a namespace: it would never be asked. Write \
                 {setting} = true for the rooms that are meant"
            )),
            _ => None,
        });
        broken.map(|message| ConfigError::Contradiction { message }).collect()
    }

    fn direct_contradiction(&self) -> Option<ConfigError> {
        let is_broken = self.listen_direct && self.proxy_protocol == ProxyProtocol::Required;
        is_broken.then(|| ConfigError::Contradiction {
            message: "listen_direct = true, and proxy_protocol = required: every connection comes \
                      through a proxy that names its client. Leave listen_direct out"
                .to_owned(),
        })
    }

    fn secret_contradictions(&self) -> Vec<ConfigError> {
        let mut found = Vec::new();
        if self.auth_anonymous == Some(false) && !self.has_tokens() {
            found.push(
                "auth.anonymous = false without auth.hmac_secret, auth.keys_file and auth.jwks_url: no client could \
                 connect. Set one of them, or leave auth.anonymous out"
                    .to_owned(),
            );
        }
        if self.auth_first_message_timeout_ms > 0
            && self.auth_anonymous.unwrap_or(!self.has_tokens())
        {
            found.push(
                "auth.first_message_timeout_ms, and clients may connect without a token: they are \
                 admitted at once. Leave it out, or set auth.anonymous = false"
                    .to_owned(),
            );
        }
        let is_forgotten = self.is_secret_blank && !self.has_tokens();
        if is_forgotten && self.auth_anonymous != Some(true) {
            found.push(
                "auth.hmac_secret is set to nothing: every client could connect without a token. Set \
                 it, or write auth.anonymous = true if that is meant"
                    .to_owned(),
            );
        }
        let secrets = [
            ("auth.hmac_secret", &self.auth_hmac_secret),
            ("ops.api_key", &self.ops_api_key),
            ("hooks.secret", &self.hooks_secret),
        ];
        for (key, secret) in secrets {
            let bytes = secret.as_ref().map_or(SECRET_BYTES_MIN, String::len);
            if bytes < SECRET_BYTES_MIN && !self.auth_allow_weak_secret {
                found.push(format!(
                    "{key} has {bytes} bytes, which can be guessed; {SECRET_BYTES_MIN} are the \
                     least. Take for example `openssl rand -base64 33`, or write \
                     auth.allow_weak_secret = true where nothing is to be protected"
                ));
            }
        }
        found.into_iter().map(|message| ConfigError::Contradiction { message }).collect()
    }

    fn public_port_contradictions(&self) -> Vec<ConfigError> {
        let mut found = Vec::new();
        if self.proxy_protocol != ProxyProtocol::Off && self.trusted_proxies.is_empty() {
            found.push(format!(
                "proxy_protocol = {} without trusted_proxies: no PROXY header would be accepted. Write \
                 the balancers' addresses for the latter, such as 10.0.0.0/8",
                self.proxy_protocol.write()
            ));
        }
        if !self.ops_public_paths.is_empty() && self.ops_api_key.is_none() {
            found.push(
                "ops.public_paths without ops.api_key: nobody could show it. Set ops.api_key, or leave \
                 ops.public_paths out"
                    .to_owned(),
            );
        }
        found.into_iter().map(|message| ConfigError::Contradiction { message }).collect()
    }
}

/// Whether it arrives as it was sent: HTTP takes away what is blank around a value.
fn fits_a_header(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') && key.trim() == key
}
