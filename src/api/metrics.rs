//! `/metrics`: every described number of every thread, as OpenMetrics text.
//!
//! Knows no number by name. Numbers of one name are one family, whichever thread counts them; a
//! shard's carry its number as a label, so that one hot shard shows, and a Redis server's where it
//! is.

use super::Ops;
use crate::link::health::Health;
use crate::metrics::{BackplaneMirror, Described, Kind, OpsMirror, ShardMirror};
use crate::{sys, terminal};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A registry that reads the mirrors whenever it is asked.
pub(super) fn registry(
    shards: &[Arc<ShardMirror>],
    backplane: &Arc<BackplaneMirror>,
    own: &Arc<OpsMirror>,
    health: &Arc<Health>,
    started: Instant,
) -> Registry {
    let mut registry = Registry::with_prefix("campanile");
    let (shards, backplane, health) = (shards.to_vec(), backplane.clone(), health.clone());
    let own = own.clone();
    registry.register_collector(Box::new(Mirrors { shards, backplane, own, health, started }));
    registry
}

/// `GET /metrics`
pub(super) async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &ops.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Debug)]
struct Mirrors {
    shards: Vec<Arc<ShardMirror>>,
    backplane: Arc<BackplaneMirror>,
    own: Arc<OpsMirror>,
    health: Arc<Health>,
    started: Instant,
}

type Labels = Vec<(&'static str, String)>;

/// All numbers of one name.
struct Family {
    help: &'static str,
    kind: Kind,
    samples: Vec<(Labels, u64)>,
}

impl Mirrors {
    fn families(&self) -> BTreeMap<&'static str, Family> {
        let mut families = BTreeMap::new();
        for (shard, mirror) in self.shards.iter().enumerate() {
            for described in mirror.read().describe() {
                add(&mut families, described, vec![("shard", shard.to_string())]);
            }
        }
        for described in self.backplane.read().describe() {
            add(&mut families, described, vec![]);
        }
        let of_process = [self.own.read().describe(), terminal::log_counters().describe()];
        for described in of_process.into_iter().flatten() {
            add(&mut families, described, vec![]);
        }
        let (picture, now) = (self.backplane.redis(), Instant::now());
        for described in picture.deployment.describe() {
            add(&mut families, described, vec![]);
        }
        for server in &picture.servers {
            for described in server.describe(now) {
                add(&mut families, described, vec![("server", server.server.clone())]);
            }
        }
        families
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, labels: Labels, value: u64| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            encode(&mut metric, Kind::Gauge, &labels, value)
        };
        let build: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge("build_info", "Which build this is", build, 1)?;
        let ready = self.health.ready(self.shards.len() as u16).is_ok();
        gauge("ready", "1 while /readyz answers 200", vec![], u64::from(ready))?;
        let uptime_s = self.started.elapsed().as_secs();
        gauge("uptime_seconds", "Since this node started", vec![], uptime_s)?;
        match sys::resident_bytes() {
            Ok(bytes) => {
                gauge("process_resident_memory_bytes", "Memory held by the process", vec![], bytes)
            }
            Err(_) => Ok(()),
        }
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, labels: &Labels, value: u64) -> fmt::Result {
    // Without labels there is no family: it would write empty braces.
    if labels.is_empty() {
        return encode_value(metric, kind, value);
    }
    encode_value(&mut metric.encode_family(labels)?, kind, value)
}

fn encode_value(sample: &mut MetricEncoder<'_>, kind: Kind, value: u64) -> fmt::Result {
    match kind {
        Kind::Counter => sample.encode_counter::<Labels, u64, u64>(&value, None),
        Kind::Gauge => sample.encode_gauge(&value),
    }
}

fn add(families: &mut BTreeMap<&'static str, Family>, described: Described, mut labels: Labels) {
    let Described { name, label, help, kind, value } = described;
    labels.extend(label.map(|(key, value)| (key, value.to_owned())));
    let new = || Family { help, kind, samples: Vec::new() };
    families.entry(name).or_insert_with(new).samples.push((labels, value));
}

impl Collector for Mirrors {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, family) in self.families() {
            // The encoder writes `_total` behind a counter's name itself.
            let (name, kind) = match family.kind {
                Kind::Counter => (name.trim_end_matches("_total"), MetricType::Counter),
                Kind::Gauge => (name, MetricType::Gauge),
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, value) in &family.samples {
                encode(&mut metric, family.kind, labels, *value)?;
            }
        }
        self.encode_process(&mut encoder)
    }
}
