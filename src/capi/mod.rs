//! The C ABI: every exported function, one `guard` around each.
