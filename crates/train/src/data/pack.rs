//! Packing of several samples into a row.

use std::{cmp::Reverse, collections::BTreeMap};

/// Packs samples into rows of at most `room` tokens by best-fit decreasing: from the longest sample
/// to the shortest, each goes to the row that it fills most. No sample may be longer than a row.
pub(super) fn best_fit_decreasing(
    mut samples: Vec<usize>,
    length: impl Fn(usize) -> usize,
    room: usize,
) -> Vec<Vec<usize>> {
    samples.sort_by_key(|sample| Reverse(length(*sample)));
    let mut rows: Vec<Vec<usize>> = vec![];
    // Rows by the room left in them.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for sample in samples {
        let length = length(sample);
        let best = open.range(length..).next().map(|(left, _)| *left);
        let (row, left) = match best.and_then(|left| Some((pop(&mut open, left)?, left))) {
            Some(found) => found,
            None => {
                rows.push(vec![]);
                (rows.len() - 1, room)
            }
        };
        rows[row].push(sample);
        open.entry(left - length).or_default().push(row);
    }
    rows
}

fn pop(open: &mut BTreeMap<usize, Vec<usize>>, left: usize) -> Option<usize> {
    let rows = open.get_mut(&left)?;
    let row = rows.pop();
    if rows.is_empty() {
        open.remove(&left);
    }
    row
}
