//! Maps of parser programs.
//!
//! A map that the kernel would not make lives here. One that it made is the kernel's until a parser
//! program that names it is loaded: from then on our VM works on a *mirror*, a map of ours with the
//! kernel's contents of that moment. The mirror is what element commands see and change, and what
//! they change is written through to the kernel's map; what the parser program itself changes is
//! not. A kernel program that shares the map hence sees the loader's changes, but not the parser's,
//! and the loader does not see that program's; nor does the mirror see stores to a mapped map
//! (BPF_F_MMAPABLE) after the load.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use kcm_mux::bpf::map::{EXIST, MAP_TYPE_ARRAY, NOEXIST};
use kcm_mux::bpf::{Map, MapError, MapSpec};

use super::attr::{Attr, Name};
use super::{BpfObject, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM};
use super::{behind, forbidden, kernel, publish};
use crate::errno::{Errno, Exit, Outcome};
use crate::sync::Mutex;
use crate::sys;
use crate::user_mem;

/// A map of ours.
pub(crate) struct LocalMap {
    pub(super) map: Arc<Map>,
    pub(super) name: Name,
    /// BPF_MAP_FREEZE: only programs may change it.
    frozen: AtomicBool,
    /// The kernel's number of the map that this one mirrors.
    mirrors: Option<u32>,
}

impl LocalMap {
    /// The kernel has this map too, and answers what is asked about it.
    pub(super) fn is_mirror(&self) -> bool {
        self.mirrors.is_some()
    }
}

/// Mirrors in being, by the kernel's number: the program may name a map by any dup or pin. They
/// live as long as a descriptor they were found by, or a parser program that uses them.
static MIRRORS: Mutex<Vec<(u32, Weak<Map>)>> = Mutex::new(Vec::new());

fn failed(err: MapError) -> Exit {
    Errno(err.errno()).into()
}

/// BPF_MAP_CREATE.
pub(super) fn create(attr: &Attr, native: impl FnOnce() -> i64) -> Outcome<i64> {
    let saved = Errno::current();
    let granted = native();
    if granted >= 0 {
        return Ok(super::granted(granted));
    }
    let err = Errno::current();
    if !forbidden(err) {
        return Err(err.into());
    }
    saved.set();
    let spec = MapSpec {
        map_type: attr.u32(0),
        key_size: attr.u32(4),
        value_size: attr.u32(8),
        max_entries: attr.u32(12),
        flags: attr.u32(16),
    };
    let map = Map::new(spec, sys::now()).map_err(failed)?;
    let local = LocalMap {
        map: Arc::new(map),
        name: attr.name(28),
        frozen: AtomicBool::new(false),
        mirrors: None,
    };
    publish(-1, BpfObject::Map(Arc::new(local)))
}

/// The map that an instruction names by descriptor; a kernel's map gets its mirror now.
pub(super) fn for_program(fd: i32) -> Option<Arc<Map>> {
    if let Some(object) = behind(fd) {
        return match object {
            BpfObject::Map(local) => Some(Arc::clone(&local.map)),
            BpfObject::Program(_) => None,
        };
    }
    let Some(kernel::Object::Map { id, spec }) = kernel::object(fd) else {
        return None;
    };
    if let Some(map) = mirror(id) {
        return Some(map);
    }
    let map = Arc::new(copy(fd, kernel::mirrored(spec)?)?);
    if let Ok(mut mirrors) = MIRRORS.lock() {
        mirrors.retain(|(_, map)| map.strong_count() > 0);
        mirrors.push((id, Arc::downgrade(&map)));
    }
    let local = LocalMap {
        map: Arc::clone(&map),
        name: [0; 16],
        frozen: AtomicBool::new(false),
        mirrors: Some(id),
    };
    // Without the descriptor the mirror still lives as long as the program.
    let _ = publish(fd.into(), BpfObject::Map(Arc::new(local)));
    Some(map)
}

fn mirror(id: u32) -> Option<Arc<Map>> {
    let mirrors = MIRRORS.lock().ok()?;
    let (_, map) = mirrors.iter().rev().find(|(of, _)| *of == id)?;
    map.upgrade()
}

/// A map of ours with the elements of the kernel's.
fn copy(fd: i32, spec: MapSpec) -> Option<Map> {
    let map = Map::new(spec, sys::now()).ok()?;
    let mut key = vec![0; spec.key_size as usize];
    let mut value = vec![0; spec.value_size as usize];
    if spec.map_type == MAP_TYPE_ARRAY {
        for index in 0..spec.max_entries {
            kernel::look_up(fd, &index.to_ne_bytes(), &mut value).ok()?;
            map.update(&index.to_ne_bytes(), &value, 0).ok()?;
        }
        return Some(map);
    }
    let mut before: Option<Vec<u8>> = None;
    // A map that others change meanwhile may lead round in circles.
    for _ in 0..spec.max_entries {
        if kernel::next_key(fd, before.as_deref(), &mut key).is_err() {
            break;
        }
        if kernel::look_up(fd, &key, &mut value).is_ok() {
            map.update(&key, &value, 0).ok()?;
        }
        before = Some(key.clone());
    }
    Some(map)
}

/// The map that a command names, if it is ours or mirrored.
fn named(fd: i32) -> Outcome<Arc<LocalMap>> {
    match behind(fd) {
        Some(BpfObject::Map(local)) => return Ok(local),
        Some(BpfObject::Program(loaded)) if !loaded.granted => return Err(Errno::EINVAL.into()),
        Some(BpfObject::Program(_)) => return Err(Exit::Native),
        None => {}
    }
    if MIRRORS.lock()?.is_empty() {
        return Err(Exit::Native);
    }
    let Some(kernel::Object::Map { id, .. }) = kernel::object(fd) else {
        return Err(Exit::Native);
    };
    Ok(Arc::new(LocalMap {
        map: mirror(id).ok_or(Exit::Native)?,
        name: [0; 16],
        frozen: AtomicBool::new(false),
        mirrors: Some(id),
    }))
}

/// BPF_MAP_FREEZE.
pub(super) fn freeze(attr: &Attr) -> Outcome<i64> {
    let local = named(attr.u32(0) as i32)?;
    if local.is_mirror() {
        return Err(Exit::Native);
    }
    match local.frozen.swap(true, Ordering::Relaxed) {
        false => Ok(0),
        true => Err(Errno::EPERM.into()),
    }
}

/// The element commands on a map of ours.
pub(super) fn element(command: i32, attr: &Attr) -> Outcome<i64> {
    let fd = attr.u32(0) as i32;
    let local = named(fd)?;
    let map = &local.map;
    let spec = map.spec();
    let mut key = vec![0; spec.key_size as usize];
    let key_at = attr.pointer(8);
    if command != MAP_GET_NEXT_KEY || !key_at.is_null() {
        user_mem::read_bytes(key_at, &mut key)?;
    }
    let mut value = vec![0; spec.value_size as usize];
    let changes = matches!(command, MAP_UPDATE_ELEM | MAP_DELETE_ELEM);
    if changes && local.frozen.load(Ordering::Relaxed) {
        return Err(Errno::EPERM.into());
    }
    match command {
        MAP_LOOKUP_ELEM => {
            map.lookup(&key, &mut value).map_err(failed)?;
            user_mem::write_bytes(attr.pointer(16), &value)?;
        }
        MAP_UPDATE_ELEM => {
            user_mem::read_bytes(attr.pointer(16), &mut value)?;
            let flags = attr.u64(24);
            if local.is_mirror() {
                may_update(map, &key, flags)?;
                kernel::update(fd, &key, &value)?;
            }
            map.update(&key, &value, flags).map_err(failed)?;
        }
        MAP_DELETE_ELEM => {
            if local.is_mirror() {
                match kernel::delete(fd, &key) {
                    Err(Errno::ENOENT) | Ok(()) => {} // the parser may have made the element
                    Err(err) => return Err(err.into()),
                }
            }
            map.delete(&key).map_err(failed)?;
        }
        _ => {
            let after = (!key_at.is_null()).then_some(key.as_slice());
            let next = map.next_key(after).map_err(failed)?;
            user_mem::write_bytes(attr.pointer(16), &next)?;
        }
    }
    Ok(0)
}

/// Whether the mirror would take the update: it is asked before the kernel's map is changed.
fn may_update(map: &Map, key: &[u8], flags: u64) -> Outcome<()> {
    let mut value = vec![0; map.spec().value_size as usize];
    let exists = map.lookup(key, &mut value).is_ok();
    match flags {
        NOEXIST if exists => Err(Errno::EEXIST.into()),
        EXIST if !exists => Err(Errno::ENOENT.into()),
        0 | NOEXIST | EXIST => Ok(()),
        _ => Err(Errno::EINVAL.into()),
    }
}
