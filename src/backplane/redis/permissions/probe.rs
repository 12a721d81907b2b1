//! Tries on a new link whether its user may do everything that the configuration needs.

use crate::backplane::redis::connection::reply::is_master;
use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage, SetupError};
use crate::backplane::redis::names::Names;
use crate::backplane::redis::permissions::table::{Feature, PERMISSIONS, Permission, Probe};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

/// The SHA-1 of the script `return 1`.
const RETURN_1: &str = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
/// The text that the last command on the subscribing connection is answered with.
const TOKEN: &str = "probed";

/// What is tried, and in whose name.
pub(crate) struct PermissionProbe<'a> {
    /// What the configuration needs.
    pub features: &'a [Feature],
    /// Names of channels and keys.
    pub names: &'a Names,
    /// A partition of the server: all names are in its slot.
    pub partition: u16,
    /// The user.
    pub user: &'a LinkUser,
}

impl PermissionProbe<'_> {
    /// Tries everything. `Err`: the first thing that is no question of permissions, or else all
    /// missing rules.
    pub(crate) async fn run(
        &self,
        cmd: &mut MultiplexedConnection,
        sub: &mut Subscriber,
        client: &str,
    ) -> Result<(), LinkError> {
        let mut missing = MissingRules { names: self.names, rules: Vec::new() };
        self.run_commands(cmd, client, &mut missing).await?;
        self.run_subscriptions(sub, &mut missing).await?;
        match missing.rules.is_empty() {
            true => Ok(()),
            false => Err(self.user.forbidden(missing.rules)),
        }
    }

    async fn run_commands(
        &self,
        cmd: &mut MultiplexedConnection,
        client: &str,
        missing: &mut MissingRules<'_>,
    ) -> Result<(), LinkError> {
        let mut pipeline = Pipeline::new();
        let mut sent = Vec::new();
        for permission in self.needed() {
            let Probe::Commands(words) = permission.probe else { continue };
            let mut words = words.iter().map(|word| self.word(word, client));
            let mut command = redis::cmd(&words.next().expect("a command has a name"));
            words.for_each(|word| _ = command.arg(word));
            pipeline.add_command(command);
            sent.push(permission);
        }
        let answers = cmd.send_packed_commands(&pipeline, 0, sent.len()).await;
        let answers = answers.map_err(|error| self.user.failure(&error))?;
        for (permission, answer) in sent.into_iter().zip(answers) {
            self.judge(permission, answer, missing)?;
        }
        Ok(())
    }

    /// Judges one reply. An error that is none of permissions does not matter here (a Cluster may
    /// be moving the slot), unless the server is no master, or is loading, or too old.
    fn judge(
        &self,
        permission: &Permission,
        answer: Value,
        missing: &mut MissingRules<'_>,
    ) -> Result<(), LinkError> {
        let Value::ServerError(error) = answer else {
            let is_replica = permission.rule == "+role" && !is_master(&answer);
            // A replica takes subscriptions and publishes, but the other nodes do not see them.
            return if is_replica { Err(Outage::NotMaster.into()) } else { Ok(()) };
        };
        let text = format!("{} {}", error.code(), error.details().unwrap_or_default());
        match self.user.rejected(&text) {
            // Of EXEC it says that the transaction is discarded because of NOPERM.
            _ if text.contains("NOPERM") => missing.add(permission.rule, &text),
            too_old @ LinkError::Setup(SetupError::TooOld { .. }) => return Err(too_old),
            loading if error.code() == "LOADING" => return Err(loading),
            _ => {}
        }
        Ok(())
    }

    async fn run_subscriptions(
        &self,
        sub: &mut Subscriber,
        missing: &mut MissingRules<'_>,
    ) -> Result<(), LinkError> {
        for permission in self.needed() {
            let Probe::Subscriber(words) = permission.probe else { continue };
            if permission.rule != "+ping" {
                let words: Vec<String> = words.iter().map(|word| self.word(word, "")).collect();
                sub.write(words.iter().map(|word| word.as_bytes()));
            }
        }
        // Behind the others: its reply proves that all of them were answered.
        for error in sub.refusals_until(TOKEN).await? {
            match self.user.rejected(&error) {
                LinkError::Setup(SetupError::Forbidden { rules, .. }) => {
                    rules.iter().for_each(|rule| missing.add(rule, &error));
                }
                _ if error.starts_with("NOPERM") => missing.add("", &error),
                too_old @ LinkError::Setup(SetupError::TooOld { .. }) => return Err(too_old),
                _ => {}
            }
        }
        Ok(())
    }

    fn needed(&self) -> impl Iterator<Item = &'static Permission> {
        PERMISSIONS.iter().filter(|permission| permission.is_needed(self.features))
    }

    fn word(&self, word: &str, client: &str) -> String {
        let name = |kind| self.names.probe(self.partition, kind);
        match word {
            "%client" => client.to_owned(),
            "%return_1" => RETURN_1.to_owned(),
            "%token" => TOKEN.to_owned(),
            _ => word.strip_prefix('%').map_or_else(|| word.to_owned(), name),
        }
    }
}

/// Rules that the user lacks, each once.
struct MissingRules<'a> {
    names: &'a Names,
    rules: Vec<String>,
}

impl MissingRules<'_> {
    /// Adds what an error is about: the command, or the keys, or the channels.
    fn add(&mut self, command: &str, error: &str) {
        let rule = match error {
            _ if error.contains("run the '") => command.to_owned(),
            _ if error.contains("channel") => self.names.channels_rule(),
            _ => self.names.keys_rule(),
        };
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    #[test]
    fn an_error_is_about_a_command_keys_or_channels_whatever_the_version() {
        let names = Names::new("c", NodeId(1));
        let mut missing = MissingRules { names: &names, rules: Vec::new() };
        for error in [
            "NOPERM this user has no permissions to run the 'hkeys' command or its subcommand",
            "NOPERM User bell has no permissions to run the 'hkeys' command",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
            "NOPERM No permissions to access a key",
            "NOPERM this user has no permissions to access one of the channels used as arguments",
            "NOPERM No permissions to access a channel",
        ] {
            missing.add("+hkeys", error);
        }
        assert_eq!(missing.rules, ["+hkeys", "~c:*", "&c:*"]);
    }

    #[test]
    fn the_script_of_the_probe_has_its_hash() {
        assert_eq!(redis::Script::new("return 1").get_hash(), RETURN_1);
    }
}
