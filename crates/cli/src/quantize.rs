//! `burn-lora quantize`.

use crate::{options, program};
use burn::tensor::Distribution;
use burn_lora::{
    adapter::LayerKind,
    prelude::{
        Adaptable, Device, FloatDType, Gemm, Llama, Place, QuantConfig, StorageFormat, Tensor,
        WeightFormat,
    },
    progress::Work,
};
use clap::Args;
use serde_json::json;
use std::{error::Error, fmt::Write, path::PathBuf, sync::Arc};

/// Compares storage formats of weights: size, error, and error of a layer's product.
///
/// The weights are those of a model's linear layers between embedding and output head, which
/// --format packs in `train`, `generate` and `chat`; without a model they are random numbers from
/// N(0, 1).
#[derive(Args)]
pub struct Arguments {
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    model: Option<PathBuf>,
    /// Format to measure; may be given several times [default: all]
    #[arg(long, value_parser = options::format())]
    format: Vec<WeightFormat>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu
    #[arg(long, default_value = "auto")]
    device: Place,
}

/// A format with its name, its blocks, and what was found of it.
struct Row {
    name: String,
    block: String,
    storage: Arc<dyn StorageFormat>,
    bytes: usize,
    error: f64,
    product: f64,
}

/// Measures each format on each weight, and prints a table.
pub fn quantize(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let device = arguments.device.device()?;
    device.seed(42);
    let mut rows = rows(&arguments.format);
    let (mut weights, mut values, mut sizes, mut products) = (0, 0, 0.0, 0.0);
    let mut add = |weight: Tensor<2>| -> Result<(), Box<dyn Error>> {
        let [out, width] = weight.dims();
        let x = Tensor::<2>::random([64, width], Distribution::Normal(0.0, 1.0), &device);
        let y = Gemm::new().trans_rhs().run(x.clone(), weight.clone());
        for row in &mut rows {
            let stored = row.storage.store(weight.clone())?;
            row.bytes += stored.bytes().total();
            row.error += sum_abs(stored.dequantize(FloatDType::F32) - weight.clone());
            row.product += sum_abs(stored.matmul(x.clone()) - y.clone());
        }
        (weights, values) = (weights + 1, values + out * width);
        (sizes, products) = (sizes + sum_abs(weight), products + sum_abs(y));
        Ok(())
    };
    let what = match &arguments.model {
        None => {
            add(Tensor::random([1024, 1024], Distribution::Normal(0.0, 1.0), &device))?;
            "a random weight [1024, 1024]".to_owned()
        }
        Some(path) => {
            let found = linear_weights(path, &device)?;
            let work = Work::items("measuring weights", found.len());
            for weight in found {
                add(weight)?;
                work.advance(1);
            }
            drop(work);
            format!("{weights} weights of {}", path.display())
        }
    };
    if weights == 0 {
        return Err(format!("{what}: its linear layers are quantized already").into());
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let mut text = format!(
        "{what} on {device:?}: {:.2} MiB in float32\n\n{:<10} {:>9} {:>10} {:>10} {:>12} {:>14}\n",
        mib(4 * values),
        "format",
        "block",
        "bits",
        "MiB",
        "error",
        "error of x·W^T"
    );
    let mut formats = vec![];
    for row in rows {
        let bits = (8 * row.bytes) as f64 / values as f64;
        let [error, product] = [row.error / sizes, row.product / products];
        writeln!(
            text,
            "{:<10} {:>9} {bits:>10.3} {:>10.2} {:>11.2}% {:>13.2}%",
            row.name,
            row.block,
            mib(row.bytes),
            100.0 * error,
            100.0 * product,
        )?;
        formats.push(json!({
            "format": row.name,
            "block": row.block,
            "bits": bits,
            "bytes": row.bytes,
            "error": error,
            "product_error": product,
        }));
    }
    text += "\nErrors are mean magnitudes, in percent of those of the weights and of the products.";
    let value = json!({ "model": arguments.model, "weights": weights, "values": values, "formats": formats });
    program::result(text, &value);
    Ok(())
}

/// The formats to measure; those of 4 bits also in other blocks than the default ones.
fn rows(formats: &[WeightFormat]) -> Vec<Row> {
    let all = WeightFormat::ALL.into_iter().filter(|format| *format != WeightFormat::None);
    let formats = if formats.is_empty() { all.collect() } else { formats.to_vec() };
    let mut rows = vec![];
    for format in formats {
        let four_bits = |config: QuantConfig| {
            let name = if config.is_double_quant() { "+dq" } else { "" };
            let block = config.layout([1, 1]).block_size.to_string();
            (format!("{format}{name}"), block, Arc::new(config) as Arc<dyn StorageFormat>)
        };
        let found = match (format.four_bits(), format.storage()) {
            (Some(config), _) if config.is_double_quant() => vec![
                four_bits(config.double_quant(false)),
                four_bits(config),
                four_bits(config.block_size(128)),
            ],
            (Some(config), _) => vec![four_bits(config)],
            (None, Some(storage)) => {
                let block = if format == WeightFormat::Int8 { "row" } else { "128 x 128" };
                vec![(format.to_string(), block.to_owned(), storage)]
            }
            (None, None) => vec![],
        };
        rows.extend(found.into_iter().map(|(name, block, storage)| Row {
            name,
            block,
            storage,
            bytes: 0,
            error: 0.0,
            product: 0.0,
        }));
    }
    rows
}

/// Dense weights that a quantized model would pack.
fn linear_weights(path: &PathBuf, device: &Device) -> Result<Vec<Tensor<2>>, Box<dyn Error>> {
    let model = Llama::from_pretrained(path).dtype(FloatDType::F32).load(device)?;
    let layers = model.layers().into_iter().filter(|(path, layer)| {
        layer.kind() == LayerKind::Linear && path != model.output_head() && !layer.is_quantized()
    });
    Ok(layers.map(|(_, layer)| layer.weight().cast(FloatDType::F32)).collect())
}

fn sum_abs(tensor: Tensor<2>) -> f64 {
    f64::from(tensor.abs().sum_dim(1).sum().into_scalar::<f32>())
}
