//! The two Lua scripts. They are sent as text: there are few orders, and a server that has forgotten
//! a script needs no second attempt.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::revocations::reading::PAGE;
use crate::policy::revocations::Revocation;
use redis::Cmd;

/// Stores orders. Answers how many were refused, because there are `entries_max`.
pub(super) fn revoke(names: &Names, entries_max: usize, orders: &[Revocation]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(include_str!("../lua/revoke.lua")).arg(3);
    names.revocation_keys().iter().for_each(|key| _ = command.arg(key));
    command.arg(entries_max);
    for order in orders {
        command.arg(order.subject.key()).arg(order.issued_before_s).arg(order.until_s);
    }
    command
}

/// Reads what changed after the change of this number, which was about this subject.
pub(super) fn changes(names: &Names, number: u64, subject: &str) -> Cmd {
    let [hash, changes, _] = names.revocation_keys();
    let mut command = redis::cmd("EVAL");
    command.arg(include_str!("../lua/revocations.lua")).arg(2).arg(hash).arg(changes);
    command.arg(number).arg(subject).arg(PAGE);
    command
}
