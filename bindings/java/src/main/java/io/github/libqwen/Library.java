// Finding and loading the native library.

package io.github.libqwen;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.concurrent.locks.ReentrantLock;

/**
 * Loads libqwenjni.so, and libqwen.so.1 before it, from the first of these places: the folder that the
 * system property qwen.library.path names (then it must be there); a folder of java.library.path; the
 * jar, by a private folder that is gone again once the library is loaded.
 */
final class Library {
    private static final String GLUE = "libqwenjni.so";
    private static final String CORE = "libqwen.so." + Constants.ABI_VERSION;
    private static final ReentrantLock LOCK = new ReentrantLock();
    private static volatile boolean loaded;

    private Library() {}

    /** Loads the library if it is not loaded; each way into it begins here. */
    static void load() {
        if (loaded) {
            return;
        }
        LOCK.lock();
        try {
            if (!loaded) {
                find();
                loaded = true;
            }
        } finally {
            LOCK.unlock();
        }
    }

    private static void find() {
        String chosen = System.getProperty("qwen.library.path");
        if (chosen != null) {
            loadFrom(Path.of(chosen));
            return;
        }
        for (String folder : System.getProperty("java.library.path", "").split(":")) {
            if (!folder.isEmpty() && Files.isRegularFile(Path.of(folder, GLUE))) {
                loadFrom(Path.of(folder));
                return;
            }
        }
        unpack();
    }

    /** Without a libqwen in the folder, the glue's own search finds it, or the system's. */
    private static void loadFrom(Path folder) {
        Path core = folder.resolve(CORE).toAbsolutePath();
        if (Files.isRegularFile(core)) {
            System.load(core.toString());
        }
        System.load(folder.resolve(GLUE).toAbsolutePath().toString());
    }

    /** What is loaded stays mapped without its files, so nothing is left behind, however the process ends. */
    private static void unpack() {
        try {
            Path folder = privateFolder();
            try {
                unpack(CORE, folder);
                unpack(GLUE, folder);
                loadFrom(folder);
            } finally {
                Files.deleteIfExists(folder.resolve(GLUE));
                Files.deleteIfExists(folder.resolve(CORE));
                Files.deleteIfExists(folder);
            }
        } catch (IOException e) {
            throw new UnsatisfiedLinkError("libqwen cannot be unpacked in java.io.tmpdir: " + e);
        }
    }

    /** Nobody else can put something in it in the library's place. */
    static Path privateFolder() throws IOException {
        var onlyOurs = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------"));
        return Files.createTempDirectory("qwen-java-", onlyOurs);
    }

    private static void unpack(String name, Path folder) throws IOException {
        String path = "/META-INF/native/" + platform() + "/" + name;
        try (InputStream packed = Library.class.getResourceAsStream(path)) {
            if (packed != null) {
                Files.copy(packed, folder.resolve(name));
            } else if (name.equals(GLUE)) {
                throw new UnsatisfiedLinkError(name + " is in no folder of java.library.path, not where "
                        + "qwen.library.path says, and not in the jar (" + path + ")");
            }
        }
    }

    static String platform() {
        String machine = System.getProperty("os.arch");
        return System.getProperty("os.name").toLowerCase(java.util.Locale.ROOT) + "-"
                + (machine.equals("amd64") ? "x86_64" : machine);
    }
}
