//! What a sequence does to its logits on the host, before a token is drawn from them.
//!
//! A backend that draws tokens itself knows nothing of this. A sequence that has such a rule has its
//! steps give logits, and the loop draws: for all sequences of that step, with nothing running ahead.

use crate::engine::options::GenerationParams;

/// The rules of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct LogitRules {
    /// Id, and what is added to its logit.
    bias: Vec<(u32, f32)>,
}

impl LogitRules {
    pub(crate) fn new(params: &GenerationParams) -> LogitRules {
        LogitRules { bias: params.logit_bias.clone() }
    }

    /// Is there any?
    pub(crate) fn need_logits(&self) -> bool {
        !self.bias.is_empty()
    }

    /// Changes `logits` (`[ids in use]`) as the rules say.
    pub(crate) fn apply(&self, logits: &mut [f32]) {
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }
}
