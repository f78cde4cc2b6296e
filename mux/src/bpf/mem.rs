//! The virtual addresses programs see: no host pointer is ever visible to a program.
//!
//! | bits 63..60 | bits 59..48 | bits 47..0 |
//! |---|---|---|
//! | region | map number in the program | offset inside the region |
//!
//! Arithmetic on an address may carry into the upper fields; the result is checked like any
//! other when it is used, so the worst a program reaches is another part of its own memory.

use super::map::Map;

/// The top field of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// `struct __sk_buff`.
    Ctx,
    /// The call frames' stacks.
    Stack,
    /// Map values. The offset is the element number shifted by [`elem_shift`], plus the offset
    /// inside the value.
    Value,
    /// A map itself, only good for passing to helpers.
    Map,
}

const REGION_SHIFT: u32 = 60;
const MAP_SHIFT: u32 = 48;
const MAP_MASK: u64 = (1 << (REGION_SHIFT - MAP_SHIFT)) - 1;
const OFFSET_MASK: u64 = (1 << MAP_SHIFT) - 1;

/// Region numbers; zero is none, so that null and small integers are no address.
const CTX: u64 = 1;
const STACK: u64 = 2;
const VALUE: u64 = 3;
const MAP: u64 = 4;

/// Address of the context.
pub(crate) const CTX_ADDR: u64 = CTX << REGION_SHIFT;
/// Address of the first byte of the first frame.
pub(crate) const STACK_ADDR: u64 = STACK << REGION_SHIFT;

/// An address taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) region: Region,
    pub(crate) map: usize,
    pub(crate) off: usize,
}

/// Takes an address apart. None if it lies in no region.
#[inline(always)]
pub(crate) fn place(addr: u64) -> Option<Place> {
    let region = match addr >> REGION_SHIFT {
        CTX => Region::Ctx,
        STACK => Region::Stack,
        VALUE => Region::Value,
        MAP => Region::Map,
        _ => return None,
    };
    let map = (addr >> MAP_SHIFT & MAP_MASK) as usize;
    Some(Place {
        region,
        map,
        off: (addr & OFFSET_MASK) as usize,
    })
}

/// Address of a map itself.
pub(crate) const fn map_addr(map: usize) -> u64 {
    MAP << REGION_SHIFT | (map as u64) << MAP_SHIFT
}

/// Address of byte `off` of a map value.
pub(crate) const fn value_addr(map: usize, shape: &Map, elem: usize, off: usize) -> u64 {
    let elem = (elem as u64) << elem_shift(shape);
    VALUE << REGION_SHIFT | (map as u64) << MAP_SHIFT | (elem + off as u64) & OFFSET_MASK
}

/// The element number and the offset inside its value.
pub(crate) const fn split_value_off(shape: &Map, off: usize) -> (usize, usize) {
    let shift = elem_shift(shape);
    (off >> shift, off & ((1 << shift) - 1))
}

/// Values are a power of two apart, so that an address is split without a division. The shift
/// leaves room behind a value: a pointer to its end is not a pointer to the next one.
const fn elem_shift(shape: &Map) -> u32 {
    usize::BITS - shape.value_bytes().leading_zeros()
}
