//! [`Device`] over the CUDA driver, which is looked for at run time.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{
    device::{Address, Device, ElementType, Event, Graph, Launch, Properties, TensorMap, Tile},
    fatbins::FATBINS,
    faults::{self, failed},
};
use crate::{DeviceMemory, Error};

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_BY_DEFAULT: usize = 48 << 10;

/// A GPU: one stream of work, one of copies beside it, and all kernels that were compiled for it.
pub struct Cuda {
    properties: Properties,
    stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    kernels: HashMap<&'static str, Kernel>,
}

struct Kernel {
    handle: sys::CUfunction,
    /// The most dynamic shared memory that it was allowed so far.
    shared: AtomicUsize,
}

struct CudaGraph {
    executable: sys::CUgraphExec,
    stream: Arc<CudaStream>,
}

/// An event that a thread sleeps for.
struct CudaEvent {
    event: sys::CUevent,
    /// The stream of work.
    stream: Arc<CudaStream>,
}

// SAFETY: driver handles may be used from any thread that has the context bound, as `Cuda::bind` does.
unsafe impl Send for Cuda {}
// SAFETY: likewise; the driver serializes calls on one stream.
unsafe impl Sync for Cuda {}
// SAFETY: as for `Cuda`; a graph may be launched by one thread at a time, which its owner sees to.
unsafe impl Send for CudaGraph {}
// SAFETY: as for `Cuda`.
unsafe impl Send for CudaEvent {}
// SAFETY: as for `Cuda`; once recorded, an event is only waited for.
unsafe impl Sync for CudaEvent {}

// === impl Cuda ===

impl Cuda {
    /// GPUs that this process can see.
    pub fn count() -> Result<usize, Error> {
        // SAFETY: only looks for the library; every other call into it would panic without it.
        if !unsafe { sys::is_culib_present() } {
            return Err(faults::no_driver());
        }
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }
            .result()
            .map_err(failed("asking the driver's version"))?;
        faults::check_version(version)?;
        let count = CudaContext::device_count().map_err(failed("counting GPUs"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The same, if this one is among them.
    pub fn count_with(ordinal: usize) -> Result<usize, Error> {
        match Self::count()? {
            0 => Err(faults::fault("counting GPUs", sys::CUresult::CUDA_ERROR_NO_DEVICE)),
            count if ordinal >= count => {
                Err(Error::Device(format!("there is no GPU {ordinal}: {count} can be seen, from 0 on")))
            }
            count => Ok(count),
        }
    }

    /// Opens a GPU and loads the kernels that were compiled for it.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        Self::count_with(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(failed("opening the GPU"))?;
        // SAFETY: nothing here uses cudarc's slices, whose bookkeeping this switches off.
        unsafe { context.disable_event_tracking() };
        let properties = properties(&context)?;
        faults::check_architecture(&properties.name, properties.arch)?;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let copies = context.new_stream().map_err(failed("making a stream"))?;
        let mut kernels = HashMap::new();
        for fatbin in FATBINS {
            // SAFETY: the image is a whole fatbin, as the compiler wrote it.
            let module = match unsafe { result::module::load_data(fatbin.image.as_ptr().cast()) } {
                Ok(module) => module,
                // For another architecture; its kernels are then absent, and launchers take other ones.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => continue,
                Err(DriverError(code)) => {
                    return Err(faults::fault(&format!("loading {}", fatbin.source), code));
                }
            };
            for name in fatbin.kernels {
                let symbol =
                    CString::new(*name).map_err(|_| Error::Device(format!("a bad kernel name: {name}")))?;
                // SAFETY: the module was just loaded and is never unloaded.
                let handle = unsafe { result::module::get_function(module, symbol) }
                    .map_err(|DriverError(code)| faults::fault(&format!("kernel {name}"), code))?;
                kernels.insert(*name, Kernel { handle, shared: AtomicUsize::new(SHARED_BY_DEFAULT) });
            }
        }
        if kernels.is_empty() {
            return Err(Error::Unsupported(format!(
                "the GPU {} is of architecture sm_{}, for which none of the kernels could be loaded",
                properties.name, properties.arch
            )));
        }
        Ok(Self { properties, stream, copies, kernels })
    }

    /// Kernels that were compiled for it.
    pub fn kernels(&self) -> usize {
        self.kernels.len()
    }

    /// Which GPU it is.
    pub(super) fn ordinal(&self) -> usize {
        self.stream.context().ordinal()
    }

    /// The stream's handle, with its context bound to this thread.
    pub(super) fn bind(&self) -> Result<sys::CUstream, Error> {
        self.stream.context().bind_to_thread().map_err(failed("binding the GPU to a thread"))?;
        Ok(self.stream.cu_stream())
    }

    /// An event at the end of what a stream has got so far.
    fn record(&self, stream: &Arc<CudaStream>) -> Result<CudaEvent, Error> {
        use sys::CUevent_flags::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING};
        self.bind()?;
        let mut event = std::ptr::null_mut();
        let flags = CU_EVENT_BLOCKING_SYNC as u32 | CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes the handle.
        unsafe { sys::cuEventCreate(&raw mut event, flags) }.result().map_err(failed("making an event"))?;
        let event = CudaEvent { event, stream: self.stream.clone() };
        // SAFETY: the event was just made, and the stream is of the same context.
        unsafe { result::event::record(event.event, stream.cu_stream()) }.map_err(failed("an event"))?;
        Ok(event)
    }

    /// Starts a kernel; a `dependent` one perhaps before the end of the one before it.
    ///
    /// # Safety
    /// As for [`Device::launch`] or [`Device::launch_dependent`].
    unsafe fn start(&self, launch: &Launch<'_>, dependent: bool) -> Result<(), Error> {
        let kernel = self.kernels.get(launch.kernel).ok_or_else(|| {
            Error::Unsupported(format!(
                "kernel {} is not compiled for sm_{}",
                launch.kernel, self.properties.arch
            ))
        })?;
        let stream = self.bind()?;
        if launch.shared > kernel.shared.load(Relaxed) {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is of a loaded module.
            unsafe {
                result::function::set_function_attribute(kernel.handle, attribute, launch.shared as i32)
            }
            .map_err(|error| {
                Error::Device(format!("{}: {} shared bytes: {error}", launch.kernel, launch.shared))
            })?;
            kernel.shared.fetch_max(launch.shared, Relaxed);
        }
        let mut pointers: Vec<*mut c_void> =
            launch.arguments.iter().map(|argument| argument.pointer()).collect();
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared as u32,
            hStream: stream,
            attrs: &raw mut early,
            numAttrs: dependent.into(),
        };
        // SAFETY: the caller's promise; the driver copies the configuration and the arguments before it returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|DriverError(code)| faults::fault(&format!("launching {}", launch.kernel), code))
    }

    /// The stream, for libraries that take one.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

fn properties(context: &CudaContext) -> Result<Properties, Error> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    };
    let attribute = |which| context.attribute(which).map_err(failed("asking the GPU's properties"));
    let (major, minor) = context.compute_capability().map_err(failed("asking the GPU's properties"))?;
    Ok(Properties {
        name: context.name().map_err(failed("asking the GPU's name"))?,
        arch: (major * 10 + minor) as u32,
        processors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        l2_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    })
}

impl Device for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Error> {
        self.bind()?;
        // SAFETY: the content is unspecified by this function's contract.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Address(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(Error::Memory { bytes, what: "device memory" })
            }
            Err(error) => Err(failed("allocating device memory")(error)),
        }
    }

    unsafe fn free(&self, address: Address) {
        // SAFETY: the caller's promise; the driver waits for the work so far.
        let freed =
            self.bind().and_then(|_| unsafe { result::free_sync(address.0) }.map_err(failed("freeing")));
        if let Err(error) = freed {
            tracing::error!(%error, "device memory could not be freed");
        }
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: the caller's promise; waiting keeps `bytes` alive.
        unsafe {
            result::memcpy_htod_async(to.0, bytes, stream).map_err(failed("copying to the GPU"))?;
            result::stream::synchronize(stream).map_err(failed("copying to the GPU"))
        }
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, Error> {
        self.bind()?;
        // SAFETY: flags 0, or the memory would be slow to read; zeroed before anyone sees it.
        match unsafe { result::malloc_host(bytes, 0) } {
            Ok(pointer) => {
                let pointer = pointer.cast::<u8>();
                // SAFETY: so many bytes were allocated.
                unsafe { pointer.write_bytes(0, bytes) };
                Ok(pointer)
            }
            Err(_) => Err(Error::Memory { bytes, what: "copies to the GPU" }),
        }
    }

    unsafe fn free_host(&self, pointer: *mut u8) {
        // SAFETY: the caller's promise.
        let freed =
            self.bind().and_then(|_| unsafe { result::free_host(pointer.cast()) }.map_err(failed("freeing")));
        if let Err(error) = freed {
            tracing::error!(%error, "pinned memory could not be freed");
        }
    }

    unsafe fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_htod_async(to.0, bytes, stream) }.map_err(failed("copying to the GPU"))
    }

    fn memory(&self) -> Result<DeviceMemory, Error> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(failed("asking the GPU's memory"))?;
        Ok(DeviceMemory { free, total })
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: the caller's promise; waiting keeps `bytes` alive.
        unsafe {
            result::memcpy_dtoh_async(bytes, from.0, stream).map_err(failed("copying from the GPU"))?;
            result::stream::synchronize(stream).map_err(failed("work on the GPU"))
        }
    }

    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, stream) }
            .map_err(failed("copying on the GPU"))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.start(launch, false) }
    }

    unsafe fn launch_dependent(&self, launch: &Launch<'_>) -> Result<(), Error> {
        // Only Hopper's machine code waits: before it no GPU can, and newer ones run PTX for sm_80.
        let dependent = self.properties.arch == 90;
        // SAFETY: the caller's promise.
        unsafe { self.start(launch, dependent) }
    }

    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<Arc<dyn Event>, Error> {
        let before = self.record(&self.stream)?;
        let copies = self.copies.cu_stream();
        // SAFETY: the event was recorded, and both streams live as long as `self`; the copy is the caller's promise.
        unsafe {
            let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::wait_event(copies, before.event, flags)
                .map_err(failed("copying from the GPU"))?;
            result::memcpy_dtoh_async(to, from.0, copies).map_err(failed("copying from the GPU"))?;
        }
        Ok(Arc::new(self.record(&self.copies)?))
    }

    fn mark(&self) -> Result<Arc<dyn Event>, Error> {
        Ok(Arc::new(self.record(&self.stream)?))
    }

    fn tensor_map(&self, tile: &Tile) -> Result<TensorMap, Error> {
        use sys::{
            CUtensorMapDataType_enum as Type, CUtensorMapFloatOOBfill_enum as Fill,
            CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
            CUtensorMapSwizzle_enum as Swizzle,
        };
        tile.check()?;
        let element = match tile.element {
            ElementType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            ElementType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            ElementType::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let swizzle = match tile.swizzle {
            0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let extent = [tile.columns as u64, tile.rows as u64];
        let pitch = [tile.pitch as u64];
        let shape = [tile.box_columns as u32, tile.box_rows as u32];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every pointer is to a local of the size that rank 2 asks for.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                element,
                2,
                tile.base.0 as *mut c_void,
                extent.as_ptr(),
                pitch.as_ptr(),
                shape.as_ptr(),
                [1, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("describing a matrix"))?;
        Ok(TensorMap(map.opaque))
    }

    fn synchronize(&self) -> Result<(), Error> {
        let stream = self.bind()?;
        // SAFETY: both streams live as long as `self`.
        unsafe {
            result::stream::synchronize(stream).map_err(failed("work on the GPU"))?;
            result::stream::synchronize(self.copies.cu_stream()).map_err(failed("copying from the GPU"))
        }
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Box<dyn Graph>, Error> {
        let stream = self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`; the graph is destroyed once instantiated.
        unsafe {
            result::stream::begin_capture(stream, mode).map_err(failed("capturing"))?;
            let worked = work();
            let graph = result::stream::end_capture(stream).map_err(failed("capturing"));
            if let Err(error) = worked {
                if let Ok(unwanted) = graph {
                    result::graph::destroy(unwanted).map_err(failed("capturing"))?;
                }
                return Err(error);
            }
            let graph = graph?;
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).map_err(failed("capturing"))?;
            let executable = executable.map_err(failed("making a graph"))?;
            let graph = CudaGraph { executable, stream: self.stream.clone() };
            // What memory it takes, it has from here on: its first launch can't be short of it.
            sys::cuGraphUpload(executable, stream).result().map_err(failed("making a graph"))?;
            Ok(Box::new(graph))
        }
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
        let stream = self.bind()?;
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("timing"));
        let (start, end) = (event()?, event()?);
        // SAFETY: both events live until the end of this function.
        unsafe {
            let record = |event| result::event::record(event, stream).map_err(failed("timing"));
            let worked = record(start).and_then(|()| work()).and_then(|()| record(end));
            let elapsed = worked
                .and_then(|()| result::event::synchronize(end).map_err(failed("work on the GPU")))
                .and_then(|()| result::event::elapsed(start, end).map_err(failed("timing")));
            for event in [start, end] {
                result::event::destroy(event).map_err(failed("timing"))?;
            }
            Ok(Duration::from_secs_f64(f64::from(elapsed?) / 1e3))
        }
    }
}

// === impl CudaGraph ===

impl Graph for CudaGraph {
    unsafe fn launch(&self) -> Result<(), Error> {
        self.stream.context().bind_to_thread().map_err(failed("binding the GPU to a thread"))?;
        // SAFETY: both handles live as long as `self`; the memory is the caller's promise.
        unsafe { result::graph::launch(self.executable, self.stream.cu_stream()) }
            .map_err(failed("launching a graph"))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: nothing else holds the handle.
        if let Err(error) = unsafe { result::graph::exec_destroy(self.executable) } {
            tracing::error!(%error, "a graph could not be destroyed");
        }
    }
}

// === impl CudaEvent ===

impl Event for CudaEvent {
    fn wait(&self) -> Result<(), Error> {
        self.stream.context().bind_to_thread().map_err(failed("binding the GPU to a thread"))?;
        // SAFETY: the handle lives as long as `self`.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("work on the GPU"))
    }

    fn hold(&self) -> Result<(), Error> {
        self.stream.context().bind_to_thread().map_err(failed("binding the GPU to a thread"))?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles live as long as `self`.
        unsafe { result::stream::wait_event(self.stream.cu_stream(), self.event, flags) }
            .map_err(failed("waiting for a copy"))
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: nothing else holds the handle; the driver keeps what is still waited for.
        if let Err(error) = unsafe { result::event::destroy(self.event) } {
            tracing::error!(%error, "an event could not be destroyed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_gives_an_ordinary_error() {
        if let Err(error) = Cuda::count() {
            assert!(
                matches!(&error, Error::Device(said) if said.contains("driver") || said.contains("GPU")),
                "{error}"
            );
            assert!(Cuda::open(0).is_err());
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        assert!(Cuda::open(99).is_err());
    }
}
