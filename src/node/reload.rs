//! SIGHUP: the configuration is read again, and what a running node can take over is handed to its
//! threads.
//!
//! All of a configuration is judged before anything of it holds: one mistake, and nothing changes.
//! Threads take the new plan over by themselves ([`Exchange`]): shards on their next tick, the ops
//! thread with its next request.
//!
//! Invariant: runs on the main thread, so no two reloads overlap.

use super::log::LogLevel;
use crate::config::{Config, ConfigErrors, ConfigOrigin, Reloaded};
use crate::link::exchange::Exchange;
use crate::metrics::ReloadMirror;
use crate::operator_files::read_text_again;
use crate::plan::{self, Machine, NoticeLevel, Plan, Planned};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is needed to read the configuration again.
pub struct Reloader {
    /// Where it was read from.
    pub origin: ConfigOrigin,
    /// What holds now.
    pub config: Config,
    /// As at the start.
    pub machine: Machine,
    /// The plan that holds now, for the other threads.
    pub plan: Arc<Exchange<Plan>>,
    /// The level of the log.
    pub log_level: LogLevel,
    /// What is counted.
    pub mirror: Arc<ReloadMirror>,
}

impl Reloader {
    /// Reads the configuration again, and takes over what a running node can.
    pub fn reload(&mut self) {
        let mut counters = self.mirror.read();
        match self.try_reload() {
            Ok(()) => {
                counters.applied += 1;
                counters.last_unix_s = now_unix_s();
            }
            Err(errors) => {
                counters.refused += 1;
                let errors: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
                tracing::error!("SIGHUP: nothing is changed. {}", errors.join(" "));
            }
        }
        self.mirror.publish(&counters);
    }

    fn try_reload(&mut self) -> Result<(), ConfigErrors> {
        let wanted = self.origin.load(&|path| read_text_again(path))?;
        let Reloaded { config, applied, need_restart } = self.config.reloaded(&wanted)?;
        let Planned { plan, notices } = plan::resolve(&config, &self.machine)?;
        let known = plan::resolve(&self.config, &self.machine)?.notices;
        let running = self.plan.get();
        // Ports that were found at the start, where 0 is configured.
        let (listen, ops_listen) = (running.listen, running.ops_listen);
        self.log_level.set(&config.log_level);
        self.plan.set(Arc::new(Plan { listen, ops_listen, ..plan }));
        self.config = config;
        let warnings = notices.iter().filter(|notice| notice.level == NoticeLevel::Warning);
        let new = warnings.filter(|notice| !known.contains(notice));
        new.for_each(|notice| tracing::warn!("{}", notice.text));
        report(&applied, &need_restart);
        Ok(())
    }
}

/// Which keys have changed. Values are not logged: some are secrets.
fn report(applied: &[&str], need_restart: &[&str]) {
    let applied = match applied {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    };
    tracing::info!(applied, "SIGHUP: the configuration was reloaded");
    if !need_restart.is_empty() {
        let keys = need_restart.join(", ");
        tracing::warn!(keys, "SIGHUP: changes of these keys hold after a restart");
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
