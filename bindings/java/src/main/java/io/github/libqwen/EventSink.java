// Where a reply's events go.

package io.github.libqwen;

/** Receives the events of one reply, in order, on a thread that must not wait. */
interface EventSink {
    /** How a reply ends where there is no memory left to say why. */
    QwenException LOST = QwenException.make(ErrorCode.OOM_HOST, "events were lost for want of memory", "{}");

    /** One event. */
    void put(Event event);

    /** The end: null for a good one. Only the first counts. */
    void end(QwenException error);

    /** Called by C during a session's call, with one event as events.c writes it. */
    default void onEvent(byte[] bytes) {
        Event.Received received = Event.read(Event.buffer(bytes));
        // How it failed is what the call throws.
        if (received.isNews()) {
            put(received.event());
        }
    }
}
