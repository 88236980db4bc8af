//! Tells the library how it is built (`qwen_build_info_json` reports it). Compiles nothing itself;
//! the shared library is linked by build.mk.

fn main() {
    for (name, from) in [("QWEN_BUILD_TARGET", "TARGET"), ("QWEN_BUILD_PROFILE", "PROFILE")] {
        println!("cargo:rustc-env={name}={}", std::env::var(from).unwrap_or_default());
    }
    println!("cargo:rerun-if-changed=build.rs");
}
