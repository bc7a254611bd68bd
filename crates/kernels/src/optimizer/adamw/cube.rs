//! Adam on CubeCL's runtimes: each value is read and written once.

use super::AdamWOps;
#[cfg(feature = "cuda")]
use crate::optimizer::batch::cuda::{Buffers, ManyKernel, checked};
use crate::{
    cube::{UNITS, buffer, own, vector_size},
    optimizer::{
        Batch,
        step::{Step, advance},
    },
    persist::persistent_like,
};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

#[cube(launch_unchecked)]
fn kernel<N: Size>(
    params: &[Vector<f32, N>],
    new_params: &mut [Vector<f32, N>],
    grads: &[Vector<f32, N>],
    factor: &[f32],
    ms: &mut [Vector<f32, N>],
    vs: &mut [Vector<f32, N>],
    count: usize,
    step: Step,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        let (old_param, grad, old_m, old_v) = (params[at], grads[at], ms[at], vs[at]);
        let mut new_param = Vector::<f32, N>::empty();
        let mut new_m = Vector::<f32, N>::empty();
        let mut new_v = Vector::<f32, N>::empty();
        #[unroll]
        for i in 0..N::value().comptime() {
            let grad = grad.extract(i) * factor[0];
            let (param, m, v) =
                advance(&step, old_param.extract(i), grad, old_m.extract(i), old_v.extract(i));
            new_param.insert(i, param);
            new_m.insert(i, m);
            new_v.insert(i, v);
        }
        new_params[at] = new_param;
        ms[at] = new_m;
        vs[at] = new_v;
    }
}

impl AdamWOps for CubeBackend {
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
        #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only CUDA collects"))]
        batch: Batch,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [m, v] = [m, v].map(own);
        let [param, grad] = [param, grad].map(into_contiguous);
        let (client, len) = (param.client.clone(), param.shape().num_elements());
        // Not in place: the model that is trained holds the old ones.
        let new = persistent_like(&param, param.shape(), DType::F32);
        #[cfg(feature = "cuda")]
        if crate::cuda::has_tensor_cores(&client) {
            let values = |tensor: &CubeTensor| checked(&client, tensor, DType::F32, len);
            let factor = checked(&client, &factor, DType::F32, 1);
            let read = [&param, &grad].map(values).to_vec();
            let written = [&new, &m, &v].map(values).to_vec();
            if let Some(vectors) = batch.add(Buffers { len, read, written }) {
                let kernel = ManyKernel { name: "adamw", chunk: 4096, blocks: usize::MAX };
                // SAFETY: the buffers are as long as the vectors, as checked.
                unsafe { kernel.launch(&client, &vectors, vec![factor], vec![], Some(step)) };
            }
            return (new, m, v);
        }
        let vector = vector_size(&client, DType::F32, len);
        let (count, cube_dim) = (len / vector, CubeDim::new_1d(UNITS));
        let values = |tensor: &CubeTensor| buffer(&client, tensor, DType::F32, len, vector);
        // SAFETY: the buffers are of one length; units below `count` stay inside, the others do nothing.
        unsafe {
            kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, count, cube_dim),
                cube_dim,
                vector,
                values(&param),
                values(&new),
                values(&grad),
                buffer(&client, &factor, DType::F32, 1, 1),
                values(&m),
                values(&v),
                count,
                step.launch_arg(),
            );
        }
        (new, m, v)
    }
}
