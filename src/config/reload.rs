//! Which settings a running node takes over at a SIGHUP, and when they hold.
//!
//! A setting that is in no list here needs a restart: what was opened, allocated or pinned with it
//! at the start stays as it is.
//!
//! Invariant: what [`Config::reloaded`] answers is a good configuration that differs from the running
//! one only where a running node can follow.

use crate::config::error::ConfigErrors;
use crate::config::settings::{Config, SETTINGS, Setting};

/// When a changed setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadClass {
    /// Within a tick of the shards (100 ms), for what is there already as well.
    AtOnce,
    /// Within a tick, for connections and requests that begin after that.
    NextConnection,
    /// Some of it at once, the rest after a restart.
    InPart,
    /// After a restart.
    Restart,
}

const AT_ONCE: [&str; 15] = [
    "auth.allow_weak_secret",
    "auth.anonymous",
    "auth.anonymous_rights",
    "auth.expiry_notice_s",
    "auth.hmac_secret",
    "auth.hmac_secret_file",
    "drain_ms",
    "limits.close_timeout_ms",
    "limits.json_depth_max",
    "limits.outbox_bytes_max",
    "limits.questions_waiting_max",
    "limits.rooms_per_connection_max",
    "log.level",
    "ops.api_key",
    "ops.api_key_file",
];

const NEXT_CONNECTION: [&str; 24] = [
    "auth.audience",
    "auth.first_message_timeout_ms",
    "auth.issuer",
    "auth.keys_file",
    "auth.leeway_s",
    "auth.required_claims",
    "auth.rights_claim",
    "auth.rooms_claim",
    "auth.send_claim",
    "auth.user_claim",
    "auth.user_rights",
    "echo_path",
    "limits.handshake_timeout_ms",
    "limits.handshakes_max",
    "limits.head_bytes_max",
    "limits.http_body_bytes_max",
    "limits.http_body_timeout_ms",
    "listen_direct",
    "ops.public_paths",
    "origins",
    "page",
    "proxy_protocol",
    "rejected_handshakes",
    "trusted_proxies",
];

/// `join` and `publish` of each namespace.
const IN_PART: [&str; 1] = ["namespaces"];

impl ReloadClass {
    /// For the table in `docs/configuration.md`.
    pub fn text(self) -> &'static str {
        match self {
            ReloadClass::AtOnce => "at once",
            ReloadClass::NextConnection => "next connection",
            ReloadClass::InPart => "`join` and `publish` at once; the rest after a restart",
            ReloadClass::Restart => "restart",
        }
    }
}

impl Setting {
    /// When a change of this setting holds in a node that runs.
    pub fn reload_class(&self) -> ReloadClass {
        let is_in = |list: &[&str]| list.contains(&self.key);
        match () {
            () if is_in(&AT_ONCE) => ReloadClass::AtOnce,
            () if is_in(&NEXT_CONNECTION) => ReloadClass::NextConnection,
            () if is_in(&IN_PART) => ReloadClass::InPart,
            () => ReloadClass::Restart,
        }
    }
}

/// What a reload came to.
pub struct Reloaded {
    /// What holds from now on.
    pub config: Config,
    /// Keys whose new values hold.
    pub applied: Vec<&'static str>,
    /// Keys whose new values, or parts of them, hold after a restart.
    pub need_restart: Vec<&'static str>,
}

impl Config {
    /// What of `wanted` this running configuration becomes.
    ///
    /// # Errors
    /// Settings that can be taken over now and contradict those that need a restart.
    pub fn reloaded(&self, wanted: &Config) -> Result<Reloaded, ConfigErrors> {
        let mut config = wanted.clone();
        let (mut applied, mut need_restart) = (Vec::new(), Vec::new());
        for setting in SETTINGS {
            let (before, after) = (setting.text(self), setting.text(wanted));
            if before == after {
                continue;
            }
            match setting.reload_class() {
                ReloadClass::AtOnce | ReloadClass::NextConnection => applied.push(setting.key),
                ReloadClass::InPart => {
                    config.namespaces = self.namespaces.reloaded(&wanted.namespaces);
                    if config.namespaces != self.namespaces {
                        applied.push(setting.key);
                    }
                    if config.namespaces != wanted.namespaces {
                        need_restart.push(setting.key);
                    }
                }
                ReloadClass::Restart => {
                    need_restart.push(setting.key);
                    setting.set(&mut config, &before).expect("it is the value that is in use");
                }
            }
        }
        if self.auth_keys_text != config.auth_keys_text && !applied.contains(&"auth.keys_file") {
            applied.push("auth.keys_file"); // The same file has other keys.
        }
        match config.contradictions() {
            found if found.is_empty() => Ok(Reloaded { config, applied, need_restart }),
            found => Err(ConfigErrors(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigSources;
    use crate::config::FileText;

    fn config(text: &str) -> Config {
        let file = FileText { path: "f".to_owned(), text: text.to_owned() };
        Config::load(&ConfigSources { file: Some(file), ..ConfigSources::default() }).unwrap()
    }

    #[test]
    fn every_key_of_the_lists_is_a_setting_and_of_one_class() {
        let all = [&AT_ONCE[..], &NEXT_CONNECTION, &IN_PART].concat();
        for key in &all {
            assert_eq!(all.iter().filter(|other| *other == key).count(), 1, "{key}");
            let setting = SETTINGS.iter().find(|setting| setting.key == *key);
            assert!(setting.is_some_and(|it| it.reload_class() != ReloadClass::Restart), "{key}");
        }
        assert!([AT_ONCE.is_sorted(), NEXT_CONNECTION.is_sorted()].iter().all(|is_so| *is_so));
    }

    #[test]
    fn what_needs_a_restart_keeps_its_value_and_is_named() {
        let running = config("shards = 1\norigins = \"https://a.example\"\n");
        let wanted = config("shards = 2\norigins = \"https://b.example\"\ndrain_ms = 7\n");
        let Reloaded { config, applied, need_restart } = running.reloaded(&wanted).ok().unwrap();
        assert_eq!((config.shards, config.drain_ms), (1, 7));
        assert_eq!(config.origins, wanted.origins);
        assert_eq!((applied, need_restart), (vec!["origins", "drain_ms"], vec!["shards"]));
        let same = running.reloaded(&running.clone()).ok().unwrap();
        assert!(same.config == running && same.applied.is_empty() && same.need_restart.is_empty());
    }

    #[test]
    fn of_a_namespace_join_and_publish_are_taken_over() {
        let running =
            config("[namespaces.a]\nhistory_size = 5\n[namespaces.gone]\njoin = \"users\"\n");
        let wanted = config(
            "[namespaces.a]\nhistory_size = 9\npublish = \"nobody\"\n[namespaces.b]\njoin = \"users\"\n",
        );
        let Reloaded { config, applied, need_restart } = running.reloaded(&wanted).ok().unwrap();
        let now = config.namespaces.write();
        assert_eq!(config.namespaces.policy_of_room("a:1").history_size, 5, "{now}");
        let text = |room: &str| {
            let policy = config.namespaces.policy_of_room(room);
            format!("{:?} {:?}", policy.join, policy.publish)
        };
        assert_eq!(text("a:1"), "Anyone Nobody");
        assert_eq!(text("b:1"), "Users Anyone");
        assert_eq!(text("gone:1"), "Anyone Anyone");
        assert_eq!((applied, need_restart), (vec!["namespaces"], vec!["namespaces"]));
    }

    #[test]
    fn what_contradicts_a_setting_that_needs_a_restart_is_refused_as_a_whole() {
        let running = config("");
        let wanted = config("[limits]\noutbox_bytes_max = 4096\nmessage_bytes_max = 4096\n");
        let Err(errors) = running.reloaded(&wanted) else {
            panic!("one message would be too much")
        };
        assert!(errors.to_string().contains("limits.outbox_bytes_max = 4096"), "{errors}");
    }
}
