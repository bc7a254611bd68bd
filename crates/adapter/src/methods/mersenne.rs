//! PyTorch's random generator on a CPU: MT19937, and its uniform float32 numbers.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// MT19937 (Matsumoto and Nishimura, 1998).
pub(super) struct Mersenne {
    state: [u32; SIZE],
    next: usize,
}

impl Mersenne {
    /// Creates the generator of `torch.Generator().manual_seed(seed)`, which takes the lower 32 bits.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; SIZE];
        for i in 1..SIZE {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    fn bits(&mut self) -> u32 {
        if self.next == SIZE {
            for i in 0..SIZE {
                let (upper, lower) = (self.state[i], self.state[(i + 1) % SIZE]);
                let y = (upper & 0x8000_0000) | (lower & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Draws from `[from, to)`, with 24 random bits.
    pub fn uniform(&mut self, from: f32, to: f32) -> f32 {
        let unit = (self.bits() & ((1 << 24) - 1)) as f32 / (1u32 << 24) as f32;
        unit.mul_add(to - from, from)
    }
}
