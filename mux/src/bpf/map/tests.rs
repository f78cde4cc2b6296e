use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::vec::Vec;

use super::*;

fn spec(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> MapSpec {
    MapSpec {
        map_type,
        key_size,
        value_size,
        max_entries,
        flags,
    }
}

fn hash(max_entries: u32) -> Map {
    Map::new(spec(MAP_TYPE_HASH, 8, 8, max_entries, 0), 42).unwrap()
}

#[test]
fn creation_fails_as_in_the_kernel() {
    let table = [
        (spec(0, 4, 4, 1, 0), MapError::UnsupportedType, 22),
        (spec(3, 4, 4, 1, 0), MapError::UnsupportedType, 22),
        (spec(MAP_TYPE_ARRAY, 8, 4, 1, 0), MapError::BadSize, 22),
        (spec(MAP_TYPE_ARRAY, 4, 0, 1, 0), MapError::BadSize, 22),
        (spec(MAP_TYPE_ARRAY, 4, 4, 0, 0), MapError::BadSize, 22),
        (spec(MAP_TYPE_HASH, 0, 4, 1, 0), MapError::BadSize, 22),
        (
            spec(MAP_TYPE_ARRAY, 4, 4, 1, flag::NO_PREALLOC),
            MapError::BadFlags,
            22,
        ),
        (
            spec(MAP_TYPE_ARRAY, 4, 4, 1, 1 << 10),
            MapError::BadFlags,
            22,
        ),
        (
            spec(
                MAP_TYPE_HASH,
                4,
                4,
                1,
                flag::RDONLY_PROG | flag::WRONLY_PROG,
            ),
            MapError::BadFlags,
            22,
        ),
        (
            spec(MAP_TYPE_ARRAY, 4, 1 << 31, 1, 0),
            MapError::ElementTooLarge,
            7,
        ),
        (
            spec(MAP_TYPE_HASH, 4, 4 << 20, 1, 0),
            MapError::ElementTooLarge,
            7,
        ),
        (
            spec(MAP_TYPE_ARRAY, 4, 1 << 20, 1 << 20, 0),
            MapError::NoMemory,
            12,
        ),
    ];
    for (spec, error, errno) in table {
        assert_eq!(Map::new(spec, 0).map(drop), Err(error), "{spec:?}");
        assert_eq!(error.errno(), errno);
    }
}

#[test]
fn array_elements_exist_from_the_start_and_for_ever() {
    let map = Map::new(spec(MAP_TYPE_ARRAY, 4, 6, 3, 0), 0).unwrap();
    let mut value = [9; 6];
    map.lookup(&2u32.to_le_bytes(), &mut value).unwrap();
    assert_eq!(value, [0; 6]);
    map.update(&2u32.to_le_bytes(), &[1, 2, 3, 4, 5, 6], 0)
        .unwrap();
    map.lookup(&2u32.to_le_bytes(), &mut value).unwrap();
    assert_eq!(value, [1, 2, 3, 4, 5, 6]);
    let third = 3u32.to_le_bytes();
    assert_eq!(map.lookup(&third, &mut value), Err(MapError::NotFound));
    assert_eq!(map.update(&third, &value, 0), Err(MapError::Full));
    assert_eq!(map.update(&[0; 4], &value, NOEXIST), Err(MapError::Exists));
    assert_eq!(map.update(&[0; 4], &value, 3), Err(MapError::Invalid));
    assert_eq!(map.delete(&[0; 4]), Err(MapError::Invalid));
    assert_eq!(map.update(&[0; 4], &[0; 5], 0), Err(MapError::BadLength));
    assert_eq!(map.next_key(None).unwrap(), [0; 4]);
    assert_eq!(map.next_key(Some(&third)).unwrap(), [0; 4]);
    assert_eq!(
        map.next_key(Some(&2u32.to_le_bytes())),
        Err(MapError::NotFound)
    );
}

#[test]
fn hash_elements_come_and_go() {
    let map = hash(2);
    let key = |n: u64| n.to_le_bytes();
    assert_eq!(
        map.update(&key(1), &key(10), EXIST),
        Err(MapError::NotFound)
    );
    map.update(&key(1), &key(10), NOEXIST).unwrap();
    assert_eq!(
        map.update(&key(1), &key(11), NOEXIST),
        Err(MapError::Exists)
    );
    map.update(&key(2), &key(20), 0).unwrap();
    assert_eq!(map.update(&key(3), &key(30), 0), Err(MapError::Full));
    map.update(&key(1), &key(12), EXIST).unwrap();
    let mut value = [0; 8];
    map.lookup(&key(1), &mut value).unwrap();
    assert_eq!(value, key(12));
    map.delete(&key(1)).unwrap();
    assert_eq!(map.delete(&key(1)), Err(MapError::NotFound));
    map.update(&key(3), &key(30), 0).unwrap();
    let first = map.next_key(None).unwrap();
    let second = map.next_key(Some(&first)).unwrap();
    assert_eq!(map.next_key(Some(&second)), Err(MapError::NotFound));
    let mut keys = [first, second];
    keys.sort();
    assert_eq!(keys, [key(2).to_vec(), key(3).to_vec()]);
}

#[test]
fn hash_map_equals_a_model_over_many_operations() {
    let map = hash(16);
    let mut model = std::collections::BTreeMap::new();
    let mut random = 1u64;
    for _ in 0..20_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (key, value) = ((random >> 33) % 24, random >> 20);
        if random >> 63 == 0 {
            let fits = model.len() < 16 || model.contains_key(&key);
            let expected = if fits { Ok(()) } else { Err(MapError::Full) };
            assert_eq!(
                map.update(&key.to_le_bytes(), &value.to_le_bytes(), 0),
                expected
            );
            if fits {
                model.insert(key, value);
            }
        } else {
            let expected = model.remove(&key).map(drop).ok_or(MapError::NotFound);
            assert_eq!(map.delete(&key.to_le_bytes()), expected);
        }
    }
    let mut found = [0; 8];
    for key in 0..24u64 {
        let expected = model.get(&key).copied();
        let value = map.lookup(&key.to_le_bytes(), &mut found).ok();
        assert_eq!(value.map(|()| u64::from_le_bytes(found)), expected);
    }
}

#[test]
fn a_key_that_stays_is_found_whatever_others_do() {
    let map = Arc::new(hash(8));
    map.update(&[7; 8], &[7; 8], 0).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2u64)
        .map(|writer| {
            let (map, done) = (Arc::clone(&map), Arc::clone(&done));
            thread::spawn(move || {
                let mut turn = 0u64;
                while !done.load(Ordering::Relaxed) {
                    turn += 1;
                    let key = (turn % 5 + 8 * writer).to_le_bytes();
                    // Busy and full are legal; the point is the churn.
                    let _ = map.update(&key, &key, 0);
                    let _ = map.delete(&key);
                }
            })
        })
        .collect();
    let mut value = [0; 8];
    for _ in 0..50_000 {
        assert_eq!(map.lookup(&[7; 8], &mut value), Ok(()));
        assert_eq!(value, [7; 8]);
    }
    done.store(true, Ordering::Relaxed);
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
}

#[test]
fn accesses_stay_inside_a_value() {
    let map = Map::new(spec(MAP_TYPE_ARRAY, 4, 12, 2, 0), 0).unwrap();
    assert_eq!(map.store(1, 5, 4, 0xaabb_ccdd), Some(()));
    assert_eq!(map.load(1, 5, 4), Some(0xaabb_ccdd));
    assert_eq!(map.load(1, 4, 8), Some(0xaa_bbcc_dd00));
    assert_eq!(map.load(0, 8, 4), Some(0));
    assert_eq!(map.load(0, 9, 4), None);
    assert_eq!(map.store(1, 12, 1, 0), None);
    assert_eq!(map.load(2, 0, 1), None);
    assert_eq!(map.atomic((1, 4), 4, 0x01, 1, 0), Some(0xbbcc_dd00));
    assert_eq!(map.atomic((1, 5), 4, 0x01, 1, 0), None);
    assert_eq!(map.load(1, 4, 4), Some(0xbbcc_dd01));
}
