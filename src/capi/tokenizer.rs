//! `qwen_tokenizer`: text to token ids and back, and a conversation to the model's prompt.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::Arc;

use serde_json::json;

use super::arguments::{Handle, Out, array, check_flags, free, handle, path, text};
use super::buffers::{qwen_buf, qwen_tokens};
use super::engine::qwen_engine;
use super::errors::qwen_error;
use super::guard::guard;
use crate::error::Error;
use crate::text::chat;
use crate::text::tokenizer::{MAX_TEXT_BYTES, Specials, Tokenizer};

/// For qwen_tokenizer_encode: special tokens' names in the text (such as `<|im_end|>`) become their
/// control ids. Never use it on text from strangers.
pub const QWEN_ENCODE_PARSE_SPECIALS: u32 = 1;

/// For qwen_tokenizer_decode: keep special tokens, by their names. They are left out otherwise.
pub const QWEN_DECODE_KEEP_SPECIALS: u32 = 1;
/// For qwen_tokenizer_decode: bytes that are no UTF-8 become U+FFFD. They stay as they are
/// otherwise, for a token can end in the middle of a character.
pub const QWEN_DECODE_LOSSY_TEXT: u32 = 2;

/// A checkpoint's vocabulary. Immutable: any thread may use it, and several at once. Free it with
/// qwen_tokenizer_free.
pub struct qwen_tokenizer(Arc<Tokenizer>);

impl Handle for qwen_tokenizer {
    type Inside = Arc<Tokenizer>;
    fn inside(&self) -> &Arc<Tokenizer> {
        &self.0
    }
}

/// Reads the vocabulary (qwen.tiktoken or tokenizer.json) in the folder `folder`; no weights are
/// needed. The caller frees `tokenizer`. Any thread.
///
/// Errors: QWEN_E_NOT_FOUND, QWEN_E_IO, QWEN_E_CORRUPT, with path and place in the detail.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_open(
    folder: *const c_char,
    folder_len: u64,
    tokenizer: Option<&mut MaybeUninit<*mut qwen_tokenizer>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_open", err, || {
        let tokenizer = Out::new("tokenizer", tokenizer)?;
        // SAFETY: the caller gives a path as the header says.
        let folder = unsafe { path("folder", folder, folder_len) }?;
        tokenizer.give(qwen_tokenizer(Arc::new(Tokenizer::open(&folder)?)));
        Ok(())
    })
}

/// The tokenizer of an engine; it may outlive the engine. The caller frees `tokenizer`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_of_engine(
    engine: *const qwen_engine,
    tokenizer: Option<&mut MaybeUninit<*mut qwen_tokenizer>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_of_engine", err, || {
        let tokenizer = Out::new("tokenizer", tokenizer)?;
        // SAFETY: the caller gives a live engine or NULL.
        let engine = unsafe { handle("engine", engine) }?;
        tokenizer.give(qwen_tokenizer(Arc::clone(engine.tokenizer())));
        Ok(())
    })
}

/// Turns text into token ids. `flags`: 0 or QWEN_ENCODE_PARSE_SPECIALS. The caller frees `tokens`.
/// Any thread.
///
/// Errors: QWEN_E_UTF8; QWEN_E_ARG for unknown flags or a text of more than 64 MiB.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_encode(
    tokenizer: *const qwen_tokenizer,
    text: *const c_char,
    text_len: u64,
    flags: u32,
    tokens: Option<&mut MaybeUninit<*mut qwen_tokens>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_encode", err, || {
        let tokens = Out::new("tokens", tokens)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        // SAFETY: the caller gives a text as the header says.
        let text = unsafe { self::text("text", text, text_len) }?;
        check_flags(flags, QWEN_ENCODE_PARSE_SPECIALS)?;
        if text.len() > MAX_TEXT_BYTES {
            let reason = format!("{} bytes; {MAX_TEXT_BYTES} are allowed", text.len());
            return Err(Error::Argument { argument: "text", reason });
        }
        let specials = if flags == 0 { Specials::AsText } else { Specials::Parse };
        tokens.give(qwen_tokens::new(tokenizer.encode(text, specials)));
        Ok(())
    })
}

/// Turns token ids into bytes; ids outside the vocabulary give none. `flags`: QWEN_DECODE_* added
/// up. The caller frees `bytes`. Any thread.
///
/// Errors: QWEN_E_ARG for unknown flags.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_decode(
    tokenizer: *const qwen_tokenizer,
    ids: *const u32,
    num_ids: u64,
    flags: u32,
    bytes: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_decode", err, || {
        let out = Out::new("bytes", bytes)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        // SAFETY: the caller gives `num_ids` ids.
        let ids = unsafe { array("ids", ids, num_ids) }?;
        check_flags(flags, QWEN_DECODE_KEEP_SPECIALS | QWEN_DECODE_LOSSY_TEXT)?;
        let bytes = tokenizer.decode_bytes(ids, flags & QWEN_DECODE_KEEP_SPECIALS != 0);
        let lossy = flags & QWEN_DECODE_LOSSY_TEXT != 0;
        out.give(if lossy {
            qwen_buf::new(String::from_utf8_lossy(&bytes).into_owned())
        } else {
            qwen_buf::new(bytes)
        });
        Ok(())
    })
}

/// The bytes of one token (a special token's name). The caller frees `bytes`. Any thread.
///
/// Errors: QWEN_E_ARG for an id outside the vocabulary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_token_bytes(
    tokenizer: *const qwen_tokenizer,
    id: u32,
    bytes: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_token_bytes", err, || {
        let out = Out::new("bytes", bytes)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        let bytes = tokenizer.token_bytes(id).ok_or_else(|| outside(id, &tokenizer))?;
        out.give(qwen_buf::new(bytes));
        Ok(())
    })
}

fn outside(id: u32, tokenizer: &Tokenizer) -> Error {
    let reason = format!("id {id} is outside the vocabulary of {}", tokenizer.num_tokens());
    Error::Argument { argument: "id", reason }
}

/// Turns a conversation, `[{"role": "system" | "user" | "assistant" | "tool", "content": "..."}...]`,
/// into the prompt that qwen_request_new_chat would give the model, were no tools offered. No content can become a control
/// token. Turns older than `max_window_size` tokens are left out; 0 keeps all. The caller frees
/// `tokens`. Any thread.
///
/// Errors: QWEN_E_ARG for JSON of another form; QWEN_E_UTF8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_render_chat_json(
    tokenizer: *const qwen_tokenizer,
    messages: *const c_char,
    messages_len: u64,
    max_window_size: u64,
    tokens: Option<&mut MaybeUninit<*mut qwen_tokens>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_render_chat_json", err, || {
        let tokens = Out::new("tokens", tokens)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        // SAFETY: the caller gives a text as the header says.
        let messages = chat::parse_messages(unsafe { text("messages", messages, messages_len) }?)?;
        let window = match max_window_size {
            0 => usize::MAX,
            tokens => usize::try_from(tokens).unwrap_or(usize::MAX),
        };
        tokens.give(qwen_tokens::new(chat::render(&tokenizer, &messages, window)?));
        Ok(())
    })
}

/// The tokenizer as a JSON object: num_tokens, and the ids end_of_text, im_start, im_end. The
/// caller frees `json`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_info_json(
    tokenizer: *const qwen_tokenizer,
    json: Option<&mut MaybeUninit<*mut qwen_buf>>,
    err: Option<&mut MaybeUninit<*mut qwen_error>>,
) -> i32 {
    guard("qwen_tokenizer_info_json", err, || {
        let json = Out::new("json", json)?;
        // SAFETY: the caller gives a live tokenizer or NULL.
        let tokenizer = unsafe { handle("tokenizer", tokenizer) }?;
        json.give(qwen_buf::new(info(&tokenizer)));
        Ok(())
    })
}

fn info(tokenizer: &Tokenizer) -> String {
    let info = json!({
        "num_tokens": tokenizer.num_tokens(),
        "end_of_text": tokenizer.end_of_text(),
        "im_start": tokenizer.im_start(),
        "im_end": tokenizer.im_end(),
    });
    info.to_string()
}

/// Frees a tokenizer. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qwen_tokenizer_free(tokenizer: *mut qwen_tokenizer) {
    // SAFETY: the caller gives NULL or a tokenizer it owns, and uses it no more.
    unsafe { free("qwen_tokenizer_free", tokenizer) }
}
