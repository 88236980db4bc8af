// A listener for how far loading is.

package io.github.libqwen;

/** Is told how far loading is. What it throws gives up the loading, and comes out of open. */
@FunctionalInterface
public interface LoadProgress {
    /**
     * Called now and then, on one thread of this package.
     *
     * @param doneBytes bytes of weights that are ready
     * @param totalBytes bytes of weights in all
     */
    void onProgress(long doneBytes, long totalBytes);
}
