//! JSON of callers: options, messages, formats of replies.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use qwen::capi::buffers::{qwen_buf, qwen_buf_data, qwen_buf_free, qwen_buf_len};
use qwen::capi::codes::{QWEN_E_PANIC, QWEN_OK};
use qwen::capi::options::{
    qwen_options, qwen_options_free, qwen_options_get_json, qwen_options_merge_json,
    qwen_options_new,
};
use qwen::grammar::{Format, Grammars};
use qwen::text::chat::{messages_json, parse_messages, render};

use super::tokenizer;

/// Options made from `json`: the status, and all of them as JSON.
fn merged(kind: &str, json: &[u8]) -> (i32, Vec<u8>) {
    let text = |bytes: &[u8]| (bytes.as_ptr().cast::<c_char>(), bytes.len() as u64);
    let mut options: MaybeUninit<*mut qwen_options> = MaybeUninit::uninit();
    let mut buf: MaybeUninit<*mut qwen_buf> = MaybeUninit::uninit();
    let (kind, kind_len) = text(kind.as_bytes());
    // SAFETY: every text is a live slice, every handle came from the library and is freed once.
    unsafe {
        assert_eq!(qwen_options_new(kind, kind_len, Some(&mut options), None), QWEN_OK);
        let options = options.assume_init();
        let (json, json_len) = text(json);
        let status = qwen_options_merge_json(options, json, json_len, None);
        assert_eq!(qwen_options_get_json(options, Some(&mut buf), None), QWEN_OK);
        let buf = buf.assume_init();
        let data = qwen_buf_data(buf).cast::<u8>();
        let told = std::slice::from_raw_parts(data, qwen_buf_len(buf) as usize).to_vec();
        qwen_buf_free(buf);
        qwen_options_free(options);
        (status, told)
    }
}

/// The first byte chooses the kind of options. What is taken can be told and taken again; of what is
/// refused, nothing is taken.
pub(crate) fn options(data: &[u8]) {
    let Some((&choice, json)) = data.split_first() else { return };
    let kind = ["engine", "generation", "session"][usize::from(choice) % 3];
    let (status, told) = merged(kind, json);
    assert_ne!(status, QWEN_E_PANIC);
    if status == QWEN_OK {
        assert_eq!(merged(kind, &told), (QWEN_OK, told));
    } else {
        assert_eq!(told, b"{}");
    }
}

/// Messages can be written and read again, and nothing in them becomes a control token.
pub(crate) fn chat(data: &[u8]) {
    let Some(messages) = std::str::from_utf8(data).ok().and_then(|json| parse_messages(json).ok())
    else {
        return;
    };
    assert_eq!(parse_messages(&messages_json(&messages)).expect("our own JSON"), messages);
    for window in [usize::MAX, 40] {
        let Ok(ids) = render(tokenizer(), &messages, window) else { return };
        let count = |wanted: u32| ids.iter().filter(|&&id| id == wanted).count();
        let (begun, ended) = (count(tokenizer().im_start()), count(tokenizer().im_end()));
        let special = ids.iter().filter(|&&id| tokenizer().is_special(id)).count();
        // The reply's beginning is open; a tool's result and its call share blocks.
        assert_eq!(begun, ended + 1);
        assert_eq!(special, begun + ended);
        assert!(begun <= messages.len() + 2, "{begun} blocks of {} messages", messages.len());
    }
}

/// A format is refused, or can be walked token by token.
pub(crate) fn schema(data: &[u8]) {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    let grammars = GRAMMARS.get_or_init(|| {
        Grammars::new(tokenizer().ordinary_tokens(), tokenizer().im_end()).expect("a vocabulary")
    });
    let Some(Ok(Some(format))) =
        serde_json::from_slice(data).ok().map(|value| Format::parse(&value))
    else {
        return;
    };
    assert_eq!(Format::parse(&format.to_json()).expect("our own JSON"), Some(format.clone()));
    let Ok(mut state) = grammars.begin(&format) else { return };
    let mut logits = vec![0.0; tokenizer().num_tokens() + 3];
    for step in 0..12 {
        if state.is_over() {
            break;
        }
        logits.fill(0.0);
        // What costs too much ends the request with an error.
        let (Ok(allowed), Ok(())) = (state.allowed_ids(), state.mask(&mut logits)) else { return };
        let finite = logits.iter().enumerate().filter(|(_, logit)| logit.is_finite());
        assert!(finite.map(|(id, _)| id as u32).eq(allowed.iter().copied()));
        let Some(&id) = allowed.get(step * 7 % allowed.len().max(1)) else { return };
        if state.accept(id).is_err() {
            return;
        }
    }
}
