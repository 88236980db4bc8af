//! How long the parts of an opening took, for its log line. Measures nothing by itself.

use std::fmt;
use std::time::Instant;

/// Stages that have ended, and when the one under way began.
pub(super) struct Stages {
    begun: Instant,
    ended: Vec<(&'static str, f64)>,
}

impl Stages {
    /// The first one begins.
    pub(super) fn begin() -> Stages {
        Stages { begun: Instant::now(), ended: Vec::new() }
    }

    /// The one under way ends, and the next begins.
    pub(super) fn end(&mut self, name: &'static str) {
        self.end_at(name, Instant::now());
    }

    /// The same, at `time`.
    pub(super) fn end_at(&mut self, name: &'static str, time: Instant) {
        self.ended.push((name, time.duration_since(self.begun).as_secs_f64()));
        self.begun = time;
    }

    /// What is not of interest ends now.
    #[cfg(feature = "cuda")]
    pub(super) fn skip(&mut self) {
        self.begun = Instant::now();
    }

    /// All of them together.
    pub(super) fn total_s(&self) -> f64 {
        self.ended.iter().map(|(_, seconds)| seconds).sum()
    }
}

impl fmt::Display for Stages {
    /// `files 0.050, driver 1.200`: seconds each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, seconds)) in self.ended.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {seconds:.3}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stages_follow_each_other() {
        let mut stages = Stages::begin();
        let start = stages.begun;
        stages.end_at("one", start + Duration::from_millis(250));
        stages.end_at("two", start + Duration::from_millis(1250));
        assert_eq!(stages.to_string(), "one 0.250, two 1.000");
        assert!((stages.total_s() - 1.25).abs() < 1e-9);
        assert_eq!(Stages::begin().to_string(), "");
    }
}
