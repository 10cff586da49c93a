//! cuBLASLt: NVIDIA's matrix products for linear layers on CUDA cards.

#[cfg(any(feature = "cuda", test))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "tested alone"))]
mod layout;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(feature = "cuda")]
mod products;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use sppo_training::config::Matmul;

use crate::errors::user;

/// Refuses cuBLASLt on a device that is no CUDA card.
pub fn refuse(matmul: Matmul) -> anyhow::Result<()> {
    match matmul {
        Matmul::Auto | Matmul::Cubecl => Ok(()),
        Matmul::Cublaslt => Err(user(
            "matmul \"cublaslt\": cuBLASLt is for CUDA cards; use --device cuda, or matmul \"cubecl\"",
        )),
    }
}

/// Lets linear layers on the card multiply by cuBLASLt, where that is wanted; a `UserError` where
/// the machine lacks it.
#[cfg(feature = "cuda")]
pub fn enable(matmul: Matmul, card: &burn_cuda::CudaDevice) -> anyhow::Result<()> {
    use std::sync::Arc;

    use cubecl::cuda::CudaRuntime;
    use sppo_model::ops::{linear_products, use_linear_products};

    // A command may run several actions on its card.
    if matmul != Matmul::Cublaslt || linear_products::<CudaRuntime>().is_some() {
        return Ok(());
    }
    let lacks = |error: String| user(format!("matmul \"cublaslt\": {error}"));
    let library = library::find(std::env::var_os(library::VARIABLE)).map_err(lacks)?;
    let shown = format!("{library:?}");
    let products = products::Products::new(library, card)
        .and_then(|products| products.check().map(|()| products))
        .map_err(|error| lacks(format!("{shown} cannot be used: {error}")))?;
    tracing::info!("{shown} multiplies for the linear layers");
    use_linear_products::<CudaRuntime>(Arc::new(products));
    Ok(())
}
