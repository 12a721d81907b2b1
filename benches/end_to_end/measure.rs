//! One run: a server, a generator, and the figure that the case asks for.
//!
//! Invariant: a run in which anything was lost has no figure.

use crate::Size;
use crate::cases::{Case, Kind};
use crate::server::{Contestant, Server};
use campanile::load::{self, LoadArgs, report::LoadReport};
use clap::Parser;

/// What a run found.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Microseconds: by delivery, message or ping, or p99.
    pub us: f64,
    /// Of them a second.
    pub per_second: f64,
    /// Cores that the server used.
    pub server_cores: f64,
    /// Cores that the generator used.
    pub generator_cores: f64,
    /// Bytes of a delivery, where there are any.
    pub bytes: f64,
    /// Median latency of a copy, where there are any.
    pub p50_us: f64,
    /// 99 % of copies are no later.
    pub p99_us: f64,
    sample: Option<String>,
}

/// What stands around the payload in Campanile's deliveries; the floor sends the same.
#[derive(Default)]
pub struct Envelope {
    /// Before it, with {room} for the room's name.
    pub prefix: String,
    /// Behind it.
    pub suffix: String,
}

impl Envelope {
    /// From a short run of ours.
    pub fn learn(case: &Case, size: &Size) -> Result<Envelope, String> {
        if !matches!(case.figure, Kind::Delivery | Kind::Latency) {
            return Ok(Envelope::default());
        }
        let short = Size { seconds: 0.2, warmup_s: 0.0, ..*size };
        let rate = (case.figure == Kind::Latency).then_some(20.0);
        let measure = Measure { case, size: &short, envelope: Envelope::default(), rate };
        let sample = measure.take(Contestant::Campanile)?.sample.ok_or("nothing was delivered")?;
        let key = "\"payload\":";
        let start = sample.find(key).ok_or("a delivery without a payload")? + key.len();
        let (prefix, rest) = sample.split_at(start);
        // The payload is a string without escapes: it ends at its second quote, or further away
        // than the sample reaches; then nothing stands behind it but the last brace.
        let suffix = match rest.match_indices('"').nth(1) {
            Some((end, _)) => rest[end + 1..].to_owned(),
            None => "}".to_owned(),
        };
        Ok(Envelope { prefix: with_a_hole(prefix), suffix })
    }
}

/// Puts `{room}` where the room's name stands.
fn with_a_hole(prefix: &str) -> String {
    let Some(at) = prefix.find("\"load-") else { return prefix.to_owned() };
    let name = prefix[at + 1..].split('"').next().unwrap_or_default();
    prefix.replacen(name, "{room}", 1)
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

/// How one case is measured.
pub struct Measure<'a> {
    /// What is asked.
    pub case: &'a Case,
    /// How long.
    pub size: &'a Size,
    /// What the floor sends.
    pub envelope: Envelope,
    /// Messages a second, where latency is asked for.
    pub rate: Option<f64>,
}

impl Measure<'_> {
    /// Finds the rate that keeps our core busy for three tenths of the time.
    pub fn with_rate(self) -> Result<Self, String> {
        if self.case.figure != Kind::Latency {
            return Ok(self);
        }
        let probe = Measure { rate: Some(20.0), envelope: Envelope::default(), ..self };
        let used = probe.take(Contestant::Campanile)?.server_cores.max(0.01);
        Ok(Measure { rate: Some(20.0 * 0.3 / used), envelope: self.envelope, ..probe })
    }

    /// Runs one contestant in a fresh process.
    pub fn take(&self, contestant: Contestant) -> Result<Figure, String> {
        let server = Server::start(contestant, self.case, self.size, &self.envelope)?;
        let args = Cli::try_parse_from(self.words(contestant, &server))
            .map_err(|error| error.to_string())?;
        let report = load::measure(args.load).map_err(|error| error.to_string())?;
        if !report.ok {
            let trouble = report.first_failure.unwrap_or_default();
            return Err(format!("{}. {trouble}", report.shortfalls.join("; ")));
        }
        self.figure(report).ok_or_else(|| "a run without a result".into())
    }

    fn words(&self, contestant: Contestant, server: &Server) -> Vec<String> {
        let (case, size) = (self.case, self.size);
        let load = if size.smoke { case.load_smoke } else { case.load };
        let ours_only = if contestant == Contestant::Campanile { case.load_ours_only } else { "" };
        let mut line =
            format!("load {load} {ours_only} --url {} --pid {}", server.url, server.pid());
        match case.figure {
            Kind::Heartbeat => line += if size.smoke { " --hold-s 2" } else { " --hold-s 6" },
            _ => line += &format!(" --duration-s {} --warmup-s {}", size.seconds, size.warmup_s),
        }
        if let Some(rate) = self.rate {
            line += &format!(" --rate {rate}");
        }
        if let Some((_, core)) = size.cores {
            line += &format!(" --cores {core}");
        }
        let words = line.split_whitespace().map(str::to_owned);
        words.chain(case.templates().into_iter().map(str::to_owned)).collect()
    }

    fn figure(&self, report: LoadReport) -> Option<Figure> {
        let nan = f64::NAN;
        let empty = Figure {
            us: nan,
            per_second: nan,
            server_cores: nan,
            generator_cores: nan,
            bytes: nan,
            p50_us: nan,
            p99_us: nan,
            sample: None,
        };
        match self.case.figure {
            Kind::Delivery | Kind::Latency => {
                let fanout = report.fanout?;
                let p99_us = fanout.latency.p99_us;
                let cost = fanout.server_cpu_us_per_delivery?;
                Some(Figure {
                    us: if self.case.figure == Kind::Latency { p99_us } else { cost },
                    per_second: fanout.deliveries_per_second,
                    server_cores: fanout.server_cores?,
                    generator_cores: fanout.generator_cores,
                    bytes: fanout.bytes_per_delivery,
                    p50_us: fanout.latency.p50_us,
                    p99_us,
                    sample: fanout.sample,
                })
            }
            Kind::Receive => {
                let ingest = report.ingest?;
                Some(Figure {
                    us: ingest.server_cpu_us_per_message?,
                    per_second: ingest.messages_per_second,
                    server_cores: ingest.server_cores?,
                    generator_cores: ingest.generator_cores,
                    ..empty
                })
            }
            Kind::Heartbeat => {
                let hold = report.hold?;
                Some(Figure {
                    us: hold.server_cpu_us_per_ping?,
                    per_second: hold.pings as f64 / hold.seconds,
                    server_cores: hold.server_cores?,
                    generator_cores: hold.generator_cores,
                    ..empty
                })
            }
        }
    }
}
