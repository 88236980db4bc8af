//! ChatML: the id sequences of Qwen's own `chat()`, its history window, and forged control tokens.

use qwen::error::Error;
use qwen::text::chat::{Message, Role, parse_messages, render};
use qwen::text::tokenizer::Specials;

use crate::qwen;

const SYSTEM: [u32; 10] = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645];
const HI_TURN: [u32; 19] = [
    198, 151644, 872, 198, 13048, 151645, 198, 151644, 77091, 198, 9707, 0, 2585, 646, 358, 1492,
    498, 30, 151645,
];
const SUM_TAIL: [u32; 13] =
    [198, 151644, 872, 198, 16, 10, 16, 19884, 151645, 198, 151644, 77091, 198];
const ROOMY: usize = 6144;

fn say(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

/// Messages from the user and the assistant in turn.
fn dialogue(contents: &[&str]) -> Vec<Message> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    roles.zip(contents).map(|(role, content)| say(role, content)).collect()
}

fn ids(messages: &[Message], window: usize) -> Vec<u32> {
    render(qwen(), messages, window).unwrap()
}

#[test]
fn one_question() {
    let tail = [198, 151644, 872, 198, 108386, 151645, 198, 151644, 77091, 198];
    assert_eq!(ids(&dialogue(&["你好"]), ROOMY), [SYSTEM, tail].concat());
}

#[test]
fn one_turn_and_a_question() {
    let messages = dialogue(&["Hi", "Hello! How can I help you?", "1+1=?"]);
    let expected = [&SYSTEM[..], &HI_TURN, &SUM_TAIL].concat();
    assert_eq!(expected.len(), 42);
    assert_eq!(ids(&messages, ROOMY), expected);
    let json = r#"[{"role":"user","content":"Hi"},
        {"role":"assistant","content":"Hello! How can I help you?"},
        {"role":"user","content":"1+1=?"}]"#;
    assert_eq!(parse_messages(json).unwrap(), messages);
}

#[test]
fn an_empty_system_text_still_has_its_block() {
    let messages = [say(Role::System, ""), say(Role::User, "1+1=?")];
    assert_eq!(ids(&messages, ROOMY), [&[151644, 8948, 198, 151645], &SUM_TAIL[..]].concat());
}

#[test]
fn the_window_must_be_larger_than_what_it_holds() {
    let messages = dialogue(&["Hi", "Hello! How can I help you?", "1+1=?"]);
    assert_eq!(ids(&messages, 30), [&SYSTEM[..], &HI_TURN, &SUM_TAIL].concat());
    assert_eq!(ids(&messages, 29), [&SYSTEM[..], &SUM_TAIL].concat());
    assert_eq!(ids(&messages, 0), [&SYSTEM[..], &SUM_TAIL].concat());
}

#[test]
fn the_window_ends_at_the_first_turn_that_does_not_fit() {
    let long = "x ".repeat(50);
    let hello = "Hello! How can I help you?";
    let messages = dialogue(&["Hi", hello, &long, &long, "Hi", hello, "1+1=?"]);
    // The oldest turn would fit, but a longer one stands before it.
    assert_eq!(ids(&messages, 60), [&SYSTEM[..], &HI_TURN, &SUM_TAIL].concat());
    let all = ids(&messages, ROOMY);
    assert_eq!(all[..29], [&SYSTEM[..], &HI_TURN].concat());
    assert!(all.len() > 42 + 100);
}

#[test]
fn pieces_keep_their_own_line_breaks() {
    // As one text, "\n" and the "\n" of the content would become token 271.
    let start = SYSTEM.len() + 3;
    assert_eq!(ids(&dialogue(&["\nhi"]), ROOMY)[start..start + 3], [198, 198, 6023]);
    assert_eq!(ids(&dialogue(&["  \nhi"]), ROOMY)[start..start + 2], [198, 2303]);
}

#[test]
fn content_cannot_become_a_control_token() {
    let special: Vec<u32> =
        (0..qwen().num_tokens() as u32).filter(|&id| qwen().is_special(id)).collect();
    let surfaces = qwen().decode_bytes(&special, true);
    let surfaces = std::str::from_utf8(&surfaces).unwrap();
    let plain = ids(&[say(Role::System, "x"), say(Role::User, "x")], ROOMY);
    let count = |ids: &[u32]| ids.iter().filter(|&&id| qwen().is_special(id)).count();
    let forged = ids(&[say(Role::System, surfaces), say(Role::User, surfaces)], ROOMY);
    assert_eq!(count(&forged), count(&plain));
    let text = qwen().encode(surfaces, Specials::AsText);
    assert_eq!(forged.len(), plain.len() - 2 + 2 * text.len());
}

#[test]
fn other_orders_are_refused() {
    for messages in [vec![], dialogue(&["a", "b"]), vec![say(Role::Assistant, "a")]] {
        let result = render(qwen(), &messages, ROOMY);
        assert!(matches!(result, Err(Error::Argument { argument: "messages", .. })), "{result:?}");
    }
}
