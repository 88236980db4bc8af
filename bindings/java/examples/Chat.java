// Asks a model one question and prints the answer as it is made: Chat MODEL QUESTION
import io.github.libqwen.Event;
import io.github.libqwen.GenerationOptions;
import io.github.libqwen.Prompt;
import io.github.libqwen.QwenEngine;
import io.github.libqwen.QwenException;
import io.github.libqwen.TokenStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;

public class Chat {
    public static void main(String[] args) {
        if (args.length != 2) {
            System.err.println("usage: Chat MODEL QUESTION");
            System.exit(2);
        }
        // Java's own System.out has the terminal's encoding, which may lack characters.
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        GenerationOptions greedy = GenerationOptions.builder().temperature(0).build();
        try (QwenEngine engine = QwenEngine.open(Path.of(args[0]));
                TokenStream answer = engine.stream(Prompt.chat(args[1], greedy))) {
            for (Event event : answer) {
                out.print(event.text());
                out.flush();
            }
            out.println();
        } catch (QwenException e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }
}
