//! Prometheus' numbers, under vLLM's names where they mean the same.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use sppo_model::generate::EngineHandle;

/// Seconds, from a fast GPU's step to a CPU's.
const STEPS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const WAITS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// What the server counts.
pub struct Metrics {
    registry: Registry,
    first: Histogram,
    next: Histogram,
    finished: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
}

impl Metrics {
    /// All at zero; the engine's own numbers are asked for when they are looked at.
    pub fn new(engine: EngineHandle) -> Self {
        let mut registry = Registry::default();
        let first = Histogram::new(WAITS);
        let next = Histogram::new(STEPS);
        let (finished, refused) = (Family::default(), Family::default());
        let seconds = Unit::Seconds;
        registry.register_with_unit(
            "sppo:time_to_first_token",
            "From a request's acceptance to the first token of each of its answers",
            seconds.clone(),
            first.clone(),
        );
        registry.register_with_unit(
            "sppo:time_per_output_token",
            "Between two tokens of an answer",
            seconds,
            next.clone(),
        );
        registry.register(
            "sppo:answers_finished",
            "Answers that were finished, by finish_reason",
            finished.clone(),
        );
        registry.register(
            "sppo:requests_refused",
            "Requests that got an error, by HTTP status",
            refused.clone(),
        );
        registry.register_collector(Box::new(OfEngine(engine)));
        Self {
            registry,
            first,
            next,
            finished,
            refused,
        }
    }

    /// The first token of an answer came.
    pub fn first_token(&self, seconds: f64) {
        self.first.observe(seconds);
    }

    /// Another one did.
    pub fn next_token(&self, seconds: f64) {
        self.next.observe(seconds);
    }

    /// An answer is whole.
    pub fn finished(&self, reason: &str) {
        let reason = reason.into();
        self.finished.get_or_create(&Reason { reason }).inc();
    }

    /// A request got an error.
    pub fn refused(&self, status: u16) {
        let reason = status.to_string();
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The engine's numbers of the moment.
struct OfEngine(EngineHandle);

impl fmt::Debug for OfEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.counts().fmt(f)
    }
}

impl Collector for OfEngine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = self.0.counts();
        let use_of_cache = match now.engine.cache_bytes {
            0 => 0.0,
            all => now.engine.cache_used as f64 / all as f64,
        };
        let gauges = [
            (
                "num_requests_running",
                "Sequences under way",
                now.engine.running as f64,
            ),
            (
                "num_requests_waiting",
                "Requests that nothing was begun of",
                now.waiting as f64,
            ),
            (
                "kv_cache_usage_perc",
                "Part of the keys' and values' memory in use, 0 to 1",
                use_of_cache,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let name = format!("sppo:{name}");
            let to = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(to)?;
        }
        let counters = [
            (
                "requests_accepted",
                "Requests that the engine took",
                now.accepted,
            ),
            (
                "requests_cancelled",
                "Requests whose client left, or read too slowly",
                now.cancelled,
            ),
            (
                "prompt_tokens_computed",
                "Prompt tokens that were computed",
                now.engine.computed,
            ),
            (
                "prompt_tokens_cached",
                "Prompt tokens that were there from prompts that began alike",
                now.engine.cached,
            ),
            ("generation_tokens", "Tokens drawn", now.engine.drawn),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let name = format!("sppo:{name}");
            let to = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(to)?;
        }
        Ok(())
    }
}
