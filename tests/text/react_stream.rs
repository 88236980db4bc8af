//! Replies in the ReAct format, read while they are made: what is told, and that no cut changes it.

use proptest::collection;
use proptest::prelude::*;
use proptest::sample;
use qwen::text::{ArgumentsForm, Call, Piece, ReactStream, ReplyStart};

/// All that a reply told, joined.
#[derive(Debug, Default, PartialEq)]
struct Told {
    answer: String,
    thought: String,
    raw: String,
    call: Option<Call>,
    is_over: bool,
}

fn read(start: ReplyStart, pushes: &[&[u8]], is_whole: bool) -> Told {
    let mut stream = ReactStream::new(start);
    let mut pieces = Vec::new();
    let mut told = Told::default();
    for bytes in pushes {
        let is_over = stream.push(bytes, &mut pieces);
        assert!(is_over || !told.is_over, "what is over stays over");
        told.is_over = is_over;
    }
    stream.finish(is_whole, &mut pieces);
    let (mut answer, mut thought, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        assert_eq!(told.call, None, "a call is the last thing told");
        match piece {
            Piece::Answer(bytes) => answer.extend(bytes),
            Piece::Thought(bytes) => thought.extend(bytes),
            Piece::Arguments { bytes, .. } => raw.extend(bytes),
            Piece::Call(call) => told.call = Some(call),
        }
    }
    assert_eq!(stream.has_call(), told.call.is_some());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Told { answer: text(answer), thought: text(thought), raw: text(raw), ..told }
}

fn whole(text: &str) -> Told {
    read(ReplyStart::Reply, &[text.as_bytes()], true)
}

fn called(name: &str, arguments: &str, form: ArgumentsForm) -> Option<Call> {
    Some(Call { name: name.into(), arguments: arguments.into(), form })
}

#[test]
fn replies_are_read_as_the_published_server_reads_them() {
    let golden = crate::react::golden();
    let replies = golden["replies"].as_array().unwrap();
    assert_eq!(replies.len(), 10);
    for reply in replies {
        let told = whole(reply["text"].as_str().unwrap());
        let call = told.call.map(|call| serde_json::json!([call.name, call.arguments]));
        assert_eq!(call.unwrap_or_default(), reply["call"], "{reply}");
        // That server has one text for both: the thought of a call, or the answer.
        let is_call = !reply["call"].is_null();
        let said = if is_call { told.thought + &told.answer } else { told.answer };
        assert_eq!(said, reply["said"].as_str().unwrap().trim_end(), "{reply}");
        assert_eq!(told.is_over, reply["text"].as_str().unwrap().contains("Observation:"));
    }
}

#[test]
fn a_reply_begins_where_the_prompt_has_left_off() {
    let told = read(ReplyStart::Thought, &[b" so.\nFinal Answer: 5"], true);
    assert_eq!((told.thought.as_str(), told.answer.as_str()), ("so.", "5"));
    let told = read(ReplyStart::Name, &[b" find\nAction Input: {}"], true);
    assert_eq!(told.call, called("find", "{}", ArgumentsForm::Json));
    let told = read(ReplyStart::Arguments("find".into()), &[b" {}\nObservation:"], true);
    assert_eq!((told.call, told.is_over), (called("find", "{}", ArgumentsForm::Json), true));
    let told = read(ReplyStart::Answer, &[b" a\nAction: x\nAction Input: {}\n"], true);
    assert_eq!(told.answer, "a\nAction: x\nAction Input: {}\n");
    assert_eq!(
        whole("Action: find\nAction Input: []").call,
        called("find", "[]", ArgumentsForm::Json)
    );
    assert_eq!(whole("Final Answer: 5").answer, "5");
    assert_eq!(whole("\n Hello \n").answer, "\n Hello \n");
}

#[test]
fn a_reply_that_is_cut_tells_no_call_that_needs_mending() {
    let cases = [
        (r#"{"a": [1"#, called("f", r#"{"a": [1]}"#, ArgumentsForm::Mended)),
        (r#"{"a": 1}"#, called("f", r#"{"a": 1}"#, ArgumentsForm::Json)),
        ("find it", called("f", "find it", ArgumentsForm::Text)),
    ];
    for (arguments, complete) in cases {
        let text = format!("Thought: a\nAction: f\nAction Input: {arguments}");
        let cut = read(ReplyStart::Reply, &[text.as_bytes()], false);
        assert_eq!(cut.raw, arguments);
        let is_json = complete.as_ref().is_some_and(|call| call.form == ArgumentsForm::Json);
        assert_eq!(cut.call, complete.clone().filter(|_| is_json));
        assert_eq!(whole(&text).call, complete);
    }
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    for text in [
        "a\nAction: f",
        "a\nAction: f\ng\nAction Input: {}",
        "a\nAction:\nAction Input: {}",
        "a Action: f\n Action Input: {}",
        "a\nActio",
        "\nFinal Answe",
        "a\nFinal Answer: b",
        &format!("a\nAction: {}\nAction Input: {{}}", "x".repeat(2000)),
        &format!("a{}b\n\n", " \n".repeat(2000)),
    ] {
        let expected = Told { answer: text.into(), ..Told::default() };
        assert_eq!(whole(text), expected);
        let thought = format!("Thought: {text}");
        let told = whole(&thought);
        assert_eq!((told.call, told.is_over), (None, false));
    }
    let long = "x".repeat(2000);
    let told = whole(&format!("a\nAction: {long}\nAction: f\nAction Input: {{}}"));
    assert_eq!(told.answer, format!("a\nAction: {long}"));
    assert_eq!(told.call, called("f", "{}", ArgumentsForm::Json));
}

#[test]
fn text_comes_as_soon_as_it_can() {
    let mut stream = ReactStream::new(ReplyStart::Reply);
    let mut pieces = Vec::new();
    let mut text = |pushed: &str| {
        pieces.clear();
        stream.push(pushed.as_bytes(), &mut pieces);
        format!("{pieces:?}")
    };
    let answer = |text: &str| format!("{:?}", [Piece::Answer(text.into())]);
    assert_eq!(text("Hello"), answer("Hello"));
    assert_eq!(text(", you."), answer(", you."));
    assert_eq!(text("\nActi"), "[]");
    assert_eq!(text("vate"), answer("\nActivate"));
    assert_eq!(text("\nAction: find"), "[]");
    assert_eq!(text("\nAction Input: "), "[]");
    let arguments = [Piece::Arguments { name: "find".into(), bytes: b"{\"a\":".to_vec() }];
    assert_eq!(text("{\"a\": "), format!("{arguments:?}"));
}

/// Texts that are made of markers, parts of them, and little else.
fn reply() -> impl Strategy<Value = String> {
    let part = sample::select(vec![
        "Thought:",
        "Action:",
        "Action Input:",
        "Observation:",
        "Final Answer:",
        "\n",
        "\n",
        "\n",
        " ",
        "Action",
        "{\"a\": 1}",
        "find",
        "你",
        "x",
    ]);
    collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

fn start() -> impl Strategy<Value = ReplyStart> {
    sample::select(vec![
        ReplyStart::Reply,
        ReplyStart::Reply,
        ReplyStart::Thought,
        ReplyStart::Name,
        ReplyStart::Arguments("f".into()),
        ReplyStart::Answer,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_cut_changes_what_is_told(
        text in reply(),
        start in start(),
        is_whole in any::<bool>(),
        cuts in collection::vec(any::<sample::Index>(), 0..6),
    ) {
        let expected = read(start.clone(), &[text.as_bytes()], is_whole);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        prop_assert_eq!(&read(start.clone(), &bytes, is_whole), &expected);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> =
            cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&read(start, &parts, is_whole), &expected);
    }

    /// Every character that is no white space and no marker is told, once and in order.
    #[test]
    fn nothing_is_lost(text in reply()) {
        let told = whole(&text);
        let name = told.call.as_ref().map_or("", |call| &call.name);
        let shown: String = [&told.answer, &told.thought, name, &told.raw].into_iter()
            .flat_map(|text| text.chars()).collect();
        let is_word = |c: &char| "你x".contains(*c);
        let end = if told.is_over { text.find("\nObservation:")
            .filter(|_| !text.starts_with("Observation:")).unwrap_or(0) } else { text.len() };
        let mut all: Vec<char> = text[..end].chars().filter(is_word).collect();
        let mut seen: Vec<char> = shown.chars().filter(is_word).collect();
        all.sort_unstable();
        seen.sort_unstable();
        prop_assert_eq!(seen, all);
    }
}
