//! Matrix products by cublasLt: what our own are measured against, found at run time as the driver is.

use std::{ffi::c_void, sync::Arc};

use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use half::bf16;

use super::{
    device::Device,
    driver::Cuda,
    memory::{Memory, View, ViewMut},
};
use crate::Error;

/// What NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// `cublasOperation_t`'s value for a transposed operand, which cudarc leaves out here.
const CUBLAS_OP_T: i32 = 1;

/// The library, opened for one GPU.
pub struct CublasLt {
    device: Arc<Cuda>,
    handle: sys::cublasLtHandle_t,
    workspace: Memory<u8>,
}

/// `out[m, n] = x[m, k] · w[n, k]ᵀ` in bf16 with f32 sums, planned once for a shape.
pub struct MatMul<'a> {
    library: &'a CublasLt,
    shape: [usize; 3],
    operation: Descriptor<sys::cublasLtMatmulDesc_t>,
    layouts: [Descriptor<sys::cublasLtMatrixLayout_t>; 3],
    algorithm: sys::cublasLtMatmulHeuristicResult_t,
}

/// A handle, and what destroys it.
struct Descriptor<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

fn failed(what: &'static str) -> impl FnOnce(CublasError) -> Error {
    move |error| Error::Device(format!("cublasLt, {what}: {error}"))
}

// === impl CublasLt ===

impl CublasLt {
    /// Opens the library, if the machine has it.
    pub fn open(device: &Arc<Cuda>) -> Result<Self, Error> {
        // SAFETY: only looks for the library; every other call into it would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Device("libcublasLt.so was not found".into()));
        }
        device.synchronize()?; // binds the context to this thread
        let handle = result::create_handle().map_err(failed("opening"))?;
        let any: Arc<dyn Device> = device.clone();
        let workspace = match Memory::new(&any, WORKSPACE) {
            Ok(workspace) => workspace,
            Err(error) => {
                // SAFETY: the handle was just made.
                unsafe { result::destroy_handle(handle) }.map_err(failed("closing"))?;
                return Err(error);
            }
        };
        Ok(Self { device: device.clone(), handle, workspace })
    }

    /// Chooses an algorithm for a shape.
    pub fn plan(&self, m: usize, n: usize, k: usize) -> Result<MatMul<'_>, Error> {
        use sys::{
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            cudaDataType::{CUDA_R_16BF, CUDA_R_32F},
        };
        let plan = failed("planning");
        // The library counts by columns: there it is outᵀ = (wᵀ)ᵀ · xᵀ, with the rows here as columns there.
        let layout = |rows: usize, columns: usize| {
            let made = result::create_matrix_layout(CUDA_R_16BF, rows as u64, columns as u64, rows as i64);
            made.map(|made| Descriptor(made, result::destroy_matrix_layout)).map_err(failed("planning"))
        };
        let layouts = [layout(k, n)?, layout(k, m)?, layout(n, m)?];
        let operation =
            result::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F).map_err(failed("planning"))?;
        let operation = Descriptor(operation, result::destroy_matmul_desc);
        let preference = result::create_matmul_pref().map_err(failed("planning"))?;
        let preference = Descriptor(preference, result::destroy_matmul_pref);
        let (transpose, workspace) = (CUBLAS_OP_T, WORKSPACE);
        // SAFETY: every handle lives until the end of this function, and attributes have the sizes asked for.
        let algorithm = unsafe {
            let value = (&raw const transpose).cast::<c_void>();
            result::set_matmul_desc_attribute(
                operation.0,
                CUBLASLT_MATMUL_DESC_TRANSA,
                value,
                size_of_val(&transpose),
            )
            .map_err(failed("planning"))?;
            let value = (&raw const workspace).cast::<c_void>();
            let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference.0, attribute, value, size_of::<usize>())
                .map_err(failed("planning"))?;
            let [a, b, d] = [&layouts[0], &layouts[1], &layouts[2]].map(|layout| layout.0);
            result::get_matmul_algo_heuristic(self.handle, operation.0, a, b, d, d, preference.0)
                .map_err(plan)?
        };
        Ok(MatMul { library: self, shape: [m, n, k], operation, layouts, algorithm })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: plans borrow from this value, so none is left.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::error!(%error, "cublasLt could not be closed");
        }
    }
}

// === impl MatMul ===

impl MatMul<'_> {
    /// Launches it after the work so far.
    pub fn run(&self, x: View<'_, bf16>, w: View<'_, bf16>, out: &ViewMut<'_, bf16>) -> Result<(), Error> {
        let [m, n, k] = self.shape;
        if (x.len(), w.len(), out.len()) != (m * k, n * k, m * n) {
            let problem =
                format!("{}, {} and {} elements don't make {m} × {n} × {k}", x.len(), w.len(), out.len());
            return Err(Error::Arguments { operation: "cublasLt", problem });
        }
        let (alpha, beta) = (1.0f32, 0.0f32);
        let pointer = |address: super::Address| address.0 as *mut c_void;
        let [a, b, d] = [&self.layouts[0], &self.layouts[1], &self.layouts[2]].map(|layout| layout.0);
        self.library.device.bind()?;
        // SAFETY: the views have the layouts' sizes, and all handles live as long as `self`.
        unsafe {
            result::matmul(
                self.library.handle,
                self.operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(w.address()),
                a,
                pointer(x.address()),
                b,
                pointer(out.address()),
                d,
                pointer(out.address()),
                d,
                &raw const self.algorithm.algo,
                pointer(self.library.workspace.view().address()),
                WORKSPACE,
                self.library.device.stream().cu_stream().cast(),
            )
        }
        .map_err(failed("multiplying"))
    }
}

// === impl Descriptor ===

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's own.
        if let Err(error) = unsafe { (self.1)(self.0) } {
            tracing::error!(%error, "a cublasLt descriptor could not be destroyed");
        }
    }
}
