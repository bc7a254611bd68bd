//! The tensors of a weight that bitsandbytes has quantized.

use crate::{files, input};
use burn::tensor::{DType, FloatDType, TensorData};
use burn_lora::quant::{QuantConfig, codec::Packed};

const NAME: &str = "w.weight";

/// A list of tensors, `NAME DTYPE LENGTH` each, then their bytes one after the other.
pub(crate) fn run(data: &[u8]) {
    let [list, mut bytes] = files(data);
    let mut tensors = vec![];
    for line in String::from_utf8_lossy(list).lines().take(16) {
        let mut words = line.split(' ');
        let (name, dtype) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let dtype = match dtype {
            "F32" => DType::F32,
            "BF16" => DType::BF16,
            "F16" => DType::F16,
            _ => DType::U8,
        };
        let length: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        let (here, rest) = bytes.split_at(length.min(bytes.len()) / dtype.size() * dtype.size());
        bytes = rest;
        let shape = [here.len() / dtype.size()];
        tensors.push((name.to_owned(), TensorData::from_bytes_vec(here.to_vec(), shape, dtype)));
    }
    let find = |name: &str| {
        let part = name.strip_prefix(NAME)?;
        tensors.iter().find(|(found, _)| found == part).map(|(_, data)| data.clone())
    };
    if let Ok(packed) = Packed::from_bitsandbytes(NAME, find) {
        assert_eq!(packed.dequantize().len(), packed.layout.len());
        assert!(packed.to_bitsandbytes(NAME, FloatDType::F32).is_ok());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let weight: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
    let nf4 = QuantConfig::nf4();
    let seed = |config: QuantConfig| {
        let packed = Packed::quantize(&weight, [4, 64], &config).unwrap();
        let (mut list, mut bytes) = (String::new(), vec![]);
        for (name, data) in packed.to_bitsandbytes(NAME, FloatDType::F32).unwrap() {
            let part = name.strip_prefix(NAME).unwrap();
            let kind = if data.dtype() == DType::F32 { "F32" } else { "U8" };
            list += &format!("{part} {kind} {}\n", data.as_bytes().len());
            bytes.extend(data.as_bytes());
        }
        input([list.into_bytes(), bytes])
    };
    [nf4, nf4.double_quant(true), QuantConfig::fp4().block_size(32).double_quant(true)]
        .map(seed)
        .into()
}
