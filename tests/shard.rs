//! The sharding plan: every rank's slices together are the tensor, each element exactly once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use proptest::prelude::*;
use qwen::checkpoint::shard::{Division, Slice, Split, check_world, slice};
use qwen::error::Error;

/// How often each element of a `[rows, cols]` matrix is held over all ranks.
fn coverage(slices: &[Slice], rows: usize, cols: usize) -> Vec<u32> {
    let mut counts = vec![0; rows * cols];
    for slice in slices {
        for row in slice.row_ranges.iter().cloned().flatten() {
            for col in slice.cols.clone() {
                counts[row * cols + col] += 1;
            }
        }
    }
    counts
}

fn all_ranks(split: Split, rows: usize, cols: usize, world: usize) -> Vec<Slice> {
    (0..world).map(|rank| slice(split, rows, cols, rank, world).unwrap()).collect()
}

fn layer_counts(num_layers: usize, rooms: &[u64]) -> Vec<usize> {
    match Division::of_layers(num_layers, rooms) {
        Ok(Division::Layers(counts)) => counts,
        other => panic!("{other:?}"),
    }
}

/// The least room for a layer, as a fraction.
fn least_room(rooms: &[u64], counts: &[usize]) -> f64 {
    let each = rooms.iter().zip(counts).map(|(room, count)| *room as f64 / *count as f64);
    each.fold(f64::INFINITY, f64::min)
}

/// Every way to give each of `ranks` one of `num_layers` or more.
fn all_counts(num_layers: usize, ranks: usize) -> Vec<Vec<usize>> {
    if ranks == 1 {
        return vec![vec![num_layers]];
    }
    let first = 1..=num_layers + 1 - ranks;
    first
        .flat_map(|count| {
            let rest = all_counts(num_layers - count, ranks - 1);
            rest.into_iter().map(move |rest| [vec![count], rest].concat())
        })
        .collect()
}

proptest! {
    /// No other division leaves more room where there is least.
    #[test]
    fn layers_go_where_there_is_room(
        num_layers in 4usize..11, rooms in proptest::collection::vec(1u64..2000, 1..5),
    ) {
        let counts = layer_counts(num_layers, &rooms);
        let best = all_counts(num_layers, rooms.len())
            .iter()
            .map(|counts| least_room(&rooms, counts))
            .fold(0.0, f64::max);
        prop_assert_eq!(counts.iter().sum::<usize>(), num_layers);
        prop_assert_eq!(least_room(&rooms, &counts), best);
    }

    /// Whole layers tile the model in order, and of what is not in layers each is with one rank.
    #[test]
    fn layers_of_all_ranks_are_the_model(
        num_layers in 8usize..100, rooms in proptest::collection::vec(0u64..u64::MAX, 1..9),
    ) {
        let (division, world) = (Division::of_layers(num_layers, &rooms).unwrap(), rooms.len());
        let shares: Vec<_> =
            (0..world).map(|rank| division.share(num_layers, rank, world)).collect();
        let layers: Vec<usize> = shares.iter().flat_map(|share| share.layers.clone()).collect();
        prop_assert!(layers.iter().copied().eq(0..num_layers));
        prop_assert!(shares.iter().all(|share| !share.layers.is_empty() && share.parts == 1));
        let firsts: Vec<bool> = shares.iter().map(|share| share.is_first()).collect();
        let lasts: Vec<bool> = shares.iter().rev().map(|share| share.is_last()).collect();
        prop_assert!(firsts[0] && firsts.iter().filter(|is_first| **is_first).count() == 1);
        prop_assert!(lasts == firsts);
        let mut cols = vec![0; world];
        cols[world - 1] = 1001;
        prop_assert_eq!(division.logits_cols(1001, world), cols);
    }

    /// The divided splits tile the tensor.
    #[test]
    fn slices_of_all_ranks_tile_the_tensor(
        world in 1usize..9, part in 1usize..7, other in 1usize..9, vocab in 0usize..70,
    ) {
        let even = world * part;
        let cases = [
            (Split::Column, even, other),
            (Split::ColumnThirds, 3 * even, other),
            (Split::Row, other, even),
            (Split::Vocab, vocab, other),
        ];
        for (split, rows, cols) in cases {
            let slices = all_ranks(split, rows, cols, world);
            prop_assert!(coverage(&slices, rows, cols).iter().all(|&n| n == 1), "{split:?}");
        }
        let whole = all_ranks(Split::Replicated, even, other, world);
        prop_assert!(coverage(&whole, even, other).iter().all(|&n| n as usize == world));
    }

    /// Vocabulary parts are in order and differ by one row at most.
    #[test]
    fn vocabulary_parts_are_balanced(rows in 0usize..1000, world in 1usize..17) {
        let sizes: Vec<usize> =
            all_ranks(Split::Vocab, rows, 4, world).iter().map(Slice::num_rows).collect();
        prop_assert!(sizes.is_sorted_by(|a, b| a >= b));
        prop_assert!(sizes[0] - sizes[world - 1] <= 1);
    }

    /// No input makes the plan panic; what does not divide is an error.
    #[test]
    fn any_extent_is_answered(
        rows in 0usize..200, cols in 0usize..200, rank in 0usize..10, world in 0usize..10,
    ) {
        for split in [Split::Column, Split::ColumnThirds, Split::Row, Split::Vocab] {
            if let Ok(part) = slice(split, rows, cols, rank, world) {
                prop_assert!(part.row_ranges.iter().all(|range| range.end <= rows));
                prop_assert!(part.cols.end <= cols);
            }
        }
    }

    /// Accepted worlds divide everything, and only they are accepted.
    #[test]
    fn accepted_worlds_divide(heads in 1usize..65, width in 1usize..300, world in 1usize..65) {
        let divides = heads % world == 0 && width % world == 0;
        prop_assert_eq!(check_world(heads, heads, width, world).is_ok(), divides);
    }
}

#[test]
fn layers_are_divided_evenly_among_equals_and_by_room_among_others() {
    assert_eq!(layer_counts(80, &[1; 3]), [27, 27, 26]);
    assert_eq!(layer_counts(5, &[0, 0]), [3, 2]);
    assert_eq!(layer_counts(80, &[30, 10]), [60, 20]);
    assert_eq!(layer_counts(3, &[u64::MAX, 1, 0]), [1, 1, 1], "one at least");
    assert_eq!(layer_counts(1, &[0]), [1]);
    let error = Division::of_layers(2, &[9; 3]).unwrap_err();
    assert!(matches!(&error, Error::Option { key, .. } if key == "tensor_parallel"), "{error}");
    assert!(error.to_string().contains("2 layers"), "{error}");
}

#[test]
fn divided_tensors_are_parts_of_all_layers() {
    let share = Division::Tensors.share(80, 1, 3);
    assert!(share.layers == (0..80) && (share.part, share.parts) == (1, 3));
    assert!(share.is_first() && share.is_last());
    assert_eq!(Division::Tensors.logits_cols(1001, 3), [334, 334, 333]);
}

#[test]
fn each_third_is_divided_by_itself() {
    let part = slice(Split::ColumnThirds, 24, 5, 1, 4).unwrap();
    assert_eq!(part.row_ranges, [2..4, 10..12, 18..20]);
    assert_eq!(part.cols, 0..5);
}

#[test]
fn a_world_of_one_holds_one_contiguous_range() {
    for split in [Split::Column, Split::ColumnThirds, Split::Row, Split::Vocab] {
        let part = slice(split, 24, 5, 0, 1).unwrap();
        let ranges = (part.row_ranges.len(), part.row_ranges[0].clone(), part.cols);
        assert_eq!(ranges, (1, 0..24, 0..5), "{split:?}");
    }
}

#[test]
fn impossible_worlds_name_those_that_work() {
    let error = check_world(40, 40, 13696, 3).unwrap_err();
    let Error::Option { key, reason } = &error else { panic!("{error:?}") };
    assert_eq!(key, "tensor_parallel");
    assert!(reason.contains("[1, 2, 4, 8]"), "{reason}");
    assert!(matches!(check_world(8, 8, 8, 0), Err(Error::Option { .. })));
}

#[test]
fn uneven_extents_are_refused() {
    for (split, rows, cols) in
        [(Split::Column, 7, 8), (Split::Row, 8, 7), (Split::ColumnThirds, 18, 8)]
    {
        let error = slice(split, rows, cols, 0, 4).unwrap_err();
        assert!(matches!(&error, Error::Option { key, .. } if key == "tensor_parallel"));
    }
    assert!(matches!(slice(Split::ColumnThirds, 16, 1, 0, 1), Err(Error::Option { .. })));
    assert!(matches!(slice(Split::Column, 8, 8, 4, 4), Err(Error::Argument { .. })));
}
