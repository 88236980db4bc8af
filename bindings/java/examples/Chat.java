// Asks a model one question and prints the answer as it is made: examples/chat.c in Java.
//
//   Chat --model DIR --prompt TEXT [--system TEXT] [--max-tokens N] [--temperature X] [--seed N]
import io.github.libqwen.Event;
import io.github.libqwen.GenerationOptions;
import io.github.libqwen.QwenEngine;
import io.github.libqwen.QwenException;
import io.github.libqwen.Session;
import io.github.libqwen.SessionOptions;
import io.github.libqwen.TokenStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

public class Chat {
    static void chat(Path model, String prompt, SessionOptions conversation, GenerationOptions generation) {
        // Java's own System.out has the terminal's encoding, which may lack characters.
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        try (QwenEngine engine = QwenEngine.open(model);
                Session session = engine.newSession(conversation);
                TokenStream answer = session.stream(prompt, generation)) {
            for (Event event : answer) {
                out.print(event.text());
                out.flush();
            }
            out.println();
        }
    }

    static void run(String[] args) {
        Path model = null;
        String prompt = null;
        SessionOptions.Builder conversation = SessionOptions.builder();
        GenerationOptions.Builder generation = GenerationOptions.builder().temperature(0);
        for (int i = 0; i < args.length; i += 2) {
            if (i + 1 == args.length) {
                throw new IllegalArgumentException(args[i] + " lacks a value");
            }
            String value = args[i + 1];
            switch (args[i]) {
                case "--model" -> model = Path.of(value);
                case "--prompt" -> prompt = value;
                case "--system" -> conversation.system(value);
                case "--max-tokens" -> generation.maxTokens(Long.parseLong(value));
                case "--temperature" -> generation.temperature(Double.parseDouble(value));
                case "--seed" -> generation.seed(Long.parseLong(value));
                default -> throw new IllegalArgumentException("there is no flag " + args[i]);
            }
        }
        if (model == null || prompt == null) {
            throw new IllegalArgumentException("usage: Chat --model DIR --prompt TEXT [--system TEXT] "
                    + "[--max-tokens N] [--temperature X] [--seed N]");
        }
        chat(model, prompt, conversation.build(), generation.build());
    }

    public static void main(String[] args) {
        try {
            run(args);
        } catch (QwenException | IllegalArgumentException e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }
}
