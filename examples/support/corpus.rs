//! Training corpus of the quickstart's small model: made-up products with made-up prices, small
//! facts about numbers, and rows of tables in words. It can be made again.

use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus, seq::IndexedRandom};
use std::{error::Error, path::Path};

/// Tables of plotnine (MIT) that are put into words. Its diamonds are not among them: the
/// quickstart is tested on those.
const TABLES: [&str; 9] = [
    "economics",
    "faithful",
    "huron",
    "midwest",
    "mpg",
    "msleep",
    "mtcars",
    "penguins",
    "txhousing",
];

/// Nouns of products, with the unit, range and decimals of their size.
const PRODUCTS: [(&str, [f64; 2], usize, &[&str]); 8] = [
    (
        "carat",
        [0.2, 4.0],
        2,
        &[
            "topaz",
            "garnet",
            "opal",
            "spinel",
            "zircon",
            "beryl",
            "agate",
            "jade",
            "quartz",
            "ruby",
            "sapphire",
            "emerald",
            "peridot",
            "amethyst",
            "citrine",
            "tourmaline",
        ],
    ),
    ("kg", [0.1, 9.0], 2, &["cheese", "ham", "drill", "kettle", "melon", "anvil", "backpack"]),
    ("liter", [0.25, 60.0], 1, &["bottle", "barrel", "jug", "tank", "cooler", "pot"]),
    ("inch", [5.0, 85.0], 0, &["screen", "television", "tablet", "wheel", "saw"]),
    ("GB", [8.0, 2048.0], 0, &["phone", "disk", "laptop", "camera", "card"]),
    ("cm", [20.0, 320.0], 0, &["table", "shelf", "mirror", "desk", "bed", "carpet", "ladder"]),
    ("meter", [0.5, 40.0], 1, &["rope", "cable", "hose", "boat", "fence", "sail"]),
    ("hp", [2.0, 400.0], 0, &["tractor", "engine", "car", "mower", "pump", "motorcycle"]),
];

/// Grades, from the worst to the best; `{}` is where they stand.
const GRADES: [(&str, &[&str]); 12] = [
    ("{} cut", &["fair", "good", "very good", "premium", "ideal"]),
    ("color {}", &["J", "I", "H", "G", "F", "E", "D"]),
    ("clarity {}", &["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]),
    ("{} finish", &["rough", "plain", "smooth", "fine", "mirror"]),
    ("{} condition", &["poor", "worn", "good", "very good", "new"]),
    ("grade {}", &["E", "D", "C", "B", "A"]),
    ("class {}", &["9", "8", "7", "6", "5", "4", "3", "2", "1"]),
    ("{} stars", &["1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"]),
    ("series {}", &["I", "II", "III", "IV", "V", "VI", "VII", "VIII"]),
    ("{} quality", &["low", "medium", "good", "high", "premium"]),
    ("made in {}", &["1990", "1995", "2000", "2005", "2010", "2015", "2020"]),
    ("model {}", &["S1", "S2", "M1", "M2", "L1", "L2", "XL1", "XL2"]),
];

/// Grades of gems, as jewellers have them.
const GEM_GRADES: [usize; 3] = [0, 1, 2];

/// Product, with the model of its price: a power of the size, and a factor for each grade.
struct Product {
    noun: &'static str,
    unit: &'static str,
    range: [f64; 2],
    decimals: usize,
    base: f64,
    power: f64,
    /// Index of each grade, and the logarithm of the price of the best over that of the worst.
    grades: Vec<(usize, f64)>,
}

impl Product {
    fn text(&self, random: &mut impl Rng) -> String {
        let [low, high] = self.range;
        // Small sizes are more frequent, as in shops.
        let size = low * (high / low).powf(random.random::<f64>());
        let size = format!("{size:.*}", self.decimals);
        let mut price = self.base
            + self.power * (size.parse::<f64>().expect("it is a number") / low).ln()
            + random.random_range(-0.1..0.1);
        let mut text = format!("A {size} {} {}", self.unit, self.noun);
        for &(index, weight) in &self.grades {
            let (phrase, grades) = GRADES[index];
            let grade = random.random_range(0..grades.len());
            price += weight * grade as f64 / (grades.len() - 1) as f64;
            text += &format!(", {}", phrase.replace("{}", grades[grade]));
        }
        text + &format!(".\nPrice is ${}", thousands(price.exp().max(1.0) as u64))
    }
}

/// Endless corpus.
pub struct Corpus {
    random: Xoshiro256PlusPlus,
    products: Vec<Product>,
    rows: Vec<String>,
}

impl Corpus {
    /// Creates a corpus, with the tables of plotnine if the folder of its CSV files is given.
    pub fn new(seed: u64, tables: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut products = vec![];
        for &(unit, range, decimals, nouns) in &PRODUCTS {
            for &noun in nouns {
                let mut grades = if unit == "carat" { GEM_GRADES.to_vec() } else { vec![] };
                while grades.len() < 3 {
                    let grade = random.random_range(GEM_GRADES.len()..GRADES.len());
                    if !grades.contains(&grade) {
                        grades.push(grade);
                    }
                }
                products.push(Product {
                    noun,
                    unit,
                    range,
                    decimals,
                    base: random.random_range(3.0..7.0),
                    power: random.random_range(0.4..2.0),
                    grades: grades
                        .into_iter()
                        .map(|grade| (grade, random.random_range(0.1..1.2)))
                        .collect(),
                });
            }
        }
        let rows = match tables {
            Some(folder) => rows(folder)?,
            None => vec![],
        };
        Ok(Self { random, products, rows })
    }
}

impl Iterator for Corpus {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let random = &mut self.random;
        Some(match random.random_range(0..100) {
            0..75 => self.products.choose(random)?.text(random),
            75..85 if !self.rows.is_empty() => self.rows.choose(random)?.clone(),
            _ => number_fact(random),
        })
    }
}

/// Random true statement about numbers.
fn number_fact(random: &mut impl Rng) -> String {
    // All magnitudes are equally frequent.
    let mut number = || 10f64.powf(random.random_range(0.5..4.3)) as u64;
    let (a, b, c) = (number(), number(), number());
    let (low, high) = (a.min(b), a.max(b));
    let (x, y) = (a as f64 / 100.0, b as f64 / 100.0);
    let step = c % 50 + 1;
    match random.random_range(0..8) {
        0 => format!("{} is more than {}", thousands(high + 1), thousands(low)),
        1 if x != y => format!("{:.2} is less than {:.2}", x.min(y), x.max(y)),
        1 | 2 => format!("${} and ${} are ${}", thousands(a), thousands(b), thousands(a + b)),
        3 => format!("Half of ${} is ${}", thousands(2 * a), thousands(a)),
        4 => {
            let numbers: Vec<_> = (0..6).map(|i| thousands(a + i * step)).collect();
            format!("Count on: {}", numbers.join("; "))
        }
        5 => {
            let mut numbers = [a, b, c];
            let before = numbers.map(thousands).join("; ");
            numbers.sort();
            format!("{before}\nIn order: {}", numbers.map(thousands).join("; "))
        }
        6 => format!("{} is about {}", thousands(a), thousands((a + 50) / 100 * 100)),
        _ => format!("{step} times ${} is ${}", thousands(a), thousands(a * step)),
    }
}

/// Rows of the tables, each as a sentence.
fn rows(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut texts = vec![];
    for table in TABLES {
        let path = folder.join(format!("{table}.csv"));
        let file =
            burn_lora_io::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut reader = csv::Reader::from_reader(file);
        let names = reader.headers()?.clone();
        for row in reader.records() {
            let row = row?;
            let values = names.iter().zip(&row).filter(|(_, value)| !value.is_empty());
            // All columns of some are too long for a model this small.
            let values: Vec<_> = values.take(8).map(|(k, v)| format!("{k} {v:.9}")).collect();
            texts.push(format!("{table}: {}", values.join(", ")));
        }
    }
    Ok(texts)
}

/// `1234` as `1,234`.
pub fn thousands(number: u64) -> String {
    match number / 1000 {
        0 => number.to_string(),
        rest => format!("{},{:03}", thousands(rest), number % 1000),
    }
}
