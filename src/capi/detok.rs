//! `qwen_detok`: token ids one after another to text, in whole characters.

use std::mem::MaybeUninit;
use std::sync::Arc;

use parking_lot::Mutex;

use super::arguments::{Handle, Out, array, free, handle};
use super::buffers::qwen_buf;
use super::errors::qwen_error;
use super::guard::guard;
use super::tokenizer::qwen_tokenizer;
use crate::text::TextStream;
use crate::text::tokenizer::Tokenizer;

/// The text of a sequence of ids, for callers that stream ids themselves. It keeps back a character
/// whose last byte is still to come. Any thread may use it; calls take turns. Free it with
/// qwen_detok_free.
pub struct qwen_detok(Arc<Detok>);

/// The inside of `qwen_detok`.
pub(super) struct Detok {
    tokenizer: Arc<Tokenizer>,
    stream: Mutex<TextStream>,
}

impl Handle for qwen_detok {
    type Inside = Arc<Detok>;
    fn inside(&self) -> &Arc<Detok> {
        &self.0
    }
}

/// Begins a text. The caller frees `detok`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_detok_new(
    tokenizer: *const qwen_tokenizer,
    detok: Option<&mut MaybeUninit<*mut qwen_detok>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_detok_new", err, || {
        let detok = Out::new("detok", detok)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        let stream = Mutex::new(TextStream::new(&[]));
        detok.give(qwen_detok(Arc::new(Detok { tokenizer, stream })));
        Ok(())
    })
}

/// Takes the next ids and gives the text that is now complete: whole UTF-8 characters, perhaps
/// none; bytes that are no UTF-8 as U+FFFD. Special tokens give no text. The caller frees `text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_detok_push(
    detok: *mut qwen_detok,
    ids: *const u32,
    num_ids: u64,
    text: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_detok_push", err, || {
        let text = Out::new("text", text)?;
        // SAFETY: the caller gives a live detokeniser or NULL.
        let detok = unsafe { handle("detok", detok) }?;
        // SAFETY: the caller gives `num_ids` ids.
        let bytes = detok.tokenizer.decode_bytes(unsafe { array("ids", ids, num_ids) }?, false);
        text.give(qwen_buf::new(detok.stream.lock().push(&bytes).text));
        Ok(())
    })
}

/// Ends the text and gives what was kept back: U+FFFD for a character that never became complete.
/// The next push begins another text. The caller frees `text`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_detok_finish(
    detok: *mut qwen_detok,
    text: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_detok_finish", err, || {
        let text = Out::new("text", text)?;
        // SAFETY: the caller gives a live detokeniser or NULL.
        let detok = unsafe { handle("detok", detok) }?;
        text.give(qwen_buf::new(detok.stream.lock().finish().text));
        Ok(())
    })
}

/// Frees a detokeniser. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_detok_free(detok: *mut qwen_detok) {
    // SAFETY: the caller gives NULL or a detokeniser it owns, and uses it no more.
    unsafe { free("qwen_detok_free", detok) }
}
