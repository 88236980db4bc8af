// The module: one package, no dependency beyond java.base.

/** Qwen-1 chat models inside a Java program, by the C library libqwen. */
module io.github.libqwen {
    exports io.github.libqwen;
}
