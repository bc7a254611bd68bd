//! What kernels share on CubeCL's runtimes.

mod rows;

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

/// Units a cube, where a kernel has no reason for another number.
pub const UNITS: u32 = 256;

/// Units of a plane, where planes sum up.
pub const PLANE: u32 = 32;

/// The client of a device, if it is one of CubeCL's.
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

/// A contiguous tensor to write into: itself where nothing else holds its buffer, else a copy.
pub fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    // The rows of a copy can be padded, on CUDA.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// Items that a kernel can tell apart: its indices have 32 bits, and count units past the end, too.
pub const MAX_ITEMS: usize = u32::MAX as usize - (1 << 24);

/// Whether a kernel of this client may touch a tensor wherever its strides lead.
///
/// # Panics
/// If it is on another device, or has another dtype, or if its memory is smaller than that.
pub fn check(client: &Client, tensor: &CubeTensor, dtype: DType) {
    assert_eq!(tensor.client.service_id(), client.service_id(), "tensors on different devices");
    assert_eq!(tensor.dtype, dtype, "the dtype of a tensor for a kernel");
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    let last = shape.iter().zip(strides.iter()).map(|(dim, stride)| dim.saturating_sub(1) * stride);
    let extent = if shape.num_elements() == 0 { 0 } else { last.sum::<usize>() + 1 };
    let (bytes, found) = (extent * dtype.size(), tensor.handle.size_in_used());
    assert!(bytes as u64 <= found, "a tensor of {bytes} bytes in a buffer of {found}");
}

/// The same of a contiguous tensor with `len` elements.
///
/// # Panics
/// As [`check`], and if it is not contiguous or has another number of elements.
pub fn check_contiguous(client: &Client, tensor: &CubeTensor, dtype: DType, len: usize) {
    check(client, tensor, dtype);
    let shape = tensor.meta.shape();
    assert!(tensor.is_contiguous() && !tensor.meta.is_tiled(), "{shape:?} is not contiguous");
    assert_eq!(shape.num_elements(), len, "the elements of {shape:?} for a kernel");
}

/// A contiguous tensor's buffer as a kernel argument: `len` elements, in vectors of so many.
///
/// Every kernel gets its tensors through this, so that what it relies on has been checked.
///
/// # Panics
/// As [`check_contiguous`], and if they are no whole number of vectors, or more than [`MAX_ITEMS`].
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
    // SAFETY: the buffer has so many items of this dtype, as just checked.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), items) }
}

/// Whether a kernel can sum over planes of [`PLANE`] units.
pub fn has_planes(client: &Client) -> bool {
    let properties = client.properties();
    properties.features.plane.contains(Plane::Ops)
        && properties.hardware.plane_size_min == PLANE
        && properties.hardware.plane_size_max == PLANE
}

/// The widest vector of `dtype` that the device moves at once and that divides `width`.
pub fn vector_size(client: &Client, dtype: DType, width: usize) -> usize {
    let mut sizes = client.io_optimized_vector_sizes(dtype.size());
    sizes.find(|size| *size > 0 && width.is_multiple_of(*size)).unwrap_or(1)
}

/// A contiguous tensor for a kernel to fill, on the device of another one.
pub fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// What kernels call a dtype.
pub fn elem(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}
