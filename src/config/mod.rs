//! Every setting, once.
//!
//! A setting is a key of the TOML file, a flag and an environment variable at the same time, and one
//! line in the table below, or for a limit in `policy::limits`: from it come the parser, `--help`,
//! the sample file (`campanile config`) and the table of docs/configuration.md. So they cannot
//! disagree, and a new limit cannot be forgotten in one.
//!
//! Precedence: flag, then environment, then file, then default. All errors are
//! reported at once, each with the key, the value, where it came from and what would be right.
//!
//! Invariant: nothing here looks at the machine. What the values *mean* there is `plan.rs`.

mod backplane;
mod contradictions;
mod error;
mod load;
mod print;
mod reload;
mod settings;
mod value;

pub use backplane::{BackplaneUrl, Deployment, Login, RedisServers, redact_url};
pub use error::{ConfigError, ConfigErrors, ValueSource};
pub use load::{ConfigOrigin, ConfigSources, FileText};
pub use print::{markdown, reload_markdown, sample};
pub use reload::{ReloadClass, Reloaded};
pub use settings::{Config, SETTINGS, Setting};
pub use value::{
    HookFailure, LogFormat, ProxyProtocol, RejectedHandshakes, Scheduling, SteeringMode, ValueKind,
};

#[cfg(test)]
mod tests;
