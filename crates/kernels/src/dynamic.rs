//! bitsandbytes' 8-bit format: blocks of 256 values, each a map entry times the block's absmax.

/// Number of values that share an absmax.
pub const BLOCK: usize = 256;

/// Number of codes per word, the first in its lowest byte.
pub const CODES: usize = 4;

/// Returns bitsandbytes' `create_dynamic_map`, ascending: 0, 1, and for each power of ten from
/// `10^-6` to 1 the midpoints of `2^i` equal parts of `[0.1, 1]` in both signs, or unsigned of
/// `2^(i + 1)` parts.
pub fn map(signed: bool) -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for i in 0..7 {
        let power = 10f64.powi(i - 6) as f32;
        let bounds = linspace(1 << (i + i32::from(!signed)));
        for bound in bounds.windows(2) {
            let value = power * ((bound[0] + bound[1]) / 2.0);
            map.push(value);
            if signed {
                map.push(-value);
            }
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// Returns the signed [`map`] followed by the unsigned one.
pub fn maps() -> Vec<f32> {
    [map(true), map(false)].concat()
}

/// The bounds of `parts` equal parts of `[0.1, 1]`, computed from each end as in torch: another
/// rounding would differ in the last bits.
fn linspace(parts: usize) -> Vec<f32> {
    let step = (1.0 - 0.1f32) / parts as f32;
    let bound = |i| {
        if i < parts.div_ceil(2) {
            step.mul_add(i as f32, 0.1)
        } else {
            (-step).mul_add((parts - i) as f32, 1.0)
        }
    };
    (0..=parts).map(bound).collect()
}

/// Returns the index of the entry of an ascending `map` that is nearest to `value`; of two equally
/// near ones the lower, or with `ties_to_even` the one with the even index.
#[inline]
pub fn nearest(map: &[f32], value: f32, ties_to_even: bool) -> u8 {
    let below = map.partition_point(|&entry| entry < value).max(1) - 1;
    let Some(&above) = map.get(below + 1) else { return below as u8 };
    let middle = (map[below] + above) * 0.5;
    let up = value > middle || (ties_to_even && value == middle && below % 2 == 1);
    (below + usize::from(up)) as u8
}

/// A block of values in its stored form.
#[cfg(feature = "cpu")]
pub(crate) struct Block<'a> {
    pub words: &'a mut [u32],
    pub absmax: &'a mut f32,
    pub map: &'a [f32],
}

#[cfg(feature = "cpu")]
impl Block<'_> {
    /// Decodes the values; those past the end of the last block have no meaning.
    pub fn decode(&self) -> [f32; BLOCK] {
        let mut values = [0.0; BLOCK];
        for (values, word) in values.chunks_exact_mut(CODES).zip(&*self.words) {
            for (value, code) in values.iter_mut().zip(word.to_le_bytes()) {
                *value = self.map[usize::from(code)] * *self.absmax;
            }
        }
        values
    }

    /// Replaces the values by new ones.
    pub fn encode(&mut self, values: &[f32]) {
        *self.absmax = values.iter().fold(0.0, |most, value| f32::max(most, value.abs()));
        let scale = self.absmax.max(f32::MIN_POSITIVE);
        for (word, values) in self.words.iter_mut().zip(values.chunks(CODES)) {
            let mut codes = [0; CODES];
            for (code, value) in codes.iter_mut().zip(values) {
                *code = nearest(self.map, value / scale, false);
            }
            *word = u32::from_le_bytes(codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_those_of_bitsandbytes() {
        let bytes = std::fs::read("../../testdata/optim.safetensors").unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, signed) in [("map.signed", true), ("map.unsigned", false)] {
            let expected =
                bytemuck::pod_collect_to_vec::<u8, f32>(golden.tensor(name).unwrap().data());
            assert_eq!(map(signed), expected, "{name}");
        }
    }

    #[test]
    fn nearest_finds_the_nearest() {
        for map in [map(true), map(false)] {
            for i in -1010..=1010 {
                let value = i as f32 / 1000.0;
                let best = map.iter().map(|m| (m - value).abs()).fold(f32::INFINITY, f32::min);
                let found = map[usize::from(nearest(&map, value, false))];
                assert!((found - value).abs() <= best + 1e-7, "{value}: {found}");
            }
        }
        let find = |value| nearest(&map(true), value, false);
        assert_eq!([-1.0, 0.0, 1.0].map(find), [0, 127, 255]);
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn a_block_of_zeros_stays_zero() {
        let map = map(true);
        let (mut words, mut absmax) = (vec![0; 2], 3.0);
        let mut block = Block { words: &mut words, absmax: &mut absmax, map: &map };
        block.encode(&[0.0; 7]);
        assert_eq!(block.decode()[..7], [0.0; 7]);
    }
}
