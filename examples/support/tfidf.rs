//! Ridge regression on the words of a text, weighted by TF-IDF: a baseline to guess a number from a
//! text, as with scikit-learn's `TfidfVectorizer` and `Ridge`.

use std::collections::{BTreeMap, BTreeSet};

/// Row of a sparse matrix: columns and their values.
type Sparse = Vec<(usize, f64)>;

/// Fitted ridge regression.
pub struct Ridge {
    /// `true` if pairs of neighbouring words are terms, too.
    pairs: bool,
    /// Column and IDF of each term.
    terms: BTreeMap<String, (usize, f64)>,
    weights: Vec<f64>,
    /// Mean of the targets: the guess for a text of unknown words.
    mean: f64,
}

impl Ridge {
    /// Minimises `|X·w - (y - mean of y)|² + penalty·|w|²`.
    pub fn fit(texts: &[&str], y: &[f64], pairs: bool, penalty: f64) -> Self {
        let mut counts = BTreeMap::<String, usize>::new();
        for text in texts {
            for term in terms(text, pairs).into_iter().collect::<BTreeSet<_>>() {
                *counts.entry(term).or_default() += 1;
            }
        }
        // A rare term tells more than one that is everywhere.
        let idf = |count: usize| ((1.0 + texts.len() as f64) / (1.0 + count as f64)).ln() + 1.0;
        let terms = counts.into_iter().enumerate();
        let terms = terms.map(|(column, (term, count))| (term, (column, idf(count)))).collect();
        let mean = y.iter().sum::<f64>() / y.len() as f64;
        let mut ridge = Self { pairs, terms, weights: vec![], mean };
        let rows: Vec<Sparse> = texts.iter().map(|text| ridge.row(text)).collect();
        let y: Vec<f64> = y.iter().map(|y| y - mean).collect();
        ridge.weights = solve(&rows, ridge.terms.len(), &y, penalty);
        ridge
    }

    pub fn guess(&self, text: &str) -> f64 {
        self.mean + dot(&self.row(text), &self.weights)
    }

    /// TF-IDF of a text: how often each term is in it, times the term's IDF, with a norm of 1.
    fn row(&self, text: &str) -> Sparse {
        let mut values = BTreeMap::<usize, f64>::new();
        for (column, idf) in terms(text, self.pairs).iter().filter_map(|term| self.terms.get(term))
        {
            *values.entry(*column).or_default() += idf;
        }
        let length = values.values().map(|value| value * value).sum::<f64>().sqrt();
        values.into_iter().map(|(column, value)| (column, value / length)).collect()
    }
}

/// Words of a text in lower case, and with `pairs` each with the next.
fn terms(text: &str, pairs: bool) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut terms: Vec<String> = words.map(str::to_lowercase).collect();
    if pairs {
        terms.extend(terms.windows(2).map(|pair| pair.join(" ")).collect::<Vec<_>>());
    }
    terms
}

/// Solves `(XᵀX + penalty·I)·w = Xᵀy` by conjugate gradients: the matrix is never made, only its
/// product with a vector.
fn solve(rows: &[Sparse], columns: usize, y: &[f64], penalty: f64) -> Vec<f64> {
    let times = |vector: &[f64]| {
        let projected: Vec<f64> = rows.iter().map(|row| dot(row, vector)).collect();
        let mut product = transposed_times(rows, columns, &projected);
        product.iter_mut().zip(vector).for_each(|(sum, value)| *sum += penalty * value);
        product
    };
    let square = |vector: &[f64]| vector.iter().map(|value| value * value).sum::<f64>();

    let mut weights = vec![0.0; columns];
    let mut residual = transposed_times(rows, columns, y);
    let mut direction = residual.clone();
    let mut size = square(&residual);
    let small = 1e-12 * size;
    // As many steps as columns in theory; far fewer are needed.
    for _ in 0..1000 {
        if size <= small {
            break;
        }
        let product = times(&direction);
        let along: f64 = direction.iter().zip(&product).map(|(a, b)| a * b).sum();
        let step = size / along;
        weights.iter_mut().zip(&direction).for_each(|(weight, d)| *weight += step * d);
        residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= step * p);
        let before = std::mem::replace(&mut size, square(&residual));
        direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + size / before * *d);
    }
    weights
}

fn dot(row: &Sparse, vector: &[f64]) -> f64 {
    row.iter().map(|(column, value)| value * vector[*column]).sum()
}

fn transposed_times(rows: &[Sparse], columns: usize, vector: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; columns];
    for (row, factor) in rows.iter().zip(vector) {
        row.iter().for_each(|(column, value)| product[*column] += value * factor);
    }
    product
}
