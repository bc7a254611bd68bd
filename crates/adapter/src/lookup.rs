//! Rows of a table by index.

#[cfg(feature = "cpu")]
use burn::tensor::Device;
use burn::tensor::{Int, Tensor, module::embedding};

/// Rows of a table by index. Indices outside of it are caught here: Burn's kernels would read past
/// its end.
pub(crate) fn look_up(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    let rows = table.dims()[0];
    assert!(rows > 0 || ids.shape().num_elements() == 0, "an embedding of no tokens");
    #[cfg(feature = "cpu")]
    if ids.device().inner() == Device::flex() {
        let beyond = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= rows);
        if let Some(id) = ids.to_data().iter::<i64>().find(beyond) {
            panic!("token {id} is not in a vocabulary of {rows}");
        }
        return embedding(table, ids);
    }
    let inside = ids.clone().clamp(0, rows.saturating_sub(1) as i64);
    let found = embedding(table, inside.clone());
    let beyond = ids.not_equal(inside).unsqueeze_dim::<3>(2).expand(found.shape());
    found.mask_fill(beyond, f32::NAN)
}
