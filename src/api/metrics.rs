//! `/metrics`: every described number of every thread, in the Prometheus text format 0.0.4.
//!
//! No number is named here. Numbers of one name are one family, whichever thread counts them; a
//! shard's have its number as a label, so that one hot shard shows, and a Redis server's its address.

use super::Ops;
use super::kernel_memory::tcp_memory;
use crate::metrics::histogram::Histogram;
use crate::metrics::{Metric, MetricKind, MetricValue};
use crate::{sys, terminal};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Instant;

/// Written in front of every name.
const PREFIX: &str = "campanile_";

/// `GET /metrics`
pub(super) async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let text = render(&families(&ops));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

type Labels = Vec<(&'static str, String)>;

/// All numbers of one name.
struct Family {
    help: &'static str,
    kind: MetricKind,
    samples: Vec<(Labels, MetricValue)>,
}

type Families = BTreeMap<&'static str, Family>;

fn families(ops: &Ops) -> Families {
    let mut families = Families::new();
    for (shard, mirror) in ops.shards.iter().enumerate() {
        let metrics = mirror.read().describe();
        metrics
            .into_iter()
            .for_each(|it| add(&mut families, it, vec![("shard", shard.to_string())]));
    }
    let (snapshot, now) = (ops.backplane.redis(), Instant::now());
    let of_node = [
        ops.backplane.read().describe(),
        ops.own.read().describe(),
        ops.access.read().describe(),
        ops.reloads.read().describe(),
        ops.hooks.read().describe(),
        ops.scheduled.read().describe(),
        ops.jwks.read().describe(),
        terminal::log_counters().describe(),
        snapshot.deployment.describe(),
        of_process(ops),
    ];
    of_node.into_iter().flatten().for_each(|it| add(&mut families, it, vec![]));
    for server in &snapshot.servers {
        for metric in server.describe(now) {
            add(&mut families, metric, vec![("server", server.server.clone())]);
        }
    }
    families
}

fn add(families: &mut Families, metric: Metric, mut labels: Labels) {
    let Metric { name, label, help, kind, value } = metric;
    labels.extend(label.map(|(key, value)| (key, value.to_owned())));
    let new = || Family { help, kind, samples: Vec::new() };
    families.entry(name).or_insert_with(new).samples.push((labels, value));
}

/// Numbers of the whole process.
fn of_process(ops: &Ops) -> Vec<Metric> {
    let gauge = |name, help, count| Metric {
        name,
        label: None,
        help,
        kind: MetricKind::Gauge,
        value: MetricValue::Number { count, per: 1 },
    };
    let is_ready = ops.health.ready(ops.shards.len() as u16).is_ok();
    let build = gauge("build_info", "The version of this build, as a label", 1);
    let mut metrics = vec![
        Metric { label: Some(("version", env!("CARGO_PKG_VERSION"))), ..build },
        gauge("ready", "1 while /readyz answers 200", u64::from(is_ready)),
        gauge("uptime_seconds", "Time since this node started", ops.started.elapsed().as_secs()),
    ];
    if let Ok(bytes) = sys::resident_bytes() {
        let help = "Resident memory of the process";
        metrics.push(gauge("process_resident_memory_bytes", help, bytes));
    }
    if let Some(memory) = tcp_memory() {
        let help = "Memory of the kernel for TCP sockets, of all processes of this host";
        metrics.push(gauge("kernel_tcp_memory_bytes", help, memory.used_bytes));
        let help = "Its bound, the last number of net.ipv4.tcp_mem";
        metrics.push(gauge("kernel_tcp_memory_limit_bytes", help, memory.max_bytes));
    }
    metrics
}

fn render(families: &Families) -> String {
    let mut text = String::new();
    for (name, family) in families {
        write_family(&mut text, name, family).expect("a String takes all that is written to it");
    }
    text
}

fn write_family(out: &mut String, name: &str, family: &Family) -> fmt::Result {
    let kind = match family.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    };
    // Help texts are ours: no line breaks and no backslashes in them (a test looks).
    writeln!(out, "# HELP {PREFIX}{name} {}", family.help)?;
    writeln!(out, "# TYPE {PREFIX}{name} {kind}")?;
    for (labels, value) in &family.samples {
        match value {
            MetricValue::Number { count, per } => {
                write_sample(out, name, "", labels, None, *count, *per)?;
            }
            MetricValue::Histogram(histogram) => write_histogram(out, name, labels, histogram)?,
        }
    }
    Ok(())
}

fn write_histogram(
    out: &mut String,
    name: &str,
    labels: &Labels,
    histogram: &Histogram,
) -> fmt::Result {
    let mut bound = String::new();
    for (bound_us, count) in histogram.cumulative() {
        bound.clear();
        write_decimal(&mut bound, bound_us, 1_000_000)?;
        write_sample(out, name, "_bucket", labels, Some(&bound), count, 1)?;
    }
    let count = histogram.count();
    write_sample(out, name, "_bucket", labels, Some("+Inf"), count, 1)?;
    write_sample(out, name, "_sum", labels, None, histogram.sum_ns(), 1_000_000_000)?;
    write_sample(out, name, "_count", labels, None, count, 1)
}

/// One line. `le` is the upper bound of a histogram's bucket.
fn write_sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &Labels,
    le: Option<&str>,
    count: u64,
    per: u64,
) -> fmt::Result {
    write!(out, "{PREFIX}{name}{suffix}")?;
    let labels = labels.iter().map(|(key, value)| (*key, value.as_str()));
    let mut between = '{';
    for (key, value) in labels.chain(le.map(|bound| ("le", bound))) {
        write!(out, "{between}{key}=\"")?;
        write_escaped(out, value);
        out.push('"');
        between = ',';
    }
    out.push_str(if between == '{' { " " } else { "} " });
    write_decimal(out, count, per)?;
    out.push('\n');
    Ok(())
}

/// `count / per` without loss; `per` is a power of ten.
fn write_decimal(out: &mut String, count: u64, per: u64) -> fmt::Result {
    write!(out, "{}", count / per)?;
    let rest = count % per;
    if rest > 0 {
        let digits = per.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        write!(out, ".{}", fraction.trim_end_matches('0'))?;
    }
    Ok(())
}

/// A label's value: a server's address is any text from the configuration.
fn write_escaped(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{
        AccessCounters, BackplaneCounters, LogCounters, OpsCounters, ShardCounters,
    };
    use std::time::Duration;

    fn rendered(metric: Metric, labels: Labels) -> String {
        let mut families = Families::new();
        add(&mut families, metric, labels);
        render(&families)
    }

    fn gauge(count: u64, per: u64) -> Metric {
        let (name, help) = ("age_seconds", "Its age");
        let value = MetricValue::Number { count, per };
        Metric { name, label: None, help, kind: MetricKind::Gauge, value }
    }

    #[test]
    fn a_number_counted_in_a_smaller_unit_is_exposed_in_the_base_unit_without_loss() {
        let table = [
            (0, 1000, "0"),
            (7, 1, "7"),
            (1500, 1000, "1.5"),
            (1, 1_000_000, "0.000001"),
            (2_000_000, 1_000_000, "2"),
            (u64::MAX, 1_000_000_000, "18446744073.709551615"),
        ];
        for (count, per, value) in table {
            let text = rendered(gauge(count, per), vec![]);
            let line = format!("campanile_age_seconds {value}");
            assert_eq!(text.lines().last(), Some(&line[..]));
        }
    }

    #[test]
    fn a_label_may_be_any_text() {
        let labels = vec![("shard", "0".to_owned()), ("server", "a\"b\\c\nd".to_owned())];
        let text = rendered(gauge(1, 1), labels);
        let line = r#"campanile_age_seconds{shard="0",server="a\"b\\c\nd"} 1"#;
        assert_eq!(text.lines().last(), Some(line));
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_in_seconds_their_sum_and_their_count() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_micros(7));
        histogram.record(Duration::from_millis(40));
        let metric = Metric {
            kind: MetricKind::Histogram,
            value: MetricValue::Histogram(Box::new(histogram)),
            ..gauge(0, 1)
        };
        let text = rendered(metric, vec![("shard", "3".to_owned())]);
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        has("# TYPE campanile_age_seconds histogram");
        has("campanile_age_seconds_bucket{shard=\"3\",le=\"0.00001\"} 1");
        has("campanile_age_seconds_bucket{shard=\"3\",le=\"0.025\"} 1");
        has("campanile_age_seconds_bucket{shard=\"3\",le=\"0.05\"} 2");
        has("campanile_age_seconds_bucket{shard=\"3\",le=\"+Inf\"} 2");
        has("campanile_age_seconds_sum{shard=\"3\"} 0.040007");
        has("campanile_age_seconds_count{shard=\"3\"} 2");
    }

    #[test]
    fn help_texts_need_no_escapes_and_all_of_one_name_are_the_same() {
        let all = [
            ShardCounters::default().describe(),
            BackplaneCounters::default().describe(),
            OpsCounters::default().describe(),
            AccessCounters::default().describe(),
            LogCounters::default().describe(),
        ];
        let mut helps = BTreeMap::new();
        for metric in all.into_iter().flatten() {
            assert!(!metric.help.contains(['\\', '\n']), "{}", metric.name);
            let first = *helps.entry(metric.name).or_insert((metric.help, metric.kind));
            assert_eq!(first, (metric.help, metric.kind), "{}", metric.name);
        }
    }
}
