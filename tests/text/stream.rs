//! Streamed text against the whole: whatever the ids and wherever the cuts.

use proptest::collection;
use proptest::prelude::*;
use proptest::sample;
use qwen::text::{TextDelta, TextStream};

use crate::qwen;

/// All deltas of `pushes` joined, each checked on its own.
fn stream(stops: &[String], pushes: &[&[u8]]) -> TextDelta {
    let mut stream = TextStream::new(stops);
    let mut whole = TextDelta::default();
    let mut add = |delta: TextDelta| {
        assert_eq!(delta.text, String::from_utf8_lossy(&delta.bytes));
        assert!(!whole.stopped || delta == TextDelta { stopped: true, ..TextDelta::default() });
        whole.text += &delta.text;
        whole.bytes.extend(delta.bytes);
        whole.stopped = delta.stopped;
    };
    pushes.iter().for_each(|bytes| add(stream.push(bytes)));
    add(stream.finish());
    whole
}

/// The bytes before the first stop text to end (of those that end there, the longest).
fn before_stop<'a>(stops: &[String], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let ends = (1..=bytes.len()).map(|end| &bytes[..end]);
    let mut cuts = ends.filter_map(|read| {
        let met = stops.iter().filter(|stop| !stop.is_empty() && read.ends_with(stop.as_bytes()));
        Some(read.len() - met.map(String::len).max()?)
    });
    cuts.next().map(|cut| &bytes[..cut])
}

fn check(stops: &[String], pushes: &[&[u8]]) {
    let bytes = pushes.concat();
    let expected = before_stop(stops, &bytes);
    let whole = stream(stops, pushes);
    assert_eq!(whole.stopped, expected.is_some());
    assert_eq!(whole.bytes, expected.unwrap_or(&bytes));
    assert_eq!(whole.text, String::from_utf8_lossy(&whole.bytes));
}

fn cut_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

#[test]
fn stop_texts_split_at_every_pair_of_points() {
    let stops = ["Observation:", "\n\n你好", "<|stop|>"].map(String::from);
    for text in ["a Observation: b", "你\n\n\n你好x", "<<|stop|<|stop|>|>", "Observatio", "\n\n你"]
    {
        for first in 0..=text.len() {
            for second in first..=text.len() {
                check(&stops, &cut_at(text.as_bytes(), &[first, second]));
            }
        }
    }
}

#[test]
fn text_comes_as_soon_as_it_can() {
    let ids = qwen().encode("你好 Qwen，😀!", qwen::text::tokenizer::Specials::AsText);
    let mut stream = TextStream::new(&[]);
    for id in ids {
        let bytes = qwen().token_bytes(id).unwrap();
        let delta = stream.push(bytes);
        if std::str::from_utf8(bytes).is_ok() {
            assert_eq!(delta.bytes, bytes);
        }
    }
}

/// Bytes that are often nearly UTF-8.
fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        any::<char>().prop_map(|char| char.to_string().into_bytes()),
        any::<char>().prop_map(|char| {
            let mut bytes = char.to_string().into_bytes();
            bytes.pop();
            bytes
        }),
        any::<u8>().prop_map(|byte| vec![byte]),
        (0x80_u8..0xC0).prop_map(|byte| vec![byte]),
    ];
    collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_ids(ids in collection::vec(0_u32..151_900, 0..40)) {
        let pieces: Vec<&[u8]> = ids.iter().filter_map(|&id| qwen().token_bytes(id)).collect();
        let whole = stream(&[], &pieces);
        prop_assert_eq!(whole.bytes, qwen().decode_bytes(&ids, true));
    }

    #[test]
    fn any_bytes_cut_anywhere(
        bytes in nearly_text(),
        cuts in collection::vec(any::<usize>(), 0..9),
    ) {
        check(&[], &cut_at(&bytes, &cuts));
    }

    #[test]
    fn any_stops_cut_anywhere(
        stops in collection::vec("[ab你]{0,5}", 0..4),
        bytes in collection::vec(sample::select(b"aabb\xE4\xBD\xA0".to_vec()), 0..60),
        cuts in collection::vec(any::<usize>(), 0..9),
    ) {
        check(&stops, &cut_at(&bytes, &cuts));
    }
}
