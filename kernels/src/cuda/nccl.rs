//! Sums over the GPUs of a group by NCCL, which is looked for at run time as the driver is.
//!
//! By our own few declarations: cudarc's look for `libnccl.so` alone, which only packages for developers have. They have
//! not run yet: that takes two GPUs. What is tested is what stands around them, and that the library opens.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::transmute_copy,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use half::bf16;

use super::{backend::AllReduce, driver::Cuda, memory::Memory};
use crate::Error;

/// Names of the library: as packages for users have it, and for developers.
const NAMES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];

/// `ncclBfloat16`.
const BFLOAT16: c_int = 9;
/// `ncclSum`.
const SUM: c_int = 0;

/// One rank's end of a group of GPUs.
pub struct Nccl {
    rank: usize,
    device: Arc<Cuda>,
    shared: Arc<Shared>,
}

struct Shared {
    library: Library,
    /// Each rank's; none once the group has ended.
    communicators: Vec<Mutex<Option<Communicator>>>,
}

/// A handle of the library's.
struct Communicator(NonNull<c_void>);

// SAFETY: a communicator may be used from any thread, by one at a time: each has a lock.
unsafe impl Send for Communicator {}

/// The functions, which stay loaded. 0 is success.
struct Library {
    init_all: unsafe extern "C" fn(*mut *mut c_void, c_int, *const c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        *mut c_void,
        *mut c_void,
    ) -> c_int,
    abort: unsafe extern "C" fn(*mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

// === impl Nccl ===

impl Nccl {
    /// The ends of a group of these GPUs, in their order.
    ///
    /// # Errors
    /// If the machine lacks the library, or that can't join them.
    pub fn group(devices: &[Arc<Cuda>]) -> Result<Vec<Self>, Error> {
        let library = Library::open()?;
        let ordinals: Vec<c_int> = devices.iter().map(|device| device.ordinal() as c_int).collect();
        let mut handles = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: as many places for handles as there are numbers of devices.
        let code =
            unsafe { (library.init_all)(handles.as_mut_ptr(), ordinals.len() as c_int, ordinals.as_ptr()) };
        library.check("joining the GPUs", code)?;
        let communicator = |handle| Mutex::new(NonNull::new(handle).map(Communicator));
        let shared =
            Arc::new(Shared { library, communicators: handles.into_iter().map(communicator).collect() });
        let rank = |(rank, device): (usize, &Arc<Cuda>)| Self {
            rank,
            device: device.clone(),
            shared: shared.clone(),
        };
        Ok(devices.iter().enumerate().map(rank).collect())
    }
}

impl AllReduce for Nccl {
    fn sum(&self, memory: &mut Memory<bf16>, numbers: usize) -> Result<(), Error> {
        let numbers = memory.slice_mut(0..numbers);
        let Shared { library, communicators } = &*self.shared;
        let communicator = lock(&communicators[self.rank]);
        let Some(Communicator(handle)) = &*communicator else {
            return Err(Error::Device("the group of GPUs has ended".into()));
        };
        let (stream, at) = (self.device.bind()?, numbers.address().0 as *mut c_void);
        // SAFETY: so many numbers are there, on this rank's device, whose context is bound; the sum takes its turn in the
        // stream's order; the handle is whole while it is locked.
        let code = unsafe {
            (library.all_reduce)(at, at, numbers.len(), BFLOAT16, SUM, handle.as_ptr(), stream.cast())
        };
        library.check("a sum over the GPUs", code)
    }

    fn abort(&self) {
        for communicator in &self.shared.communicators {
            if let Some(Communicator(handle)) = lock(communicator).take() {
                // SAFETY: nobody else has the handle any more; kernels that wait for other ranks end.
                unsafe { (self.shared.library.abort)(handle.as_ptr()) };
            }
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Library ===

impl Library {
    fn open() -> Result<Self, Error> {
        // SAFETY: loading runs the library's own initializers, as for the driver.
        let open = |name: &CStr| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let library = NAMES.iter().find_map(|name| NonNull::new(open(name)));
        let library = library.ok_or_else(|| Error::Device("NCCL: libnccl.so.2 was not found".into()))?;
        // SAFETY: these are the functions' types in nccl.h, unchanged since bf16 came in version 2.10.
        unsafe {
            Ok(Self {
                init_all: find(library, c"ncclCommInitAll")?,
                all_reduce: find(library, c"ncclAllReduce")?,
                abort: find(library, c"ncclCommAbort")?,
                error_string: find(library, c"ncclGetErrorString")?,
            })
        }
    }

    fn check(&self, what: &str, code: c_int) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: gives a constant string for any number.
        let problem = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(Error::Device(format!("NCCL, {what}: {}", problem.to_string_lossy())))
    }
}

/// A function of a library that stays open.
///
/// # Safety
/// `F` is its type.
unsafe fn find<F: Copy>(library: NonNull<c_void>, name: &CStr) -> Result<F, Error> {
    // SAFETY: the library is open.
    let symbol = NonNull::new(unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) });
    let symbol =
        symbol.ok_or_else(|| Error::Device(format!("NCCL: it has no {}", name.to_string_lossy())))?;
    // SAFETY: the caller's promise; a function pointer is as large.
    Ok(unsafe { transmute_copy(&symbol) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_or_a_gpu_gets_an_error() {
        let error = match Nccl::group(&[]) {
            Ok(_) => panic!("a group of nobody"),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with("NCCL"), "{error}");
    }
}
