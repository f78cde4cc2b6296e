//! Array and hash maps of parser programs, shared between programs and bpf(2) calls.
//!
//! No operation blocks. Values live in atomic words (`words`); lookups in a hash map take no
//! lock (`hash`), its updates and deletes exclude each other for a bounded time and then fail
//! with EBUSY, as the kernel's do under contention.

use alloc::vec::Vec;
use core::fmt;

use self::hash::Hash;
use self::words::Words;

mod hash;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use self::words::modify;

/// `BPF_MAP_TYPE_HASH`.
pub const MAP_TYPE_HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub const MAP_TYPE_ARRAY: u32 = 2;

/// `BPF_NOEXIST`: create an element, do not overwrite.
pub const NOEXIST: u64 = 1;
/// `BPF_EXIST`: overwrite an element, do not create.
pub const EXIST: u64 = 2;

/// Map creation flags, `BPF_F_*`.
pub mod flag {
    #![allow(missing_docs)]
    pub const NO_PREALLOC: u32 = 1 << 0;
    pub const NUMA_NODE: u32 = 1 << 2;
    pub const RDONLY: u32 = 1 << 3;
    pub const WRONLY: u32 = 1 << 4;
    pub const ZERO_SEED: u32 = 1 << 6;
    pub const RDONLY_PROG: u32 = 1 << 7;
    pub const WRONLY_PROG: u32 = 1 << 8;
}

/// Flags both map types take. `NUMA_NODE` is accepted and has no effect. `MMAPABLE` is not: a
/// map of ours has no pages to map, and loaders fall back on EINVAL as on an older kernel.
const COMMON_FLAGS: u32 =
    flag::NUMA_NODE | flag::RDONLY | flag::WRONLY | flag::RDONLY_PROG | flag::WRONLY_PROG;

/// Memory one map may take: parser state is small, and the count comes from the program.
pub const MAP_BYTES_MAX: usize = 256 << 20;
/// The kernel's `KMALLOC_MAX_SIZE`, which bounds a hash element.
const HASH_ELEM_BYTES_MAX: u64 = 4 << 20;
/// Bytes the kernel's element header takes of that.
const HASH_ELEM_HEADER_BYTES: u64 = 48;

/// Why a map operation fails. [`MapError::errno`] is what bpf(2) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Creation: not an array and not a hash map.
    UnsupportedType,
    /// Creation: a size or count is zero, or an array's key is not four bytes.
    BadSize,
    /// Creation: a flag the type does not take, or read-only and write-only at once.
    BadFlags,
    /// Creation: an element larger than the kernel allows.
    ElementTooLarge,
    /// Creation: more than [`MAP_BYTES_MAX`], or the allocator has no room.
    NoMemory,
    /// Update: a flag other than `ANY`, `NOEXIST`, `EXIST`; delete on an array.
    Invalid,
    /// A key or value of the wrong length.
    BadLength,
    /// No element under this key, or no further key.
    NotFound,
    /// `NOEXIST`, and there is an element.
    Exists,
    /// The hash map is full, or the array index lies behind its end.
    Full,
    /// Another update or delete is in progress on this hash map.
    Busy,
}

impl MapError {
    /// The errno bpf(2) fails with, positive.
    pub const fn errno(self) -> i32 {
        match self {
            Self::UnsupportedType
            | Self::BadSize
            | Self::BadFlags
            | Self::Invalid
            | Self::BadLength => 22, // EINVAL
            Self::ElementTooLarge | Self::Full => 7, // E2BIG
            Self::NoMemory => 12,
            Self::NotFound => 2,
            Self::Exists => 17,
            Self::Busy => 16,
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnsupportedType => "map type is neither array nor hash",
            Self::BadSize => "map key size, value size or entry count is out of range",
            Self::BadFlags => "map flags do not fit the map type",
            Self::ElementTooLarge => "map element is too large",
            Self::NoMemory => "map needs more memory than there is",
            Self::Invalid => "operation or flag does not fit the map",
            Self::BadLength => "key or value length differs from the map's",
            Self::NotFound => "no such element",
            Self::Exists => "element exists",
            Self::Full => "map is full or index is out of range",
            Self::Busy => "another update of the map is in progress",
        })
    }
}

impl core::error::Error for MapError {}

/// What `BPF_MAP_CREATE` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// [`MAP_TYPE_ARRAY`] or [`MAP_TYPE_HASH`].
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements an array has, or a hash map may have.
    pub max_entries: u32,
    /// [`flag`] bits.
    pub flags: u32,
}

impl MapSpec {
    /// The kernel's checks on creation, in its order (`array_map_alloc_check`,
    /// `htab_map_alloc_check`).
    fn check(&self) -> Result<(), MapError> {
        let allowed = match self.map_type {
            MAP_TYPE_ARRAY => COMMON_FLAGS,
            MAP_TYPE_HASH => COMMON_FLAGS | flag::NO_PREALLOC | flag::ZERO_SEED,
            _ => return Err(MapError::UnsupportedType),
        };
        let both = |a, b| self.flags & (a | b) == a | b;
        if self.flags & !allowed != 0
            || both(flag::RDONLY_PROG, flag::WRONLY_PROG)
            || both(flag::RDONLY, flag::WRONLY)
        {
            return Err(MapError::BadFlags);
        }
        let is_array = self.map_type == MAP_TYPE_ARRAY;
        if self.max_entries == 0
            || self.value_size == 0
            || self.key_size == 0
            || is_array && self.key_size != 4
        {
            return Err(MapError::BadSize);
        }
        let too_large = if is_array {
            self.value_size > i32::MAX as u32
        } else {
            u64::from(self.key_size) + u64::from(self.value_size)
                >= HASH_ELEM_BYTES_MAX - HASH_ELEM_HEADER_BYTES
        };
        if too_large {
            Err(MapError::ElementTooLarge)
        } else {
            Ok(())
        }
    }
}

/// How keys find elements.
#[derive(Debug)]
enum Index {
    Array,
    Hash(Hash),
}

/// An array or hash map.
#[derive(Debug)]
pub struct Map {
    spec: MapSpec,
    index: Index,
    values: Words,
    /// Words of one value.
    value_words: usize,
}

impl Map {
    /// Creates a map with all values zero (array) or no elements (hash). `seed` keys the hash
    /// function, so that a peer who chooses keys cannot choose collisions.
    ///
    /// # Errors
    /// As `BPF_MAP_CREATE`: see [`MapError`].
    pub fn new(spec: MapSpec, seed: u64) -> Result<Self, MapError> {
        spec.check()?;
        let entries = spec.max_entries as usize;
        let value_words = (spec.value_size as usize).div_ceil(8);
        let key_words = (spec.key_size as usize).div_ceil(8);
        // A hash element also takes a chain link, a version, a bucket and a free-list place.
        let elem_bytes = 8 * (value_words + key_words) + 24;
        if entries
            .checked_mul(elem_bytes)
            .is_none_or(|total| total > MAP_BYTES_MAX)
        {
            return Err(MapError::NoMemory);
        }
        let index = match spec.map_type {
            MAP_TYPE_ARRAY => Index::Array,
            _ => {
                let seed = if spec.flags & flag::ZERO_SEED != 0 {
                    0
                } else {
                    seed
                };
                let hash = Hash::new(entries, spec.key_size as usize, seed);
                Index::Hash(hash.ok_or(MapError::NoMemory)?)
            }
        };
        let values = Words::zeroed(entries * value_words).ok_or(MapError::NoMemory)?;
        Ok(Self {
            spec,
            index,
            values,
            value_words,
        })
    }

    /// What the map was created with.
    pub const fn spec(&self) -> &MapSpec {
        &self.spec
    }

    /// `BPF_MAP_LOOKUP_ELEM`: copies the value under `key` into `value`.
    ///
    /// # Errors
    /// [`MapError::BadLength`], [`MapError::NotFound`].
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), MapError> {
        if value.len() != self.value_bytes() || key.len() != self.key_bytes() {
            return Err(MapError::BadLength);
        }
        let elem = self.find(key).ok_or(MapError::NotFound)?;
        self.values.read(self.value_at(elem), value);
        Ok(())
    }

    /// `BPF_MAP_UPDATE_ELEM` and the helper of that name. An existing value is overwritten in
    /// place, word by word, so a program that holds a pointer to it sees the new bytes.
    ///
    /// # Errors
    /// [`MapError::BadLength`], [`MapError::Invalid`], [`MapError::Full`], [`MapError::Exists`],
    /// [`MapError::NotFound`], [`MapError::Busy`].
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), MapError> {
        if value.len() != self.value_bytes() || key.len() != self.key_bytes() {
            return Err(MapError::BadLength);
        }
        if flags > EXIST {
            return Err(MapError::Invalid);
        }
        match &self.index {
            Index::Array => {
                let elem = self.find(key).ok_or(MapError::Full)?;
                if flags == NOEXIST {
                    return Err(MapError::Exists);
                }
                self.values.write(self.value_at(elem), value);
            }
            Index::Hash(hash) => hash.insert(key, flags, |elem| {
                self.values.write(self.value_at(elem), value);
            })?,
        }
        Ok(())
    }

    /// `BPF_MAP_DELETE_ELEM` and the helper of that name. Array elements cannot be deleted.
    ///
    /// # Errors
    /// [`MapError::BadLength`], [`MapError::Invalid`], [`MapError::NotFound`],
    /// [`MapError::Busy`].
    pub fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        if key.len() != self.key_bytes() {
            return Err(MapError::BadLength);
        }
        match &self.index {
            Index::Array => Err(MapError::Invalid),
            Index::Hash(hash) => hash.remove(key),
        }
    }

    /// `BPF_MAP_GET_NEXT_KEY`: the key behind `key`, or the first one if `key` is None or not
    /// there. Every element that stays in the map during an iteration is visited once.
    ///
    /// # Errors
    /// [`MapError::BadLength`]; [`MapError::NotFound`] behind the last key.
    pub fn next_key(&self, key: Option<&[u8]>) -> Result<Vec<u8>, MapError> {
        if key.is_some_and(|key| key.len() != self.key_bytes()) {
            return Err(MapError::BadLength);
        }
        let after = key.and_then(|key| self.find(key));
        let next = after.map_or(0, |elem| elem + 1);
        let next_key = match &self.index {
            Index::Array => u32::try_from(next)
                .ok()
                .filter(|&index| index < self.spec.max_entries)
                .map(|index| index.to_le_bytes().to_vec()),
            Index::Hash(hash) => hash.key_from(next),
        };
        next_key.ok_or(MapError::NotFound)
    }

    /// The element under `key`, which has the map's key length.
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        match &self.index {
            Index::Array => {
                let index = u32::from_le_bytes(key.try_into().ok()?);
                (index < self.spec.max_entries).then_some(index as usize)
            }
            Index::Hash(hash) => hash.find(key),
        }
    }

    /// A program's load from the value of `elem`. None outside the value.
    pub(crate) fn load(&self, elem: usize, off: usize, bytes: usize) -> Option<u64> {
        self.values.load(self.inside(elem, off, bytes)?, bytes)
    }

    /// A program's store. None, and no change, outside the value.
    pub(crate) fn store(&self, elem: usize, off: usize, bytes: usize, value: u64) -> Option<()> {
        self.values
            .store(self.inside(elem, off, bytes)?, bytes, value)
    }

    /// A program's atomic operation; see [`Words::update`].
    pub(crate) fn atomic(
        &self,
        (elem, off): (usize, usize),
        bytes: usize,
        op: i64,
        operand: u64,
        expected: u64,
    ) -> Option<u64> {
        self.values
            .update(self.inside(elem, off, bytes)?, bytes, op, operand, expected)
    }

    /// Bytes of a value, copied. None outside the value.
    pub(crate) fn bytes(&self, elem: usize, off: usize, len: usize) -> Option<Vec<u8>> {
        let at = self.inside(elem, off, len)?;
        let mut bytes = alloc::vec![0; len];
        self.values.read(at, &mut bytes).then_some(bytes)
    }

    /// Overwrites bytes of a value. None, and no change, outside the value.
    pub(crate) fn set_bytes(&self, elem: usize, off: usize, bytes: &[u8]) -> Option<()> {
        let at = self.inside(elem, off, bytes.len())?;
        self.values.write(at, bytes).then_some(())
    }

    /// Whether programs may load values.
    pub(crate) const fn prog_may_read(&self) -> bool {
        self.spec.flags & flag::WRONLY_PROG == 0
    }

    /// Whether programs may store to values, update and delete.
    pub(crate) const fn prog_may_write(&self) -> bool {
        self.spec.flags & flag::RDONLY_PROG == 0
    }

    /// Bytes of a key.
    pub(crate) const fn key_bytes(&self) -> usize {
        self.spec.key_size as usize
    }

    /// Bytes of a value.
    pub(crate) const fn value_bytes(&self) -> usize {
        self.spec.value_size as usize
    }

    /// Byte offset of an element's value.
    const fn value_at(&self, elem: usize) -> usize {
        elem * self.value_words * 8
    }

    /// Byte offset of an access, if it stays inside the value of an element that can exist.
    fn inside(&self, elem: usize, off: usize, bytes: usize) -> Option<usize> {
        let end = off.checked_add(bytes)?;
        (elem < self.spec.max_entries as usize && end <= self.value_bytes())
            .then(|| self.value_at(elem) + off)
    }
}
