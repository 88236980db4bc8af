//! An engine's metrics in Prometheus's text exposition format, version 0.0.4.
//!
//! Names begin with `qwen_`; counters end in `_total`; times are in seconds.

use std::fmt::{Display, Write};

use crate::engine::histogram::Reading;
use crate::engine::metrics::{Kind, Metrics};

/// The text, of whole lines. Where `model` is not empty, every sample has it as the label `model`.
pub(crate) fn text(metrics: &Metrics, model: &str) -> String {
    let label = match model {
        "" => String::new(),
        name => format!("model=\"{}\"", escaped(name)),
    };
    let mut page = Page { text: String::new(), label };
    for told in metrics.told() {
        let value = told.number.get();
        match told.kind {
            // `_total` is for what grows.
            Kind::Gauge if told.name == "pages_total" => {
                page.single(("qwen_kv_pages", told.help, "gauge"), value);
            }
            Kind::Gauge => {
                let name = told.name.replace("pages_", "kv_pages_");
                page.single((&format!("qwen_{name}"), told.help, "gauge"), value);
            }
            Kind::Counter => {
                page.single((&format!("qwen_{}_total", told.name), told.help, "counter"), value);
            }
            Kind::Time => {
                let name = told.name.trim_end_matches("_us");
                let name = format!("qwen_{name}_seconds_total");
                page.single((&name, told.help, "counter"), value as f64 / 1e6);
            }
        }
    }
    for (name, help, histogram) in metrics.histograms.told() {
        page.histogram(&format!("qwen_{name}"), help, &histogram.read());
    }
    page.text
}

/// As the value of a label is written.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

struct Page {
    text: String,
    /// Of every sample; may be empty.
    label: String,
}

impl Page {
    fn head(&mut self, (name, help, kind): (&str, &str, &str)) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn single(&mut self, head: (&str, &str, &str), value: impl Display) {
        self.head(head);
        self.sample(head.0, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, reading: &Reading) {
        self.head((name, help, "histogram"));
        let bounds = reading.bounds.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        let mut below = 0;
        for (bound, count) in bounds.zip(&reading.counts) {
            below += count;
            self.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), below);
        }
        self.sample(&format!("{name}_sum"), "", reading.sum);
        self.sample(&format!("{name}_count"), "", reading.count());
    }

    /// One line: `name{labels} value`.
    fn sample(&mut self, name: &str, label: &str, value: impl Display) {
        let labels = [self.label.as_str(), label].into_iter().filter(|label| !label.is_empty());
        match labels.collect::<Vec<_>>().join(",") {
            labels if labels.is_empty() => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}
