//! Metrics in Prometheus' format.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    path: String,
    status: u16,
}

/// What a server counts.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    pub running: Gauge,
    pub waiting: Gauge,
    pub first_token: Histogram,
    pub whole_text: Histogram,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("burn_lora");
        let requests = Family::default();
        registry.register("requests", "Requests by path and status", requests.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let prompt_tokens = counter("prompt_tokens", "Tokens of prompts");
        let generated_tokens = counter("generated_tokens", "Tokens of answers");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("running_texts", "Texts that are continued");
        let waiting = gauge("waiting_texts", "Texts that wait for others");
        let mut seconds = |name: &str, help: &str| {
            let histogram = Histogram::new(exponential_buckets(0.01, 2.0, 16));
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let first_token =
            seconds("time_to_first_token", "From a request to the first token of a text");
        let whole_text = seconds("text_time", "From a request to the end of a text");
        Self {
            registry,
            requests,
            prompt_tokens,
            generated_tokens,
            running,
            waiting,
            first_token,
            whole_text,
        }
    }

    /// Counts a request.
    pub fn answered(&self, path: &str, status: u16) {
        self.requests.get_or_create(&Labels { path: path.into(), status }).inc();
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes it");
        text
    }
}
