//! Diamonds in words, the error of guesses of their prices, and two baselines.

use serde::Deserialize;
use std::{collections::BTreeMap, error::Error, path::Path};

/// Line of the data.
#[derive(Deserialize)]
pub struct Diamond {
    /// `A 0.71 carat diamond, very good cut, color F, clarity VS2.\nPrice is $`
    pub prompt: String,
    /// `2,650`
    pub completion: String,
}

impl Diamond {
    pub fn read(path: &Path) -> Result<Vec<Self>, Box<dyn Error>> {
        let said = |error: &dyn Error| format!("{}: {error}", path.display());
        let text = burn_lora_io::read_to_string(path).map_err(|error| said(&error))?;
        let lines = text.lines().zip(1..).map(|(line, number)| {
            let diamond = serde_json::from_str(line);
            diamond.map_err(|error| format!("{}:{number}: {error}", path.display()))
        });
        let diamonds: Vec<Self> = lines.collect::<Result<_, _>>()?;
        match diamonds.as_slice() {
            [] => Err(format!("{}: it is empty", path.display()).into()),
            _ => Ok(diamonds),
        }
    }

    pub fn price(&self) -> f64 {
        dollars(&self.completion)
    }

    fn carat(&self) -> f64 {
        self.prompt.split(' ').nth(1).and_then(|carat| carat.parse().ok()).unwrap_or(0.0)
    }

    /// Cut, color and clarity.
    fn grades(&self) -> impl Iterator<Item = &str> {
        self.prompt.split('.').take(2).last().into_iter().flat_map(|it| it.split(", ").skip(1))
    }
}

/// Number of an answer; $0 if it is no number.
pub fn dollars(answer: &str) -> f64 {
    answer.trim().replace(',', "").parse().unwrap_or(0.0)
}

/// Mean absolute error of guesses.
pub fn error(diamonds: &[Diamond], guess: impl Fn(usize, &Diamond) -> f64) -> f64 {
    let errors = diamonds.iter().enumerate().map(|(i, it)| (guess(i, it) - it.price()).abs());
    errors.sum::<f64>() / diamonds.len() as f64
}

pub fn median(diamonds: &[Diamond]) -> f64 {
    let mut prices: Vec<f64> = diamonds.iter().map(Diamond::price).collect();
    prices.sort_by(f64::total_cmp);
    prices[prices.len() / 2]
}

/// Ridge regression on the carat and a variable of 0 and 1 for each grade: of the price, or of its
/// logarithm on that of the carat.
pub struct Ridge {
    logarithms: bool,
    grades: BTreeMap<String, usize>,
    weights: Vec<f64>,
}

impl Ridge {
    pub fn fit(diamonds: &[Diamond], logarithms: bool) -> Self {
        let mut grades = BTreeMap::new();
        for grade in diamonds.iter().flat_map(Diamond::grades) {
            let next = grades.len();
            grades.entry(grade.to_owned()).or_insert(next);
        }
        let mut ridge = Self { logarithms, grades, weights: vec![] };
        // (XᵀX + I) · w = Xᵀy, with the right side as a last column.
        let count = ridge.grades.len() + 2;
        let mut system = vec![vec![0.0; count + 1]; count];
        for (i, row) in system.iter_mut().enumerate() {
            row[i] = 1.0;
        }
        for diamond in diamonds {
            let mut x = ridge.variables(diamond);
            x.push(if logarithms { diamond.price().ln() } else { diamond.price() });
            for (row, a) in system.iter_mut().zip(&x) {
                row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b);
            }
        }
        ridge.weights = solve(system);
        ridge
    }

    pub fn guess(&self, diamond: &Diamond) -> f64 {
        let variables = self.variables(diamond);
        let y: f64 = variables.iter().zip(&self.weights).map(|(x, w)| x * w).sum();
        if self.logarithms { y.exp() } else { y }
    }

    fn variables(&self, diamond: &Diamond) -> Vec<f64> {
        let mut variables = vec![0.0; self.grades.len() + 2];
        for place in diamond.grades().filter_map(|grade| self.grades.get(grade)) {
            variables[*place] = 1.0;
        }
        let carat = diamond.carat();
        let carat = if self.logarithms { carat.ln() } else { carat };
        variables[self.grades.len()..].copy_from_slice(&[carat, 1.0]);
        variables
    }
}

/// Gauss and Jordan's elimination. The matrix is positive definite: no row has to be swapped.
fn solve(mut system: Vec<Vec<f64>>) -> Vec<f64> {
    for i in 0..system.len() {
        let pivot = system[i][i];
        system[i].iter_mut().for_each(|value| *value /= pivot);
        let row = system[i].clone();
        for (_, other) in system.iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let factor = other[i];
            other.iter_mut().zip(&row).for_each(|(value, a)| *value -= factor * a);
        }
    }
    system.iter().map(|row| row[row.len() - 1]).collect()
}
