//! What is read bit by bit: replies with tools, text with stops. And saved sessions.

use std::sync::OnceLock;

use qwen::engine::session::Session;
use qwen::engine::{Engine, EngineOptions};
use qwen::text::chat::{Message, Role, Window, render_with};
use qwen::text::tokenizer::Specials;
use qwen::text::tools::{ToolChoice, Tools};
use qwen::text::{Piece, ReactStream, ReplyStart, TextStream};

use super::{tiny_model, tokenizer};

/// Cuts of `bytes` that must not matter: whole, in threes, one by one.
fn cuts(bytes: &[u8]) -> [Vec<&[u8]>; 3] {
    [vec![bytes], bytes.chunks(3).collect(), bytes.chunks(1).collect()]
}

/// Three lines: tools, tool choice, and (all the rest) a reply.
pub(crate) fn react(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let mut json = || serde_json::from_slice(parts.next().unwrap_or_default()).ok();
    let tools = json().and_then(|value| Tools::parse(&value).ok());
    let choice = json().and_then(|value| ToolChoice::parse(&value).ok());
    let reply = parts.next().unwrap_or_default();
    let choice = choice.unwrap_or(ToolChoice::Auto);
    if let Some(tools) = &tools {
        assert_eq!(&Tools::parse(tools.source()).expect("our own JSON"), tools);
    }
    assert_eq!(ToolChoice::parse(&choice.to_json()).expect("our own JSON"), choice);
    let mut start = ReplyStart::Reply;
    if choice.check(tools.as_ref()).is_ok() {
        let messages = [Message::new(Role::User, "hi")];
        let window = Window { history_tokens: 100, prompt_tokens: usize::MAX };
        let prompt = render_with(tokenizer(), &messages, tools.as_ref(), &choice, window);
        let prompt = prompt.expect("one question is in order");
        let specials = prompt.ids.iter().filter(|&&id| tokenizer().is_special(id)).count();
        assert_eq!(specials, 5, "two whole blocks and one that is open");
        start = prompt.react.unwrap_or(start);
    }
    for is_whole in [true, false] {
        let [whole, threes, ones] = cuts(reply).map(|cut| told(&start, &cut, is_whole));
        assert_eq!(whole, threes);
        assert_eq!(whole, ones);
    }
}

/// The pieces of a reply, neighbours of one kind joined.
fn told(start: &ReplyStart, pushes: &[&[u8]], is_whole: bool) -> Vec<Piece> {
    let mut stream = ReactStream::new(start.clone());
    let mut pieces = Vec::new();
    for bytes in pushes {
        stream.push(bytes, &mut pieces);
    }
    stream.finish(is_whole, &mut pieces);
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Answer(last)), Piece::Answer(bytes)) => last.extend(bytes),
            (Some(Piece::Thought(last)), Piece::Thought(bytes)) => last.extend(bytes),
            (
                Some(Piece::Arguments { name: of, bytes: last }),
                Piece::Arguments { name, bytes },
            ) if *of == name => last.extend(bytes),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

/// A line of stop texts, a NUL between them; then bytes, which are a reply, ids and text in turn.
pub(crate) fn text(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let stops = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let stops: Vec<String> = stops.split('\0').map(str::to_string).collect();
    let bytes = parts.next().unwrap_or_default();
    let shown = before_stop(&stops, bytes);
    for cut in cuts(bytes) {
        assert_eq!(streamed(&stops, &cut), shown);
    }
    // Ids near the vocabulary's end are control tokens and none at all.
    let ids: Vec<u32> =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) * pair.len() as u32).collect();
    let pieces: Vec<&[u8]> = ids.iter().filter_map(|&id| tokenizer().token_bytes(id)).collect();
    assert_eq!(streamed(&[], &pieces), tokenizer().decode_bytes(&ids, true));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let ids = tokenizer().encode(text, Specials::AsText);
        assert!(ids.iter().all(|&id| !tokenizer().is_special(id)));
        // Composed once, a text is what its tokens say.
        let said = tokenizer().decode_bytes(&ids, true);
        let again = std::str::from_utf8(&said).expect("whole characters");
        assert_eq!(tokenizer().encode(again, Specials::AsText), ids);
        let parsed = tokenizer().encode(text, Specials::Parse);
        assert_eq!(tokenizer().decode_bytes(&parsed, true), said);
    }
}

/// All deltas joined, each of them whole characters.
fn streamed(stops: &[String], pushes: &[&[u8]]) -> Vec<u8> {
    let mut stream = TextStream::new(stops);
    let mut deltas: Vec<_> = pushes.iter().map(|bytes| stream.push(bytes)).collect();
    deltas.push(stream.finish());
    let text: String = deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert!(deltas.iter().all(|delta| delta.text == String::from_utf8_lossy(&delta.bytes)));
    let bytes = deltas.into_iter().flat_map(|delta| delta.bytes).collect::<Vec<u8>>();
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    bytes
}

/// By the slow way: the bytes before the first stop text to end; of those that end there, the longest.
fn before_stop(stops: &[String], bytes: &[u8]) -> Vec<u8> {
    for end in 1..=bytes.len() {
        let ends = stops.iter().filter(|stop| !stop.is_empty());
        let met =
            ends.filter(|stop| bytes[..end].ends_with(stop.as_bytes())).map(String::len).max();
        if let Some(len) = met {
            return bytes[..end - len].to_vec();
        }
    }
    bytes.to_vec()
}

/// Bytes that are a saved session, or with an odd first byte the messages of one that is sound around
/// them. What is taken can be saved and taken again; what is refused changes nothing.
pub(crate) fn session(data: &[u8]) {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let Some((&choice, bytes)) = data.split_first() else { return };
    let engine = ENGINE.get_or_init(|| {
        let options = EngineOptions {
            backend: "cpu".to_string(),
            num_threads: 1,
            max_context_tokens: 64,
            kv_cache_tokens: 64,
            ..EngineOptions::default()
        };
        Engine::open(&tiny_model(), &options, None, &mut |_| true).expect("a sound model")
    });
    let session = Session::new(engine, Some("before".to_string()));
    let before = session.save().expect("a saved session");
    let saved = if choice % 2 == 1 { around(&before, bytes) } else { bytes.to_vec() };
    match session.load(&saved) {
        Ok(()) => {
            let again = session.save().expect("a saved session");
            let messages = session.messages().expect("nobody uses it");
            session.load(&again).expect("what was saved");
            assert_eq!(session.messages().expect("nobody uses it"), messages);
            assert_eq!(session.save().expect("a saved session"), again);
        }
        Err(_) => assert_eq!(session.save().expect("a saved session"), before),
    }
}

/// A saved session with these messages; header and checksum are as they should be.
fn around(saved: &[u8], messages: &[u8]) -> Vec<u8> {
    let mut bytes = saved[..24].to_vec();
    bytes.extend((messages.len() as u64).to_le_bytes());
    bytes.extend(messages);
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let checksum = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    bytes.extend(checksum.to_le_bytes());
    bytes
}
