//! Which rank keeps the state of which parameter.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The rank that keeps the state of each parameter, given their numbers of elements: from the largest
/// to the smallest, each goes to the rank that has the least. Where that leaves a choice, the first.
pub(super) fn owners(sizes: &[usize], world_size: i64) -> Vec<i64> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&index| Reverse(sizes[index]));
    let mut loads: BinaryHeap<_> = (0..world_size)
        .map(|rank| Reverse((0usize, rank)))
        .collect();
    let mut owners = vec![0; sizes.len()];
    for index in order {
        if let Some(mut least) = loads.peek_mut() {
            let Reverse((load, rank)) = &mut *least;
            owners[index] = *rank;
            *load = load.saturating_add(sizes[index]);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(sizes: &[usize], world_size: i64) -> Vec<usize> {
        let owners = owners(sizes, world_size);
        let of = |rank| {
            let all = owners.iter().zip(sizes);
            all.filter(|(owner, _)| **owner == rank)
                .map(|(_, s)| s)
                .sum()
        };
        (0..world_size).map(of).collect()
    }

    #[test]
    fn the_largest_goes_first_and_to_whom_has_least() {
        for (sizes, world_size, expected) in [
            (&[][..], 3, &[][..]),
            (&[5], 1, &[0]),
            (&[1, 9, 5, 5], 2, &[0, 0, 1, 1]),
            // Equal ones in their order, to ranks in theirs.
            (&[2, 2, 2, 2, 2], 2, &[0, 1, 0, 1, 0]),
            (&[4, 4], 4, &[0, 1]),
            (&[0, 0, 1], 2, &[1, 1, 0]),
        ] {
            assert_eq!(
                owners(sizes, world_size),
                expected,
                "{sizes:?} {world_size}"
            );
        }
        assert_eq!(owners(&[usize::MAX; 3], 2), [0, 1, 0]);
    }

    #[test]
    fn shares_differ_by_less_than_the_largest_parameter() {
        // Sizes as in a transformer: a few large ones, many small ones.
        let sizes: Vec<usize> = (0..500)
            .map(|i| [768, 768 * 768, 4 * 768 * 768][i % 3] + i)
            .collect();
        let total: usize = sizes.iter().sum();
        for world_size in [1, 2, 3, 4, 8, 64] {
            let loads = loads(&sizes, world_size);
            assert_eq!(loads.iter().sum::<usize>(), total);
            let (least, most) = (loads.iter().min(), loads.iter().max());
            let (least, most) = (*least.unwrap(), *most.unwrap());
            assert!(most - least <= 4 * 768 * 768 + 500, "{loads:?}");
            if world_size <= 8 {
                assert!(most * world_size as usize <= total * 101 / 100, "{loads:?}");
            }
        }
    }
}
