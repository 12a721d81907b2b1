//! The plan as text for people: `campanile config --plan`.
//!
//! Invariant: the lines have one order, and no secret is in them.

use crate::plan::{
    BackplanePlan, BudgetLine, ByteSize, MemoryBudget, NoticeLevel, Plan, Planned, RedisPlan,
    StartupNotice, written,
};
use crate::policy::limits::LIMIT_SETTINGS;
use crate::policy::setting::SettingValue;
use std::fmt::Write as _;

/// What the configuration means on this machine, for people.
pub fn print(planned: &Planned) -> String {
    let plan = &planned.plan;
    let mut out = String::new();
    section(&mut out, "What a start would do here", &start_lines(plan));
    section(&mut out, "Which clients are admitted", &auth_lines(plan));
    section(&mut out, "Limits", &limit_lines(plan));
    section(&mut out, "How memory is divided (limits.memory_bytes_max)", &part_lines(plan));
    section(&mut out, "Memory that all limits together allow", &memory_lines(plan));
    let warnings = notices_at(planned, NoticeLevel::Warning).map(|text| ("warning", text));
    let notes = notices_at(planned, NoticeLevel::Info).map(|text| ("note", text));
    section(&mut out, "What to know", &warnings.chain(notes).collect::<Vec<_>>());
    out
}

fn notices_at(planned: &Planned, level: NoticeLevel) -> impl Iterator<Item = String> {
    let of_level = move |notice: &&StartupNotice| notice.level == level;
    planned.notices.iter().filter(of_level).map(|notice| notice.text.clone())
}

/// A heading, and lines in two columns; nothing where there are none.
fn section(out: &mut String, heading: &str, lines: &[(&str, String)]) {
    if lines.is_empty() {
        return;
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let gap = if out.is_empty() { "" } else { "\n" };
    writeln!(out, "{gap}{heading}:").expect("a String takes everything");
    for (name, value) in lines {
        writeln!(out, "  {name:width$}  {value}").expect("a String takes everything");
    }
}

fn start_lines(plan: &Plan) -> Vec<(&'static str, String)> {
    let cores: Vec<usize> = plan.shards.iter().filter_map(|shard| shard.core).collect();
    let shards = format!("{}, on cores {}", plan.shards.len(), list(&cores));
    vec![
        ("WebSockets", format!("ws://{}/ws", plan.listen)),
        ("page", plan.page_url().unwrap_or_else(|| "none".to_owned())),
        ("API", plan.api_url()),
        ("API on the public port", list(&plan.ops_public_paths)),
        ("echo", plan.echo_path.clone().unwrap_or_else(|| "none".to_owned())),
        ("backplane", backplane(plan)),
        ("shards", shards),
        ("cores of other threads", list(&plan.other_cores)),
        ("private_fd_tables", plan.private_fd_tables.to_string()),
        ("scheduling", plan.scheduling.write()),
        ("backplane_priority", plan.backplane_priority.to_string()),
        ("steering", plan.steering.write()),
        ("proxy_protocol", plan.proxy_protocol.write()),
        ("trusted_proxies", list(&written(&plan.trusted_proxies))),
        ("namespaces", plan.namespaces.write()),
        ("drain_ms", plan.drain_ms.to_string()),
    ]
}

fn backplane(plan: &Plan) -> String {
    match &plan.backplane {
        BackplanePlan::Memory => "memory: this node alone".to_owned(),
        BackplanePlan::Redis(RedisPlan { servers, prefix, .. }) => {
            format!("{servers:?}, prefix {prefix}")
        }
    }
}

fn auth_lines(plan: &Plan) -> Vec<(&'static str, String)> {
    let auth = &plan.auth;
    let is_set = |is_set: bool| if is_set { "set, not shown" } else { "none" }.to_owned();
    let origins = match plan.origins.as_slice() {
        [] if auth.anonymous => "of this host, and of the visitor's own machine".to_owned(),
        [] => "any".to_owned(),
        some => list(some),
    };
    vec![
        ("secret of tokens", is_set(auth.hmac_secret.is_some())),
        ("keys of tokens", is_set(!auth.keys.is_empty())),
        ("without a token", if auth.anonymous { "admitted" } else { "refused" }.to_owned()),
        ("rights without a token", list(&auth.anonymous_rights.names())),
        ("rights of users", list(&auth.user_rights.names())),
        ("pages", origins),
        ("rejected handshakes", plan.rejected_handshakes.write()),
        ("key of the API", is_set(plan.ops_api_key.is_some())),
    ]
}

fn limit_lines(plan: &Plan) -> Vec<(&'static str, String)> {
    let line = |limit: &crate::policy::limits::LimitSetting| {
        (limit.key, (limit.get)(&plan.limits).to_string())
    };
    LIMIT_SETTINGS.iter().map(line).collect()
}

fn part_lines(plan: &Plan) -> Vec<(&'static str, String)> {
    let parts = plan.memory().parts.into_iter();
    parts.map(|part| (part.name, format!("at most {}", ByteSize(part.bytes)))).collect()
}

fn memory_lines(plan: &Plan) -> Vec<(&'static str, String)> {
    let budget = MemoryBudget::of(plan);
    let line = |BudgetLine { name, count, bytes_each }: &BudgetLine| {
        let sum = ByteSize(count.saturating_mul(*bytes_each));
        (*name, format!("{count} × {} = {sum}", ByteSize(*bytes_each)))
    };
    let sum = ("together", format!("at most {}", ByteSize(budget.total())));
    budget.0.iter().map(line).chain([sum]).collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}
