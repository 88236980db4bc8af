# The commands of the Java binding. Included by the Makefile.

MVN ?= mvn
JAVAC ?= javac
# The one that javac is of, for everything: a machine may have several.
JDK = $(patsubst %/bin/javac,%,$(realpath $(shell command -v $(JAVAC))))
JAVA ?= $(JDK)/bin/java
# A JDK with virtual threads, for the one test that needs it.
JDK21 ?= $(firstword $(foreach jdk,$(wildcard /usr/lib/jvm/*),$(if $(shell \
	sed -n 's/^JAVA_VERSION="\(2[1-9]\|[3-9][0-9]\).*/yes/p' $(jdk)/release 2>/dev/null),$(jdk))))

JAVA_SOURCES := $(wildcard bindings/java/src/main/java/*.java bindings/java/src/main/java/io/github/libqwen/*.java)
JAVA_GLUE := $(wildcard bindings/java/src/main/c/*.c)
JAVA_NATIVE := build/java/native/linux-$(shell uname -m)
JAVA_JAR = build/java/maven/qwen-$(QWEN_VERSION).jar
MAVEN = JAVA_HOME=$(JDK) $(MVN) -B -q -ntp -f bindings/java/pom.xml -Drevision=$(QWEN_VERSION) -Djdk21=$(JDK21)
# For programs of the JDK: the classes, and where the native library is.
JAVA_RUN = $(JAVA) -Dqwen.library.path=$(JAVA_NATIVE) -cp build/java/classes

.PHONY: java-deps java-native java-check java-test java-jar java-install java-doc java-generate java-chat java-bench

java-deps:
	@JAVAC=$(JAVAC) MVN=$(MVN) .ci/deps cxx java

# The classes, for javac writes the header that the glue's functions are checked with.
build/java/include/ready: $(JAVA_SOURCES) | java-deps
	@mkdir -p build/java/classes build/java/include
	$(JAVAC) --release 17 -Xlint:all -Werror -d build/java/classes -h build/java/include $(JAVA_SOURCES)
	@touch $@

GLUE_FLAGS = -std=c99 -Wall -Wextra -Wpedantic -Werror -fvisibility=hidden -fPIC -shared \
	-I$(JDK)/include -I$(JDK)/include/linux -Ibuild/java/include
GLUE_LIBS = -Lbuild/lib -lqwen -lpthread -Wl,-z,defs,-z,relro,-z,now -Wl,-rpath,'$$ORIGIN' -Wl,--build-id

$(JAVA_NATIVE)/libqwenjni.so: build/java/include/ready $(JAVA_GLUE) bindings/java/src/main/c/glue.h include/qwen.h \
		build/lib/libqwen.so bindings/java/java.mk
	@mkdir -p $(JAVA_NATIVE)
	$(CC) $(GLUE_FLAGS) $(CFLAGS) -Iinclude $(JAVA_GLUE) -o $@ $(GLUE_LIBS)
	strip --strip-unneeded $@

# As it goes into the jar.
java-native: lib $(JAVA_NATIVE)/libqwenjni.so
	@cmp -s build/lib/$(SONAME) $(JAVA_NATIVE)/$(SONAME) || cp build/lib/$(SONAME) $(JAVA_NATIVE)/

# A glue that was compiled for another ABI, which must refuse this library.
build/java/other-abi/libqwenjni.so: $(JAVA_NATIVE)/libqwenjni.so
	@mkdir -p build/java/other-abi
	sed 's/^#define QWEN_ABI_VERSION .*/#define QWEN_ABI_VERSION 4711/' include/qwen.h > build/java/other-abi/qwen.h
	$(CC) $(GLUE_FLAGS) -Ibuild/java/other-abi $(JAVA_GLUE) -o $@ $(GLUE_LIBS)
	cp build/lib/$(SONAME) build/java/other-abi/

java-check: java-native
	$(PYTHON) bindings/java/generate.py build/lib/libqwen.so --check

# The JVM checks every call of the glue (-Xcheck:jni), and says what it finds on its output only.
java-test: java-check build/java/other-abi/libqwenjni.so java-doc examples fixtures ## the Java binding's tests
	@$(if $(JDK21),,echo 'SKIPPED: no JDK of 21 or newer (JDK21=/path), so nobody sees whether virtual threads are pinned')
	@rm -rf build/java/maven/surefire-reports
	@status=0; $(MAVEN) package 2>&1 | tee build/java/test.log || status=$$?; \
	if grep -qE 'in native method|FATAL ERROR|JNI local refs' build/java/test.log; then \
		echo "the JVM complains of the glue: build/java/test.log" >&2; status=1; fi; \
	awk -F '[:,]' '/^Tests run/ { run += $$2; failed += $$4 + $$6 } \
	     END { printf "%d Java tests run, %d failed\n", run, failed }' build/java/maven/surefire-reports/*.txt; \
	exit $$status

java-doc: build/java/include/ready
	$(JDK)/bin/javadoc -quiet -Xdoclint:all -Werror --release 17 -d build/java/doc $(JAVA_SOURCES)

java-jar: java-native ## the Java binding as a jar with the library in it, in build/java/maven
	$(MAVEN) package -DskipTests
	@echo $(JAVA_JAR)

java-install: java-native ## the jar in the local Maven repository
	$(MAVEN) install -DskipTests

java-generate: lib ## write the Java binding's generated files anew
	$(PYTHON) bindings/java/generate.py build/lib/libqwen.so

java-chat: java-native ## one answer in Java: PROMPT="one question" MODEL=/path/to/Qwen-7B-Chat
	@$(JAVA_RUN) bindings/java/examples/Chat.java --model "$(MODEL)" --prompt "$${CHAT_PROMPT:-Hello!}"

java-bench: java-native ## what a streamed token costs in Java, beside plain C
	@mkdir -p build/bin build/java/bench
	$(CC) -std=c11 -O2 -Wall -Wextra -Iinclude benches/stream.c -o build/bin/stream -Lbuild/lib -lqwen -pthread $(RUNPATH)
	$(JAVAC) --release 17 -cp build/java/classes -d build/java/bench bindings/java/bench/Stream.java
	bindings/java/bench/compare.sh build/bin/stream tests/data/tiny/plain-bf16 \
		$(JAVA) -Dqwen.library.path=$(JAVA_NATIVE) -cp build/java/classes:build/java/bench Stream
