//! Kernels that sum over rows.

use super::{PLANE, UNITS, has_planes};
use cubecl::{calculate_cube_count_elemwise, client::Client, prelude::*};

/// Distribution of units over rows, for a kernel with row sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rows {
    /// Units per row.
    pub lanes: u32,
    /// `true` if planes of [`PLANE`] units sum up.
    pub plane: bool,
}

impl Rows {
    /// Chooses the distribution for rows of `steps` vectors.
    pub fn of(client: &Client, steps: usize) -> Self {
        let lanes = if steps > 4 * PLANE as usize { UNITS } else { PLANE };
        Self { lanes, plane: has_planes(client) }
    }

    pub fn cube_dim(self) -> CubeDim {
        CubeDim::new_2d(self.lanes, UNITS / self.lanes)
    }

    pub fn cube_count(self, client: &Client, rows: usize) -> CubeCount {
        calculate_cube_count_elemwise(client, rows * self.lanes as usize, self.cube_dim())
    }
}

/// Index of the row that this unit works on.
#[cube]
pub(crate) fn row_position(#[comptime] rows: Rows) -> usize {
    CUBE_POS * comptime![(UNITS / rows.lanes) as usize] + UNIT_POS_Y as usize
}

/// Sum, or maximum, of a value over the units of a row, returned to each of them. All units of a
/// cube must call it.
#[cube]
pub(crate) fn reduce(value: f32, #[comptime] rows: Rows, #[comptime] sum: bool) -> f32 {
    let mut total = value;
    if rows.plane {
        total = if sum { plane_sum(total) } else { plane_max(total) };
    }
    if comptime![!rows.plane || rows.lanes > PLANE] {
        // The rest after the planes: one value per plane.
        let stride = if rows.plane { PLANE as usize } else { 1usize };
        let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
        let at = UNIT_POS as usize;
        sync_cube();
        shared[at] = total;
        let levels = comptime![(rows.lanes as usize / stride).trailing_zeros()];
        #[unroll]
        for level in 0..levels {
            let distance = comptime![rows.lanes as usize >> (level + 1)];
            sync_cube();
            if (UNIT_POS_X as usize) < distance {
                let (a, b) = (shared[at], shared[at + distance]);
                shared[at] = if sum { a + b } else { max(a, b) };
            }
        }
        sync_cube();
        total = shared[at - UNIT_POS_X as usize];
    }
    total
}
