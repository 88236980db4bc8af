// The library itself: its version, how it was built.

package io.github.libqwen;

import java.lang.ref.Cleaner;
import java.util.Map;

/** The native library that is loaded. */
public final class Qwen {
    /** Closes what a program forgot to, once it is garbage. */
    static final Cleaner CLEANER = Cleaner.create(task -> Workers.daemon("libqwen-cleaner", task));

    private Qwen() {}

    /**
     * Loads the native library, if it is not loaded: every call does, but here its absence can be met
     * early.
     *
     * @throws UnsatisfiedLinkError where there is none
     * @throws QwenException ABI_MISMATCH for one that is not made for this package
     */
    public static void load() {
        Library.load();
    }

    /**
     * The version of the library that is loaded, such as "1.2.3".
     *
     * @return the version
     */
    public static String version() {
        load();
        return Text.of(Native.version());
    }

    /**
     * The ABI of the library that is loaded.
     *
     * @return its number
     */
    public static int abiVersion() {
        load();
        return Native.abiVersion();
    }

    /**
     * The name of a status in C, such as "QWEN_E_UTF8".
     *
     * @param status the status
     * @return the name; "QWEN_E_UNKNOWN" for one that the library does not know
     */
    public static String statusName(int status) {
        load();
        return Text.of(Native.statusName(status));
    }

    /**
     * How the library was built: version, abi_version, target, profile, and cuda: whether it can use a GPU.
     *
     * @return an unmodifiable map
     */
    public static Map<String, Object> buildInfo() {
        load();
        return Fields.parse(Native.buildInfo()).all();
    }
}
