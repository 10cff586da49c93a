//! The memory of Burn's CUDA tensors, for libraries of NVIDIA's.

use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;

/// A tensor's memory on the device, which is its own as long as this is there.
pub struct Buffer {
    /// Address of its first element.
    pub at: u64,
    pub tensor: CubeTensor<CudaRuntime>,
    _memory: Box<dyn Send>,
}

impl Buffer {
    /// Whatever was to be computed for the tensor has been launched when this returns.
    pub fn of(tensor: CubeTensor<CudaRuntime>) -> Result<Self, String> {
        let memory = tensor.client.get_resource(tensor.handle.clone());
        let memory = memory.map_err(|e| format!("{e:?}"))?;
        Ok(Self {
            at: memory.resource().ptr,
            tensor,
            _memory: Box::new(memory),
        })
    }
}
