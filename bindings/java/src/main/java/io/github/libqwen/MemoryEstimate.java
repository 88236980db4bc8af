// What opening an engine would need.

package io.github.libqwen;

import java.util.Map;

/**
 * What {@link QwenEngine#open} would need. With a GPU all bytes are the GPU's, with several those of the
 * fullest.
 *
 * @param backend what it was computed for
 * @param device the device it was computed for
 * @param noGpu why not a GPU, if it is none
 * @param weightBytes bytes of weights
 * @param kvCacheBytes bytes of the KV cache
 * @param kvCacheTokens tokens that it holds
 * @param workspaceBytes bytes of everything else
 * @param availableBytes bytes that there are
 * @param fits whether they are enough
 * @param all all that the library says
 */
public record MemoryEstimate(String backend, String device, String noGpu, long weightBytes, long kvCacheBytes,
        long kvCacheTokens, long workspaceBytes, long availableBytes, boolean fits, Map<String, Object> all) {
    static MemoryEstimate of(Fields said) {
        return new MemoryEstimate(said.textOf("backend"), said.textOf("device"), said.textOf("no_gpu"),
                said.longOf("weight_bytes"), said.longOf("kv_cache_bytes"), said.longOf("kv_cache_tokens"),
                said.longOf("workspace_bytes"), said.longOf("available_bytes"), said.isTrue("fits"), said.all());
    }
}
