//! Tiles of products by cooperative matrices.

/// What a cube computes: `m` rows and `n` columns, in steps of `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Units of the cube.
    pub units: u32,
}

impl Tile {
    const fn new(m: usize, n: usize, k: usize, units: u32) -> Self {
        Self { m, n, k, units }
    }

    /// Number of tiles that cover a matrix, down and across.
    pub fn counts(self, rows: usize, cols: usize) -> [usize; 2] {
        [rows.div_ceil(self.m), cols.div_ceil(self.n)]
    }
}

/// Tiles inside of the output, the fastest first.
pub(super) const TILES: [Tile; 7] = [
    Tile::new(128, 256, 64, 256),
    Tile::new(128, 128, 64, 256),
    Tile::new(128, 64, 64, 128),
    Tile::new(64, 32, 64, 128),
    Tile::new(32, 64, 64, 128),
    Tile::new(64, 16, 64, 128),
    Tile::new(16, 64, 64, 64),
];

/// The tile at the output's edges, where the driver checks every access.
pub(super) const EDGE: Tile = Tile::new(64, 64, 32, 128);

/// Number of cubes below which a large GPU idles, and smaller tiles are faster.
const CUBES: usize = 128;

/// Chooses the tile of a product: one without a rest of columns if there is one, and the largest that
/// keeps a GPU busy.
pub(super) fn tile(m: usize, n: usize, batch: usize) -> Option<Tile> {
    let fit = || TILES.iter().filter(|tile| tile.m <= m && tile.n <= n);
    let whole = || fit().filter(|tile| n.is_multiple_of(tile.n));
    let busy = |tile: &&Tile| batch * tile.counts(m, n).iter().product::<usize>() >= CUBES;
    let of_whole = whole().find(busy).or(whole().next_back());
    of_whole.or(fit().find(busy)).or(fit().next_back()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_keep_a_gpu_busy() {
        let chosen = |m, n, batch| tile(m, n, batch).map(|tile| (tile.m, tile.n));
        assert_eq!(chosen(8192, 14336, 1), Some((128, 256)));
        assert_eq!(chosen(8191, 1024, 1), Some((128, 256)), "the last rows are another launch");
        assert_eq!(chosen(8192, 151_936 - 128, 1), Some((128, 256)));
        assert_eq!(chosen(8192, 151_936, 1), Some((128, 128)), "no rest of columns");
        assert_eq!(chosen(1024, 1024, 1), Some((128, 64)), "few tiles are small");
        assert_eq!(chosen(1024, 1024, 32), Some((128, 256)), "of a batch they are many");
        assert_eq!(chosen(14336, 32, 1), Some((64, 32)));
        assert_eq!(chosen(16, 14336, 1), Some((16, 64)));
        assert_eq!(chosen(8192, 8, 1), None, "all of it is an edge");
        assert_eq!(chosen(15, 4096, 1), None);
    }
}
