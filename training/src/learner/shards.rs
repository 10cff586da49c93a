//! Which rank keeps which part of the optimizer's state and of the summed gradients (ZeRO-2).
//!
//! A group of the table is flat: its trained parameters end to end, each cut into chunks of
//! [`GRAIN`] elements. A rank owns whole chunks that lie side by side, so sums over chunks are the
//! same for any number of ranks.

use std::ops::Range;

use sppo_model::llama::parameters::{Group, ParameterTable};
use sppo_model::ops::GRAIN;

/// The parts of all ranks.
#[derive(Clone, Debug)]
pub struct Shards {
    rank: usize,
    groups: Vec<ShardedGroup>,
}

/// A group of parameters and how it is cut.
#[derive(Clone, Debug)]
pub struct ShardedGroup {
    /// Which it is.
    pub group: Group,
    /// Its trained parameters by their places in the table, and their ranges in the flat group.
    pub parameters: Vec<(usize, Range<usize>)>,
    /// What each rank owns of the flat group.
    pub owned: Vec<Range<usize>>,
}

impl Shards {
    /// Of a table over `size` ranks, seen from `rank`.
    pub fn new(table: &ParameterTable, rank: usize, size: usize) -> Self {
        let mut groups: Vec<ShardedGroup> = Vec::new();
        for (index, parameter) in table.trained() {
            if groups.last().is_none_or(|g| g.group != parameter.group) {
                groups.push(ShardedGroup {
                    group: parameter.group,
                    parameters: Vec::new(),
                    owned: Vec::new(),
                });
            }
            if let Some(group) = groups.last_mut() {
                let start = group.len();
                let range = start..start + parameter.range.len();
                group.parameters.push((index, range));
            }
        }
        for group in &mut groups {
            group.owned = group.cut(size);
        }
        Self { rank, groups }
    }

    /// All groups with something that is trained, in the order of the table.
    pub fn groups(&self) -> &[ShardedGroup] {
        &self.groups
    }

    /// One of them.
    pub fn group(&self, group: Group) -> Option<&ShardedGroup> {
        self.groups.iter().find(|g| g.group == group)
    }

    /// What this rank owns of a trained parameter, by its place in the table; empty where nothing.
    pub fn own(&self, index: usize) -> Range<usize> {
        let found = self.groups.iter().find_map(|group| {
            let parameter = group.parameters.iter().find(|(i, _)| *i == index)?;
            Some(group.part_of(&parameter.1, self.rank))
        });
        found.unwrap_or(0..0)
    }
}

impl ShardedGroup {
    /// Elements of the flat group.
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |(_, range)| range.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements that each rank owns.
    pub fn sizes(&self) -> Vec<usize> {
        self.owned.iter().map(Range::len).collect()
    }

    /// What `rank` owns of each parameter: its place in the table and a range of its elements, those
    /// with some only.
    pub fn parts(&self, rank: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let parts = self.parameters.iter();
        let parts = parts.map(move |(index, range)| (*index, self.part_of(range, rank)));
        parts.filter(|(_, part)| !part.is_empty())
    }

    /// What `rank` owns of the parameter that lies at `range` of the group.
    pub(super) fn part_of(&self, range: &Range<usize>, rank: usize) -> Range<usize> {
        let owned = &self.owned[rank];
        let (start, end) = (owned.start.max(range.start), owned.end.min(range.end));
        match start < end {
            true => start - range.start..end - range.start,
            false => 0..0,
        }
    }

    /// Equal parts, each end moved up to the next end of a chunk.
    fn cut(&self, size: usize) -> Vec<Range<usize>> {
        let ends = (0..=size).map(|rank| self.next_end((self.len() * rank).div_ceil(size)));
        let ends: Vec<usize> = ends.collect();
        ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    /// The first end of a chunk at or behind a place.
    fn next_end(&self, place: usize) -> usize {
        let within = self.parameters.iter().find(|(_, range)| place <= range.end);
        let Some((_, range)) = within.filter(|_| place > 0) else {
            return 0;
        };
        let behind = place - range.start;
        (range.start + behind.next_multiple_of(GRAIN)).min(range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::published;

    #[test]
    fn shards_are_whole_chunks_and_of_equal_size() {
        let table = ParameterTable::new(&published("meta-llama/Meta-Llama-3-8B").unwrap());
        for size in [1, 2, 3, 4, 8, 32] {
            let shards = Shards::new(&table, size - 1, size);
            let trained: usize = shards.groups().iter().map(ShardedGroup::len).sum();
            assert_eq!(trained, table.count_trained());
            for group in shards.groups() {
                let mut next = 0;
                for owned in &group.owned {
                    assert_eq!(owned.start, next);
                    next = owned.end;
                    assert!(owned.len() <= group.len() / size + GRAIN);
                    let starts = group.parameters.iter().map(|(_, range)| range);
                    let chunk = |range: &Range<usize>| {
                        range.contains(&owned.start)
                            && (owned.start - range.start).is_multiple_of(GRAIN)
                    };
                    assert!(owned.is_empty() || starts.into_iter().any(chunk));
                }
                assert_eq!(next, group.len());
            }
            for (index, parameter) in table.trained() {
                let parts = (0..size).map(|rank| Shards::new(&table, rank, size).own(index));
                if index < 4 {
                    let covered: usize = parts.map(|part| part.len()).sum();
                    assert_eq!(covered, parameter.range.len());
                }
            }
        }
    }

    #[test]
    fn more_ranks_than_chunks_leave_some_without() {
        let config = published("meta-llama/Meta-Llama-3-8B").unwrap();
        let adapters = ParameterTable::with_adapters(&config, 1, |i, layer| {
            i == 0 && layer == "self_attn.q_proj"
        });
        let shards = Shards::new(&adapters, 0, 4);
        let [group] = shards.groups() else {
            panic!("one block has adapters");
        };
        // A and B of 4096 elements each.
        assert_eq!(group.owned, [0..4096, 4096..4096, 4096..8192, 8192..8192]);
    }
}
