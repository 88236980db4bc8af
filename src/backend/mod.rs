//! The backend trait: a few coarse ops, each with shapes, accumulate type and rounding.
