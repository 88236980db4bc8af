//! Ids of text and bytes of ids: known vectors, and the golden set made by Python `tiktoken`.

use std::path::Path;

use qwen::text::tokenizer::Specials::{AsText, Parse};

use crate::{qwen, with_tokens};

#[test]
fn known_vectors() {
    let vectors: [(&str, &[u32]); 22] = [
        ("", &[]),
        ("\n", &[198]),
        ("\n\n", &[271]),
        ("\n\n\n", &[1406]),
        ("system", &[8948]),
        ("user", &[872]),
        ("assistant", &[77091]),
        ("You are a helpful assistant.", &[2610, 525, 264, 10950, 17847, 13]),
        ("你好", &[108386]),
        ("2023", &[17, 15, 17, 18]),
        ("Observation:", &[37763, 367, 25]),
        ("Observation:\n", &[37763, 367, 510]),
        ("Human:", &[33975, 25]),
        ("Hello, world!", &[9707, 11, 1879, 0]),
        ("I'VE 12345 apples's", &[40, 6, 4491, 220, 16, 17, 18, 19, 20, 40676, 594]),
        ("  two  spaces\n\n\nend ", &[220, 1378, 220, 12621, 1406, 408, 220]),
        ("def f(x):\n    return x**2\n", &[750, 282, 2075, 982, 262, 470, 856, 334, 17, 198]),
        ("\t\tx", &[197, 10225]),
        ("e\u{301}te\u{301}", &[38783]),
        ("😀👍🏽", &[141334, 144349, 145375]),
        ("١٢٣ ½ Ⅷ", &[149, 94, 149, 95, 149, 96, 220, 26062, 220, 70467, 100]),
        ("a\u{A0}b\u{3000}c", &[64, 4102, 65, 22441, 66]),
    ];
    for (text, ids) in vectors {
        assert_eq!(qwen().encode(text, AsText), ids, "{text:?}");
        assert_eq!(qwen().encode(text, Parse), ids, "{text:?}");
    }
    let date = [
        108386, 3837, 99489, 6313, 100644, 20412, 17, 15, 17, 18, 7948, 16, 16, 9754, 18, 15, 8903,
        1773,
    ];
    assert_eq!(qwen().encode("你好，世界！今天是2023年11月30日。", AsText), date);
}

#[test]
fn special_forms_are_text_unless_parsed() {
    let vectors: [(&str, &[u32], &[u32]); 4] = [
        (
            "print(\"<|endoftext|>\")",
            &[1350, 9639, 91, 8691, 723, 427, 91, 82598],
            &[1350, 445, 151643, 899],
        ),
        ("<|im_start|>", &[27, 91, 318, 4906, 91, 29], &[151644]),
        ("<|im_end|>", &[27, 91, 318, 6213, 91, 29], &[151645]),
        ("<|extra_204|>", &[27, 91, 15460, 62, 17, 15, 19, 91, 29], &[151850]),
    ];
    for (text, as_text, parsed) in vectors {
        assert_eq!(qwen().encode(text, AsText), as_text, "{text:?}");
        assert_eq!(qwen().encode(text, Parse), parsed, "{text:?}");
    }
}

#[test]
fn golden_set() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_tokens.jsonl");
    let golden = std::fs::read_to_string(path).unwrap();
    let mut num_texts = 0;
    for line in golden.lines().skip(1) {
        let fields: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
        let text = fields[0].as_str().unwrap();
        let ids = |field: usize| -> Vec<u32> {
            serde_json::from_value(fields[field.min(fields.len() - 1)].clone()).unwrap()
        };
        assert_eq!(qwen().encode(text, AsText), ids(1), "{text:?}");
        assert_eq!(qwen().encode(text, Parse), ids(2), "{text:?} with specials parsed");
        num_texts += 1;
    }
    assert!(num_texts >= 5000, "{num_texts}");
}

#[test]
fn single_bytes_have_the_ids_of_gpt_2() {
    let order = (33..=126).chain(161..=172).chain(174..=255).chain(0..=32).chain(127..=160);
    for (byte, id) in order.chain([173]).zip(0..) {
        assert_eq!(qwen().token_bytes(id), Some([byte].as_slice()));
    }
}

#[test]
fn decode_is_total() {
    let qwen = qwen();
    assert_eq!(qwen.num_tokens(), 151_851);
    assert_eq!(qwen.decode_bytes(&[51461], false), b" \xE6\xA0");
    assert_eq!(qwen.decode_bytes(&[51461, 117], false), " 根".as_bytes());
    let ids = [151_644, 8948, 151_851, u32::MAX, 151_850];
    assert_eq!(qwen.decode_bytes(&ids, true), b"<|im_start|>system<|extra_204|>");
    assert_eq!(qwen.decode_bytes(&ids, false), b"system");
    assert_eq!(qwen.token_bytes(151_851), None);
    let tokens = (0..151_643).map(|id| qwen.token_bytes(id).unwrap());
    let not_text = tokens.filter(|bytes| std::str::from_utf8(bytes).is_err());
    assert_eq!(not_text.count(), 1448);
}

#[test]
fn special_ids() {
    let qwen = qwen();
    assert_eq!([qwen.end_of_text(), qwen.im_start(), qwen.im_end()], [151_643, 151_644, 151_645]);
    assert_eq!(qwen.special_id("<|extra_0|>"), Some(151_646));
    assert_eq!(qwen.special_id("system"), None);
    assert!(!qwen.is_special(151_642) && qwen.is_special(151_643));
    assert!(qwen.is_special(151_850) && !qwen.is_special(151_851));
}

#[test]
fn ids_follow_from_the_file() {
    // Tokens: a, b, ab. No other byte can be written.
    let tiny = with_tokens("ids_follow_from_the_file", &["YQ==", "Yg==", "YWI="]);
    assert_eq!(tiny.num_tokens(), 3 + 208);
    assert_eq!([tiny.end_of_text(), tiny.im_start(), tiny.im_end()], [3, 4, 5]);
    assert_eq!(tiny.encode("aab<|im_end|>", Parse), [0, 2, 5]);
    assert_eq!(tiny.encode("a你b c", AsText), [2]);
}
