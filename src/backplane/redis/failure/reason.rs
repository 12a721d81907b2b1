//! The names of failures, and the counter of each.

use crate::metrics::BackplaneCounters;

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal in $counter:ident, )+) => {
        /// The name of a failure in `/readyz`, in the log and in `/metrics`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FailureReason { $( $(#[$doc])* $variant, )+ }

        impl FailureReason {
            /// All of them.
            pub const ALL: &[FailureReason] = &[ $( FailureReason::$variant, )+ ];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $( FailureReason::$variant => $name, )+ }
            }

            /// Counts one failure.
            pub(crate) fn count(self, counters: &mut BackplaneCounters) {
                match self { $( FailureReason::$variant => counters.$counter += 1, )+ }
            }
        }
    };
}

reasons! {
    /// The URL.
    Configuration = "configuration" in failed_configuration,
    /// The file of the authorities.
    TlsCaFile = "tls_ca_file" in failed_tls_ca_file,
    /// The certificate, or no TLS at all.
    Tls = "tls" in failed_tls,
    /// The name has no address.
    UnknownName = "unknown_name" in failed_unknown_name,
    /// User or password.
    Authentication = "authentication" in failed_authentication,
    /// The ACL.
    Permission = "permission" in failed_permission,
    /// Connections that reach different servers.
    SeveralServers = "several_servers" in failed_several_servers,
    /// Too old a server.
    Version = "version" in failed_version,
    /// No address is known.
    NoAddress = "no_address" in failed_no_address,
    /// Nothing listens there.
    Refused = "refused" in failed_refused,
    /// The network.
    Unreachable = "unreachable" in failed_unreachable,
    /// No answer in time.
    Timeout = "timeout" in failed_timeout,
    /// A connection ended.
    ConnectionLost = "connection_lost" in failed_connection_lost,
    /// What no Redis server sends.
    Protocol = "protocol" in failed_protocol,
    /// The server refused a command.
    Rejected = "rejected" in failed_rejected,
    /// No canary came back.
    Canary = "canary" in failed_canary,
    /// A replica.
    NotMaster = "not_master" in failed_not_master,
    /// The master is another one now.
    Failover = "failover" in failed_failover,
    /// Topics that no server has.
    Unserved = "unserved" in failed_unserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_under_its_name() {
        for reason in FailureReason::ALL {
            let mut counters = BackplaneCounters::default();
            let before = counters.describe();
            reason.count(&mut counters);
            let changed: Vec<_> =
                counters.describe().into_iter().filter(|metric| !before.contains(metric)).collect();
            let labels: Vec<_> = changed.iter().map(|metric| (metric.name, metric.label)).collect();
            let label = Some(("reason", reason.name()));
            assert_eq!(labels, [("redis_connection_failures_total", label)]);
        }
    }
}
