// What an engine says of itself.

package io.github.libqwen;

import java.util.Map;

/**
 * The model, the backend, sizes and the options in force.
 *
 * @param modelPath the checkpoint's folder
 * @param numLayers the model's layers
 * @param vocabSize the tokens that there are
 * @param weightBytes bytes of weights
 * @param weightFormat their format
 * @param backend what computes
 * @param noGpu why not a GPU, if it is none
 * @param maxContextTokens the longest sequence
 * @param kvCacheTokens the tokens that the KV cache holds
 * @param all all that the library says, also what has no name here
 */
public record EngineInfo(String modelPath, int numLayers, int vocabSize, long weightBytes, String weightFormat,
        String backend, String noGpu, long maxContextTokens, long kvCacheTokens, Map<String, Object> all) {
    static EngineInfo of(Fields said) {
        Fields model = said.fieldsOf("model");
        return new EngineInfo(model.textOf("path"), model.intOf("num_layers"), model.intOf("vocab_size"),
                model.longOf("weight_bytes"), model.textOf("weight_format"), said.fieldsOf("backend").textOf("name"),
                said.textOf("no_gpu"), said.longOf("max_context_tokens"), said.longOf("kv_cache_tokens"), said.all());
    }
}
