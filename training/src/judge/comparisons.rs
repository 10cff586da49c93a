//! Which comparisons a row needs: all ordered pairs of its responses, identical ones once.

use std::collections::HashMap;

/// The distinct comparisons among the K responses of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparisons {
    /// `[K]`: for each response the number of its text among the distinct ones.
    texts: Vec<usize>,
    /// Ordered pairs of responses, each the first of its text. A text that occurs twice is also
    /// compared with itself.
    pairs: Vec<(usize, usize)>,
    /// Where the comparison of two distinct texts stands in `pairs`.
    places: HashMap<(usize, usize), usize>,
}

impl Comparisons {
    /// Of all ordered pairs i ≠ j of `responses`.
    pub fn new(responses: &[String]) -> Self {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut firsts = Vec::new();
        let mut texts = Vec::with_capacity(responses.len());
        for (i, response) in responses.iter().enumerate() {
            let text = *seen.entry(response).or_insert_with(|| {
                firsts.push(i);
                firsts.len() - 1
            });
            texts.push(text);
        }
        let (mut pairs, mut places) = (Vec::new(), HashMap::new());
        for (i, &a) in texts.iter().enumerate() {
            for (j, &b) in texts.iter().enumerate() {
                if i != j && !places.contains_key(&(a, b)) {
                    places.insert((a, b), pairs.len());
                    pairs.push((firsts[a], firsts[b]));
                }
            }
        }
        Comparisons {
            texts,
            pairs,
            places,
        }
    }

    /// The ordered pairs to compare, as indices of responses.
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs
    }

    /// `[K][K]` from one value a pair of `pairs()`; 0 on the diagonal.
    pub fn matrix(&self, values: &[f64]) -> Vec<Vec<f64>> {
        let count = self.texts.len();
        let value = |i: usize, j: usize| match i == j {
            true => 0.0,
            false => values[self.places[&(self.texts[i], self.texts[j])]],
        };
        (0..count)
            .map(|i| (0..count).map(|j| value(i, j)).collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn every_ordered_pair_once() {
        let plan = Comparisons::new(&texts(&["a", "b", "c"]));
        let mut pairs = plan.pairs().to_vec();
        pairs.sort();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
    }

    #[test]
    fn identical_responses_are_compared_once() {
        let all = texts(&["a", "b", "a", "a"]);
        let plan = Comparisons::new(&all);
        let mut pairs = plan.pairs().to_vec();
        pairs.sort();
        assert_eq!(pairs, [(0, 0), (0, 1), (1, 0)]);
        // As if each pair had been compared: the value depends on the two texts only.
        let code = |i: usize, j: usize| {
            f64::from(all[i].as_bytes()[0]) * 1000.0
                + all[j].len() as f64
                + f64::from(all[j].as_bytes()[0])
        };
        let values: Vec<f64> = plan.pairs().iter().map(|&(i, j)| code(i, j)).collect();
        let matrix = plan.matrix(&values);
        for (i, row) in matrix.iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let expected = if i == j { 0.0 } else { code(i, j) };
                assert_eq!(*found, expected, "{i} {j}");
            }
        }
    }

    #[test]
    fn one_response_needs_no_comparison() {
        assert!(Comparisons::new(&texts(&["a"])).pairs().is_empty());
        assert_eq!(Comparisons::new(&texts(&["a"])).matrix(&[]), [[0.0]]);
        assert!(Comparisons::new(&[]).pairs().is_empty());
    }
}
