//! Wines in words, their prices, and the error of guesses of them.

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};
use std::{error::Error, path::Path};

/// Row of the table.
pub struct Wine {
    /// All that is known of the wine but the price.
    pub text: String,
    /// Price in dollars.
    pub price: f64,
}

/// Reads `wine_dot_com_prices.parquet`; see `scripts/fetch-wine.sh`.
pub fn read(path: &Path) -> Result<Vec<Wine>, Box<dyn Error>> {
    let wrong = |reason: String| format!("{}: {reason}", path.display());
    let file = burn_lora_io::open(path).map_err(|error| {
        wrong(format!("{error}; scripts/fetch-wine.sh FOLDER gets the table of wines"))
    })?;
    let reader = SerializedFileReader::new(file).map_err(|error| wrong(error.to_string()))?;
    let rows = reader.get_row_iter(None).map_err(|error| wrong(error.to_string()))?;
    let wines = rows.enumerate().map(|(number, row)| {
        let wine = row.map_err(|error| error.to_string()).and_then(|row| Wine::from_row(&row));
        wine.map_err(|reason| wrong(format!("row {}: {reason}", number + 1)).into())
    });
    wines.collect()
}

impl Wine {
    /// Reads a wine from a row. Left out are only `Year`, the last four characters of the name, and
    /// what is missing: 0, or nothing.
    fn from_row(row: &Row) -> Result<Self, String> {
        let field = |wanted: &str| {
            let found = row.get_column_iter().find(|(name, _)| *name == wanted);
            found.map(|(_, field)| field).ok_or(format!("no column `{wanted}`"))
        };
        let number = |name| match field(name)? {
            Field::Double(number) => Ok(*number),
            other => Err(format!("`{name}` is {other}, but must be a number")),
        };
        let words = |name| match field(name)? {
            Field::Str(text) => Ok(text.trim()),
            Field::Null => Ok(""),
            other => Err(format!("`{name}` is {other}, but must be text")),
        };
        let known = |words: &&str| !words.is_empty() && *words != "0";
        let kind = Some(words("wine_type")?).filter(known).unwrap_or("Wine");
        let mut text = format!("{}\n{kind}", words("Names")?);
        for (before, words) in [
            (" from ", words("Region")?),
            (", made of ", words("Grapes")?),
            (". Reviewed by ", words("rater")?),
        ] {
            if known(&words) {
                text += &format!("{before}{words}");
            }
        }
        text += ".";
        for (number, unit) in [
            (number("Capacity")?, "ml"),
            (number("ABV")?, "% of alcohol"),
            (number("Ratings")?, "of 5 stars"),
        ] {
            if number > 0.0 {
                text += &format!(" {number} {unit}.");
            }
        }
        // The table has natural logarithms.
        let price = number("Prices")?.exp();
        Ok(Self { text, price: (100.0 * price).round() / 100.0 })
    }
}

/// First number of an answer: 1234.5 of ` $1,234.50 a bottle`.
pub fn first_number(answer: &str) -> Option<f64> {
    let start = answer.find(|c: char| c.is_ascii_digit())?;
    let answer = &answer[start..];
    let mut number = String::new();
    for (place, c) in answer.char_indices() {
        let follows = |digits| {
            let rest = answer[place + 1..].bytes();
            rest.take_while(u8::is_ascii_digit).count() == digits
        };
        match c {
            '0'..='9' => number.push(c),
            '.' if !number.contains('.') => number.push(c),
            ',' if !number.contains('.') && follows(3) => {}
            _ => break,
        }
    }
    number.parse().ok()
}

/// Errors of guesses.
pub struct Score {
    /// Mean absolute error in dollars.
    pub mae: f64,
    /// Root of the mean squared difference of the logarithms of 1 + price: the error in proportion.
    pub rmsle: f64,
}

impl Score {
    pub fn new(wines: &[Wine], guesses: &[f64]) -> Self {
        let mean = |error: fn(f64, f64) -> f64| {
            let errors = wines.iter().zip(guesses).map(|(wine, guess)| error(wine.price, *guess));
            errors.sum::<f64>() / wines.len() as f64
        };
        Self {
            mae: mean(|price, guess| (price - guess).abs()),
            rmsle: mean(|price, guess| (price.ln_1p() - guess.ln_1p()).powi(2)).sqrt(),
        }
    }
}

pub fn median(wines: &[Wine]) -> f64 {
    let mut prices: Vec<f64> = wines.iter().map(|wine| wine.price).collect();
    prices.sort_by(f64::total_cmp);
    prices[prices.len() / 2]
}
