//! Helpers of kernels on CubeCL's runtimes.

mod columns;
mod row_dot;
mod rows;

pub use columns::copy_into;
pub(crate) use row_dot::row_dot;
pub(crate) use rows::{Rows, reduce, row_position};

use burn::{
    backend::{BackendTypes, Dispatch},
    tensor::{DType, Device, Shape},
};
use burn_cubecl::{
    kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor,
};
use cubecl::{
    client::Client,
    ir::{ElemType, features::Plane},
    prelude::BufferArg,
};

/// Units per cube, unless a kernel needs another number.
pub const UNITS: u32 = 256;

/// Units per plane, in kernels with plane sums.
pub const PLANE: u32 = 32;

/// Returns the client of a device, if it is one of CubeCL's.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_kernels::cube::client;
///
/// if let Some(client) = client(&Device::default()) {
///     println!("{:?}", client.properties().memory.max_memory());
/// }
/// ```
pub fn client(device: &Device) -> Option<Client> {
    type AnyDevice = <Dispatch as BackendTypes>::Device;
    match device.clone().inner().as_dispatch() {
        AnyDevice::Cube(device) => Some(device.client()),
        #[allow(unreachable_patterns, reason = "the only one, by features")]
        _ => None,
    }
}

/// Returns a contiguous tensor to write into: the tensor itself if its buffer is not shared, else a
/// copy.
pub fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    // On CUDA, the rows of a copy may be padded.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// Maximal number of items of a kernel argument: indices have 32 bits, and also count units past
/// the end.
pub const MAX_ITEMS: usize = u32::MAX as usize - (1 << 24);

/// Checks that a kernel of this client may access a tensor wherever its strides lead.
///
/// # Panics
/// If the tensor is on another device, has another dtype, or if its memory is too small for its
/// strides.
pub fn check(client: &Client, tensor: &CubeTensor, dtype: DType) {
    assert_eq!(tensor.client.service_id(), client.service_id(), "tensors on different devices");
    assert_eq!(tensor.dtype, dtype, "the dtype of a tensor for a kernel");
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let last = shape.iter().zip(strides.iter()).map(|(dim, stride)| dim.saturating_sub(1) * stride);
    let extent = if shape.num_elements() == 0 { 0 } else { last.sum::<usize>() + 1 };
    let (bytes, found) = (extent * dtype.size(), tensor.handle.size_in_used());
    assert!(bytes as u64 <= found, "a tensor of {bytes} bytes in a buffer of {found}");
}

/// Checks that a kernel of this client may access a contiguous tensor of `len` elements.
///
/// # Panics
/// As [`check`], and if the tensor is not contiguous or has another number of elements.
pub fn check_contiguous(client: &Client, tensor: &CubeTensor, dtype: DType, len: usize) {
    check(client, tensor, dtype);
    let shape = tensor.meta.shape();
    assert!(tensor.is_contiguous() && !tensor.meta.is_tiled(), "{shape:?} is not contiguous");
    assert_eq!(shape.num_elements(), len, "the elements of {shape:?} for a kernel");
}

/// Returns the buffer of a contiguous tensor of `len` elements as a kernel argument, in vectors of
/// `vector` elements.
///
/// Every kernel gets its tensors through this function, so that its requirements are checked.
///
/// # Panics
/// As [`check_contiguous`], and if `len` is no whole number of vectors or exceeds [`MAX_ITEMS`].
pub fn buffer(
    client: &Client,
    tensor: &CubeTensor,
    dtype: DType,
    len: usize,
    vector: usize,
) -> BufferArg {
    check_contiguous(client, tensor, dtype, len);
    assert!(len.is_multiple_of(vector), "{len} elements in vectors of {vector}");
    let items = len / vector;
    assert!(items <= MAX_ITEMS, "{len} elements are more than a kernel can index");
    // SAFETY: the buffer has this many items of this dtype, as just checked.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), items) }
}

/// Returns `true` if kernels can sum over planes of [`PLANE`] units.
pub fn has_planes(client: &Client) -> bool {
    let properties = client.properties();
    properties.features.plane.contains(Plane::Ops)
        && properties.hardware.plane_size_min == PLANE
        && properties.hardware.plane_size_max == PLANE
}

/// Returns the widest vector of `dtype` that the device moves at once and that divides `width`.
pub fn vector_size(client: &Client, dtype: DType, width: usize) -> usize {
    let mut sizes = client.io_optimized_vector_sizes(dtype.size());
    sizes.find(|size| *size > 0 && width.is_multiple_of(*size)).unwrap_or(1)
}

/// Creates a contiguous, uninitialized tensor on the device of another one.
pub fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// Returns the kernels' type of a dtype.
pub fn elem(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}
