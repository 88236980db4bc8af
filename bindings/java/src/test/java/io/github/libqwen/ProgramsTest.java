// Whole programs: where the library is found, how a process ends, the example, virtual threads.

package io.github.libqwen;

import static io.github.libqwen.Testing.*;
import static org.junit.jupiter.api.Assertions.*;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ProgramsTest {
    private static final Path NATIVE = Path.of(System.getProperty("qwen.native"), Library.platform()).normalize();
    private static final String CHAT = ROOT.resolve("bindings/java/examples/Chat.java").toString();

    /** Prints the library's version, what of it is mapped, and what it left of its folder. */
    public static final class Where {
        private Where() {}

        public static void main(String[] args) throws IOException {
            System.out.println(Qwen.version());
            Files.readString(Path.of("/proc/self/maps")).lines().filter(line -> line.contains("libqwen"))
                    .map(line -> line.substring(line.indexOf('/'))).distinct().forEach(System.out::println);
            try (var left = Files.list(Path.of(System.getProperty("java.io.tmpdir")))) {
                System.out.println(left.filter(path -> path.toString().contains("qwen")).count() + " left");
            }
        }
    }

    private static String testClasses() {
        return System.getProperty("java.class.path");
    }

    private static Ran where(String classPath, String... options) {
        List<String> arguments = new ArrayList<>(List.of(options));
        arguments.addAll(List.of("-cp", classPath, Where.class.getName()));
        return java(arguments);
    }

    /** This package's classes without the native library. */
    private static String bare(Path folder) throws IOException {
        try (var files = Files.walk(Path.of(classes()))) {
            for (Path path : files.filter(path -> path.toString().endsWith(".class")).toList()) {
                Path copy = folder.resolve(Path.of(classes()).relativize(path));
                Files.createDirectories(copy.getParent());
                Files.copy(path, copy);
            }
        }
        Path test = Path.of(classes()).resolveSibling("test-classes");
        return folder + ":" + test;
    }

    @Test
    void theSearchOrder(@TempDir Path folder) throws IOException {
        Path here = Files.createDirectory(folder.resolve("here"));
        Path there = Files.createDirectory(folder.resolve("there"));
        for (Path copy : List.of(here, there)) {
            for (String name : List.of("libqwenjni.so", "libqwen.so.1")) {
                Files.copy(NATIVE.resolve(name), copy.resolve(name));
            }
        }
        String classPath = testClasses();
        Ran chosen = where(classPath, "-Dqwen.library.path=" + here, "-Djava.library.path=" + there);
        assertTrue(chosen.output().contains(here + "/libqwenjni.so") && chosen.output().contains(here + "/libqwen.so.1"), chosen.output());
        assertFalse(chosen.output().contains(there.toString()), chosen.output());
        Ran second = where(classPath, "-Djava.library.path=/no/such/folder:" + there);
        assertTrue(second.output().contains(there + "/libqwenjni.so"), second.output());
        Path temporary = Files.createDirectory(folder.resolve("temporary"));
        Ran unpacked = where(classPath, "-Djava.library.path=", "-Djava.io.tmpdir=" + temporary);
        assertTrue(unpacked.output().matches("(?s).*/temporary/qwen-java-\\d+/libqwenjni.so \\(deleted\\).*"), unpacked.output());
        assertTrue(unpacked.output().contains("0 left"), unpacked.output());
        String bare = bare(folder.resolve("bare"));
        Ran nowhere = where(bare, "-Djava.library.path=");
        assertTrue(nowhere.status() == 1 && nowhere.output().contains("UnsatisfiedLinkError")
                && nowhere.output().contains("not in the jar"), nowhere.output());
        Ran wrong = where(classPath, "-Dqwen.library.path=/no/such/folder");
        assertTrue(wrong.status() == 1 && wrong.output().contains("UnsatisfiedLinkError"), wrong.output());
        // A folder of one's own, in which nobody else can put something in the library's place.
        assertEquals("rwx------", PosixFilePermissions.toString(privateFolder()));
    }

    private static java.util.Set<java.nio.file.attribute.PosixFilePermission> privateFolder() throws IOException {
        Path made = Library.privateFolder();
        try {
            return Files.getPosixFilePermissions(made);
        } finally {
            Files.delete(made);
        }
    }

    @Test
    void aLibraryOfAnotherAbiIsRefused() {
        Path other = ROOT.resolve("build/java/other-abi");
        Ran refused = where(testClasses(), "-Dqwen.library.path=" + other, "-Xcheck:jni");
        assertTrue(refused.status() == 1 && refused.output().contains("QwenException"), refused.output());
        assertTrue(refused.output().contains("4711"), refused.output());
        QwenException why = fails(ErrorCode.ABI_MISMATCH, () -> {
            Qwen.load();
            Native.checkAbi(Constants.ABI_VERSION + 1);
        });
        assertEquals(Constants.ABI_VERSION, Qwen.abiVersion(), why.detailJson());
        assertEquals((long) Constants.ABI_VERSION, Qwen.buildInfo().get("abi_version"));
    }

    /** That its answers are those of the other languages' programs is tests/twins.sh's matter. */
    @Test
    void theChatIsAModulesProgramToo() {
        List<String> asModule = List.of("-p", classes(), "--add-modules", "io.github.libqwen", CHAT);
        Ran missing = java(Stream.concat(asModule.stream(), Stream.of("--model", "/no/such/folder", "--prompt", "x")).toList());
        assertEquals(1, missing.status());
        assertTrue(missing.output().contains("/no/such/folder"), missing.output());
        assertEquals(1, java(asModule).status());
    }

    /** Ends in the middle of everything. */
    public static final class Exit {
        private Exit() {}

        public static void main(String[] args) {
            QwenEngine engine = QwenEngine.open(Path.of(args[0]));
            for (int i = 0; i < 4; i++) {
                engine.completeAsync(ask("Tell me a story.", 1500));
                engine.newSession().stream("Tell me a story.", exactly(1500));
            }
            for (Event event : engine.stream(ask("Tell me a story.", 1500))) {
                if (event.kind() == EventKind.DELTA) {
                    if (args.length > 1) {
                        return;
                    }
                    System.exit(7);
                }
            }
        }
    }

    @Test
    void aProgramMayEndInTheMiddle() {
        Ran exited = java(List.of("-Xcheck:jni", "-Dqwen.root=" + ROOT, "-cp", testClasses(), Exit.class.getName(), DEMO.toString()));
        assertEquals(new Ran(7, ""), exited);
        // No thread of ours keeps a program alive whose main has returned.
        Ran returned = java(List.of("-Dqwen.root=" + ROOT, "-cp", testClasses(), Exit.class.getName(), DEMO.toString(), "return"));
        assertEquals(new Ran(0, ""), returned);
    }

    @Test
    void virtualThreadsAreNotPinned() {
        String home = System.getProperty("qwen.jdk21", "");
        if (home.isEmpty()) {
            System.out.println("SKIPPED: virtualThreadsAreNotPinned needs a JDK of 21 or newer (make JDK21=/path)");
            return;
        }
        Ran ran = java(home, List.of("--enable-native-access=ALL-UNNAMED", "-Djdk.virtualThreadScheduler.parallelism=1",
                "-Djdk.virtualThreadScheduler.maxPoolSize=1", "-cp", classes(),
                ROOT.resolve("bindings/java/src/test/programs/VirtualThreads.java").toString(), TINY.toString(),
                DEMO.toString()));
        assertEquals("stopped: CANCELLED\n100 streams, 20 sessions, 100 scores on one carrier\n0 pinned\n", ran.output());
        assertEquals(0, ran.status());
    }
}
