//! Typed memory on a device.

use std::{marker::PhantomData, ops::Range, sync::Arc};

use super::device::{Address, Argument, Device};
use crate::Error;

/// A number that kernels read and write as it lies in memory.
///
/// # Safety
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Element: Copy + Send + Sync + 'static {}

/// An allocation of `len` elements; given back when dropped.
pub struct Memory<T: Element> {
    device: Arc<dyn Device>,
    address: Address,
    len: usize,
    element: PhantomData<T>,
}

/// Memory of this machine that a device copies to and from without a detour; given back when dropped.
pub struct Pinned {
    device: Arc<dyn Device>,
    pointer: *mut u8,
    len: usize,
}

// SAFETY: the memory is this value's own, and reachable through it only.
unsafe impl Send for Pinned {}
// SAFETY: likewise.
unsafe impl Sync for Pinned {}

/// Part of a device's memory, to read.
#[derive(Clone, Copy)]
pub struct View<'a, T: Element> {
    address: Address,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

/// Part of a device's memory, to write.
pub struct ViewMut<'a, T: Element> {
    address: Address,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

// === impl Element ===

macro_rules! elements {
    ($($t:ty),*) => { $(
        // SAFETY: a plain number.
        unsafe impl Element for $t {}
    )* };
}
elements!(u8, i8, u16, i32, u32, i64, u64, f32, half::bf16, half::f16);

// === impl Memory ===

impl<T: Element> Memory<T> {
    /// Room for `len` elements of unspecified value.
    pub fn new(device: &Arc<dyn Device>, len: usize) -> Result<Self, Error> {
        let address = device.allocate(len * size_of::<T>())?;
        Ok(Self { device: device.clone(), address, len, element: PhantomData })
    }

    /// Room for `len` elements whose every byte is `byte`.
    pub fn filled(device: &Arc<dyn Device>, len: usize, byte: u8) -> Result<Self, Error> {
        let memory = Self::new(device, len)?;
        // SAFETY: the allocation is as long.
        unsafe { device.write(memory.address, &vec![byte; len * size_of::<T>()])? };
        Ok(memory)
    }

    /// A copy of `values`.
    pub fn from_slice(device: &Arc<dyn Device>, values: &[T]) -> Result<Self, Error> {
        let mut memory = Self::new(device, values.len())?;
        memory.write(values)?;
        Ok(memory)
    }

    /// Overwrites it from the start.
    pub fn write(&mut self, values: &[T]) -> Result<(), Error> {
        self.write_at(0, values)
    }

    /// Overwrites it from element `first` on.
    pub fn write_at(&mut self, first: usize, values: &[T]) -> Result<(), Error> {
        if first.checked_add(values.len()).is_none_or(|end| end > self.len) {
            return Err(Error::Arguments {
                operation: "write",
                problem: format!("{} elements don't fit from {first} on in {}", values.len(), self.len),
            });
        }
        let to = self.slice(first..first + values.len()).address;
        // SAFETY: an element is plain bytes, and the allocation is long enough.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values));
            self.device.write(to, bytes)
        }
    }

    /// All of it, once the work so far is done.
    pub fn read(&self) -> Result<Vec<T>, Error> {
        self.read_part(0..self.len)
    }

    /// A part of it, once the work so far is done.
    ///
    /// # Panics
    /// As indexing a slice does.
    pub fn read_part(&self, range: Range<usize>) -> Result<Vec<T>, Error> {
        let part = self.slice(range);
        let mut values = Vec::<T>::with_capacity(part.len);
        // SAFETY: the bytes are written before the length is set, and any bytes are elements.
        unsafe {
            let bytes =
                std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), part.len * size_of::<T>());
            bytes.fill(0);
            self.device.read(part.address, bytes)?;
            values.set_len(part.len);
        }
        Ok(values)
    }

    /// A part of it, to read.
    ///
    /// # Panics
    /// As indexing a slice does.
    pub fn slice(&self, range: Range<usize>) -> View<'_, T> {
        self.view().slice(range)
    }

    /// A part of it, to write.
    ///
    /// # Panics
    /// As indexing a slice does.
    pub fn slice_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        let part = self.slice(range);
        ViewMut { address: part.address, len: part.len, memory: PhantomData }
    }

    /// Overwrites it with as many elements of the same device, after the work so far.
    pub fn copy_from(&mut self, from: View<'_, T>) -> Result<(), Error> {
        if from.len != self.len {
            let problem = format!("{} elements over {}", from.len, self.len);
            return Err(Error::Arguments { operation: "copy", problem });
        }
        // SAFETY: both are as long, and this one is borrowed alone.
        unsafe { self.device.copy(self.address, from.address, self.len * size_of::<T>()) }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, memory: PhantomData }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, memory: PhantomData }
    }

    /// The device it lies on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

impl<T: Element> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: the allocation is this value's own, and views borrow from it.
        unsafe { self.device.free(self.address) }
    }
}

// === impl Pinned ===

impl Pinned {
    /// So many bytes, all 0.
    pub fn new(device: &Arc<dyn Device>, len: usize) -> Result<Self, Error> {
        let pointer = device.allocate_host(len.max(1))?;
        Ok(Self { device: device.clone(), pointer, len })
    }
}

impl std::ops::Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many initialized bytes, which are this value's own.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

impl std::ops::DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error of the work says nothing of the copies, which have ended either way.
        let _ = self.device.synchronize();
        // SAFETY: the memory is this value's own, and no copy is under way.
        unsafe { self.device.free_host(self.pointer) }
    }
}

// === impl View ===

impl<'a, T: Element> View<'a, T> {
    /// A part, by elements.
    ///
    /// # Panics
    /// As indexing a slice does.
    pub fn slice(self, range: Range<usize>) -> View<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        let address = Address(self.address.0 + (range.start * size_of::<T>()) as u64);
        View { address, len: range.len(), memory: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first element.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The same bytes as elements of another kind; what is left over at the end is not seen.
    ///
    /// # Panics
    /// Where those would be misaligned.
    pub fn cast<U: Element>(self) -> View<'a, U> {
        assert!(self.address.0.is_multiple_of(align_of::<U>() as u64), "{:?} is misaligned", self.address);
        View { address: self.address, len: self.len * size_of::<T>() / size_of::<U>(), memory: PhantomData }
    }
}

// === impl ViewMut ===

impl<'a, T: Element> ViewMut<'a, T> {
    /// A part, by elements.
    ///
    /// # Panics
    /// As indexing a slice does.
    pub fn slice(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        let part = self.view().slice(range);
        ViewMut { address: part.address, len: part.len, memory: PhantomData }
    }

    /// The same part, to read.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, memory: PhantomData }
    }

    /// The same part, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, memory: PhantomData }
    }

    /// What comes before an element, and the rest.
    ///
    /// # Panics
    /// As splitting a slice does.
    pub fn split_at(self, at: usize) -> (ViewMut<'a, T>, ViewMut<'a, T>) {
        let (start, end) = (self.view().slice(0..at), self.view().slice(at..self.len));
        let part = |view: View<'_, T>| ViewMut { address: view.address, len: view.len, memory: PhantomData };
        (part(start), part(end))
    }

    /// The same bytes as elements of another kind; what is left over at the end is not seen.
    ///
    /// # Panics
    /// Where those would be misaligned.
    pub fn cast<U: Element>(self) -> ViewMut<'a, U> {
        let View { address, len, .. } = self.view().cast::<U>();
        ViewMut { address, len, memory: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first element.
    pub fn address(&self) -> Address {
        self.address
    }
}

// === impl Argument ===

impl<T: Element> From<View<'_, T>> for Argument {
    fn from(view: View<'_, T>) -> Self {
        Self::Address(view.address)
    }
}

impl<T: Element> From<&ViewMut<'_, T>> for Argument {
    fn from(view: &ViewMut<'_, T>) -> Self {
        Self::Address(view.address)
    }
}

/// A missing view is a null pointer.
impl<T: Element> From<Option<View<'_, T>>> for Argument {
    fn from(view: Option<View<'_, T>>) -> Self {
        Self::Address(view.map_or(Address(0), |view| view.address))
    }
}

impl<T: Element> From<&Option<ViewMut<'_, T>>> for Argument {
    fn from(view: &Option<ViewMut<'_, T>>) -> Self {
        Self::Address(view.as_ref().map_or(Address(0), |view| view.address))
    }
}
