//! A parser program on its way to the process that has the mux.
//!
//! Of a program whose descriptor is the kernel's and whose instructions we never saw, the descriptor
//! travels. Any other goes as its instructions, with a copy of the maps they name: from then on the
//! two processes see different maps.

use std::sync::Arc;

use kcm_mux::Parser;
use kcm_mux::bpf::{Map, MapSpec, PROG_MAPS_MAX, Program};

use super::{BpfObject, behind, load::Loaded};
use crate::errno::{Errno, Outcome};
use crate::sys;

/// What is sent for the program behind a descriptor.
pub(crate) enum Parcel {
    /// The descriptor itself.
    Descriptor,
    /// Instructions and maps.
    Packed(Vec<u8>),
}

/// What to send for the program that SIOCKCMATTACH names.
///
/// # Errors
/// As [`super::program`].
pub(crate) fn parcel(fd: i32) -> Outcome<Parcel> {
    super::program(fd)?;
    Ok(match behind(fd) {
        Some(BpfObject::Program(loaded)) => Parcel::Packed(pack(&loaded)),
        _ => Parcel::Descriptor,
    })
}

/// Words: trusted, bytes of instructions, maps; then the instructions and each map as words (descriptor,
/// specification, elements) and its elements.
fn pack(loaded: &Loaded) -> Vec<u8> {
    let head = [
        loaded.granted.into(),
        loaded.insns.len() as u32,
        loaded.maps.len() as u32,
    ];
    let mut bytes = Vec::new();
    put(&mut bytes, &head);
    bytes.extend_from_slice(&loaded.insns);
    for (fd, map) in &loaded.maps {
        let spec = map.spec();
        let (kind, flags) = (spec.map_type, spec.flags);
        let sizes = [spec.key_size, spec.value_size, spec.max_entries];
        let [key, value, entries] = sizes;
        put(&mut bytes, &[*fd as u32, kind, key, value, entries, flags]);
        let elements = elements(map);
        put(&mut bytes, &[elements.len() as u32]);
        bytes.extend(elements.into_iter().flatten());
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, words: &[u32]) {
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

/// Key and value of each element.
fn elements(map: &Map) -> Vec<Vec<u8>> {
    let spec = map.spec();
    let mut value = vec![0; spec.value_size as usize];
    let mut found = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    // A map that others change meanwhile may lead round in circles.
    for _ in 0..spec.max_entries {
        let Ok(key) = map.next_key(after.as_deref()) else {
            break;
        };
        if map.lookup(&key, &mut value).is_ok() {
            found.push([key.as_slice(), &value].concat());
        }
        after = Some(key);
    }
    found
}

/// The program in a parcel that another process packed. Whatever that process sent, the VM checks
/// every access as it happens.
///
/// # Errors
/// EINVAL for what is no program.
pub(crate) fn unpack(bytes: &[u8]) -> Outcome<Parser> {
    let mut rest = Rest(bytes);
    let [trusted, length, count] = rest.words()?;
    if count as usize > PROG_MAPS_MAX {
        return Err(Errno::EINVAL.into());
    }
    let insns = rest.take(length as usize)?;
    let mut maps = Vec::new();
    for _ in 0..count {
        let [fd] = rest.words()?;
        maps.push((fd as i32, rest.map()?));
    }
    let by_fd = |fd: i32| {
        let known = maps.iter().find(|(at, _)| *at == fd);
        known.map(|(_, map)| Arc::clone(map))
    };
    let program = match trusted {
        0 => Program::verify(insns, &by_fd),
        _ => Program::trusted(insns, &by_fd),
    };
    let program = program.map_err(|err| Errno(err.errno()))?;
    Ok(Arc::new(program))
}

/// What is not read yet of a parcel.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn words<const N: usize>(&mut self) -> Result<[u32; N], Errno> {
        let mut words = [0; N];
        for word in &mut words {
            let bytes = self.take(size_of::<u32>())?;
            *word = u32::from_ne_bytes(bytes.try_into().map_err(|_| Errno::EINVAL)?);
        }
        Ok(words)
    }

    fn map(&mut self) -> Result<Arc<Map>, Errno> {
        let [map_type, key_size, value_size, max_entries, flags, count] = self.words()?;
        let spec = MapSpec {
            map_type,
            key_size,
            value_size,
            max_entries,
            flags,
        };
        let map = Map::new(spec, sys::now()).map_err(|err| Errno(err.errno()))?;
        for _ in 0..count {
            let key = self.take(key_size as usize)?;
            let value = self.take(value_size as usize)?;
            map.update(key, value, 0)
                .map_err(|err| Errno(err.errno()))?;
        }
        Ok(Arc::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kcm_mux::bpf::map::{MAP_TYPE_ARRAY, MAP_TYPE_HASH};

    fn map(map_type: u32) -> Arc<Map> {
        let spec = MapSpec {
            map_type,
            key_size: 4,
            value_size: 6,
            max_entries: 3,
            flags: 0,
        };
        Arc::new(Map::new(spec, 1).unwrap())
    }

    fn loaded() -> Loaded {
        let (array, hash) = (map(MAP_TYPE_ARRAY), map(MAP_TYPE_HASH));
        array.update(&1u32.to_ne_bytes(), b"second", 0).unwrap();
        hash.update(b"key1", b"value1", 0).unwrap();
        // r0 = 5; exit
        let insns = [0xb7, 0, 0, 0, 5, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
        Loaded {
            code: Program::verify(&insns, &|_| None).map(Arc::new),
            insns: insns.into(),
            maps: vec![(7, array), (9, hash)],
            name: [0; 16],
            granted: false,
        }
    }

    #[test]
    fn a_program_survives_the_journey() {
        assert!(unpack(&pack(&loaded())).is_ok());
    }

    #[test]
    fn elements_survive_the_journey() {
        let bytes = pack(&loaded());
        let mut rest = Rest(&bytes);
        let [_, length, count] = rest.words().unwrap();
        assert_eq!(count, 2);
        rest.take(length as usize).unwrap();
        for (fd, elements_sent) in [(7, 3), (9, 1)] {
            assert_eq!(rest.words::<1>().unwrap(), [fd]);
            assert_eq!(elements(&rest.map().unwrap()).len(), elements_sent);
        }
        assert!(rest.0.is_empty());
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let bytes = pack(&loaded());
        for length in 0..bytes.len() {
            assert!(unpack(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn numbers_that_mean_too_much_are_refused() {
        let mut bytes = Vec::new();
        put(&mut bytes, &[0, u32::MAX, u32::MAX]);
        assert!(unpack(&bytes).is_err());
    }
}
