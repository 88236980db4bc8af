//! The sharding plan: every rank's slices together are the tensor, each element exactly once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use proptest::prelude::*;
use qwen::checkpoint::shard::{Slice, Split, check_world, slice};
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

proptest! {
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
