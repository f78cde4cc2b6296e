//! The parser VM against a real kernel: same verdicts on programs, same results of runs.
//!
//! Where the kernel lets us load socket filters (root, or `kernel.unprivileged_bpf_disabled=0`),
//! generated programs are loaded by bpf(2) and run by `BPF_PROG_TEST_RUN` with generated packets;
//! r0, `cb` and all map contents must equal the VM's. Where it does not, the programs still have
//! to pass our verifier and run without a fault.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the fuzz crate and other tests"
)]
#[path = "../src/bpf_sys.rs"]
mod bpf_sys;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the fuzz crate and other tests"
)]
#[path = "../fuzz/src/bpf_gen.rs"]
mod generate;

use std::collections::BTreeMap;
use std::sync::Arc;

use bpf_sys::{KernelMap, TestRun};
use generate::{MAPS, Source};
use kcm_mux::bpf::map::MAP_TYPE_ARRAY;
use kcm_mux::bpf::{Env, Fault, Map, Program, VerifyError};

/// Programs that must agree, and damaged programs whose verdicts are compared, times
/// `KCM_BPF_ORACLE_SCALE` (1 unless set). Damage easily makes endless loops, over which the
/// kernel's verifier takes seconds each; the first thousand have none.
const PROGRAMS: u64 = 2000;
const DAMAGED: u64 = 1000;

#[allow(clippy::disallowed_methods, reason = "a test's own knob")]
fn scaled(count: u64) -> u64 {
    let scale = std::env::var("KCM_BPF_ORACLE_SCALE")
        .ok()
        .and_then(|scale| scale.parse().ok());
    count * scale.unwrap_or(1)
}

/// A link header, behind which offsets count in a test run: IPv4.
const LINK_HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The maps of one lane, reset before each program.
struct Kernel {
    maps: [KernelMap; 3],
}

impl Kernel {
    /// None, with a line that says so, where the kernel refuses.
    fn open() -> Option<Self> {
        // r0 = 0; exit
        let probe = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
        let maps = || -> std::io::Result<_> {
            bpf_sys::test_run(&bpf_sys::load(&probe)?, &[0; 60], [0; 5])?;
            let [array, hash, globals] = MAPS.map(KernelMap::create);
            Ok([array?, hash?, globals?])
        };
        match maps() {
            Ok(maps) => Some(Self { maps }),
            Err(error) => {
                writeln(format_args!("kernel lane skipped: bpf(2) says {error}"));
                None
            }
        }
    }

    fn fds(&self) -> [i32; 3] {
        [self.maps[0].fd(), self.maps[1].fd(), self.maps[2].fd()]
    }

    fn reset(&self) {
        for map in &self.maps {
            for (key, value) in initial(map.spec()) {
                match value {
                    Some(value) => map.update(&key, &value, 0).expect("reset"),
                    None => drop(map.delete(&key)),
                }
            }
        }
    }

    /// All elements the programs can reach.
    fn contents(&self) -> Vec<Option<Vec<u8>>> {
        let keys = self.maps.iter().flat_map(|map| {
            initial(map.spec())
                .into_iter()
                .map(move |(key, _)| map.lookup(&key).ok())
        });
        keys.collect()
    }
}

/// The keys programs use, with the value each has at the start.
fn initial(spec: &kcm_mux::bpf::MapSpec) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let array = spec.map_type == MAP_TYPE_ARRAY;
    let keys = if array {
        0..u64::from(spec.max_entries)
    } else {
        0..10
    };
    keys.map(|key| {
        let value = vec![key as u8 ^ 0x5a; spec.value_size as usize];
        let present = array || key < 2;
        (
            key.to_le_bytes()[..spec.key_size as usize].to_vec(),
            present.then_some(value),
        )
    })
    .collect()
}

fn fresh_maps() -> [Arc<Map>; 3] {
    MAPS.map(|spec| {
        let map = Map::new(spec, 7).expect("the specs are fine");
        for (key, value) in initial(&spec) {
            if let Some(value) = value {
                map.update(&key, &value, 0).expect("room");
            }
        }
        Arc::new(map)
    })
}

fn our_contents(maps: &[Arc<Map>; 3]) -> Vec<Option<Vec<u8>>> {
    let keys = maps.iter().flat_map(|map| {
        initial(map.spec()).into_iter().map(move |(key, _)| {
            let mut value = vec![0; map.spec().value_size as usize];
            map.lookup(&key, &mut value).ok().map(|()| value)
        })
    });
    keys.collect()
}

/// A line on stderr, for what a person should know of a passing test.
fn writeln(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = std::io::stderr().lock().write_fmt(format_args!("{line}\n"));
}

fn by_number<'a>(maps: &'a [Arc<Map>; 3]) -> impl Fn(i32) -> Option<Arc<Map>> + 'a {
    |fd| {
        usize::try_from(fd)
            .ok()
            .and_then(|fd| maps.get(fd))
            .cloned()
    }
}

/// A program as a listing, for failures.
fn listing(bytes: &[u8]) -> String {
    bytes
        .chunks(8)
        .enumerate()
        .map(|(pc, slot)| format!("{pc:4}: {slot:02x?}\n"))
        .collect()
}

/// Runs a program in both lanes and compares everything there is to see.
/// Returns the result, truncated as KCM does.
fn compare_runs(
    seed: u64,
    bytes: &[u8],
    kernel_bytes: &[u8],
    kernel: &Kernel,
    packet: &[u8],
) -> u32 {
    let maps = fresh_maps();
    let program = Program::verify(bytes, &by_number(&maps))
        .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", listing(bytes)));
    let fd = bpf_sys::load(kernel_bytes).unwrap_or_else(|error| {
        panic!(
            "seed {seed}: kernel says {error}\n{}",
            bpf_sys::load_log(kernel_bytes)
        )
    });
    kernel.reset();
    let cb = [1, 0x8000_0000, 3, 4, 5].map(|word: u32| word.wrapping_mul(seed as u32));
    let frame = [&LINK_HEADER, packet].concat();
    let theirs = bpf_sys::test_run(&fd, &frame, cb).expect("test run");
    let mut our_cb = cb;
    let r0 = program.try_run(packet, &mut our_cb, &Env::default());
    let ours = TestRun {
        retval: r0.expect("verified") as u32,
        cb: our_cb,
    };
    assert_eq!(
        ours,
        theirs,
        "seed {seed}: left is ours\n{}",
        bpf_sys::load_log(kernel_bytes)
    );
    assert_eq!(
        our_contents(&maps),
        kernel.contents(),
        "seed {seed}\n{}",
        listing(bytes)
    );
    ours.retval
}

#[test]
fn generated_programs_do_what_they_do_in_the_kernel() {
    let kernel = Kernel::open();
    let mut ended_early = 0;
    for seed in 0..scaled(PROGRAMS) {
        let mut random = Random(seed);
        let choices = random.bytes(600);
        let insns = generate::valid(&mut Source(&choices));
        // The kernel wants a whole IPv4 header's worth behind the link header.
        let len = 20 + random.next() as usize % 100;
        let packet = random.bytes(len);
        let bytes = generate::to_bytes(&insns, &[0, 1, 2]);
        match &kernel {
            Some(kernel) => {
                let kernel_bytes = generate::to_bytes(&insns, &kernel.fds());
                let retval = compare_runs(seed, &bytes, &kernel_bytes, kernel, &packet);
                ended_early += u64::from(retval == 0);
            }
            None => {
                let maps = fresh_maps();
                let program = Program::verify(&bytes, &by_number(&maps))
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", listing(&bytes)));
                let outcome = program.try_run(&packet[..], &mut [0; 5], &Env::default());
                assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
            }
        }
    }
    // Most programs get to their end, where r0 depends on everything they did.
    assert!(
        ended_early < scaled(PROGRAMS) / 4,
        "{ended_early} results are 0"
    );
}

/// Whether a refusal needs no knowledge of register contents.
fn is_about_text(error: &VerifyError) -> bool {
    matches!(
        error,
        VerifyError::UnknownOpcode { .. }
            | VerifyError::BadJump { .. }
            | VerifyError::FallsThrough { .. }
            | VerifyError::BadMapFd { .. }
            | VerifyError::BadMapValue { .. }
            | VerifyError::MapValueUnsupported { .. }
            | VerifyError::MapValueOfHash { .. }
            | VerifyError::KernelFunction { .. }
            | VerifyError::Unreachable { .. }
    )
}

/// Where our verdict may differ from the kernel's, and why.
fn known_difference(ours: &Result<Program, VerifyError>, theirs: Result<(), i32>) -> bool {
    match (ours, theirs) {
        (Ok(_), _) => theirs.is_ok(),
        // Since 6.3 the kernel lets privileged loaders read stack they never wrote. We keep the
        // rule for everybody else.
        (Err(VerifyError::UninitStack { .. }), _) => true,
        // The kernel looks at reserved fields and helper numbers of ALU and jump instructions when
        // it gets there, so code behind a branch that is never taken may be malformed. We check
        // all encodings first.
        (Err(VerifyError::ReservedField { .. } | VerifyError::UnknownHelper { .. }), _) => true,
        // Too many branches in a row are EFAULT in kernels up to 6.18, for want of a better one.
        (Err(VerifyError::TooComplex), Err(libc::EFAULT)) => true,
        // Before it refuses the operation the kernel asks whether the number could be an offset,
        // which depends on how much is known of it.
        (Err(VerifyError::PointerArithmetic { .. }), Err(libc::EINVAL)) => true,
        // As encodings come first, another of several defects may be reported.
        (Err(error), Err(_)) if is_about_text(error) => true,
        (Err(error), Err(errno)) => error.errno() == errno,
        (Err(_), Ok(())) => false,
    }
}

#[test]
fn damaged_programs_get_the_kernels_verdict() {
    let kernel = Kernel::open();
    let mut verdicts = BTreeMap::new();
    for seed in 0..scaled(DAMAGED) {
        let mut random = Random(seed ^ 0x5eed_0000);
        let choices = random.bytes(400);
        let mut insns = generate::valid(&mut Source(&choices));
        generate::mutate(&mut insns, &mut Source(&random.bytes(64)));
        let maps = fresh_maps();
        let bytes = generate::to_bytes(&insns, &[0, 1, 2]);
        let ours = Program::verify(&bytes, &by_number(&maps));
        if let Ok(program) = &ours {
            let outcome = program.try_run(&random.bytes(64)[..], &mut [0; 5], &Env::default());
            assert!(
                matches!(outcome, Ok(_) | Err(Fault::Budget)),
                "seed {seed}: {outcome:?}"
            );
        }
        let Some(kernel) = &kernel else { continue };
        let kernel_bytes = generate::to_bytes(&insns, &kernel.fds());
        let theirs = bpf_sys::load(&kernel_bytes).map(drop);
        let theirs = theirs.map_err(|error| error.raw_os_error().unwrap_or(0));
        assert!(
            known_difference(&ours, theirs),
            "seed {seed}: ours {:?}, kernel {theirs:?}\n{}\n{}",
            ours.as_ref().err(),
            listing(&bytes),
            bpf_sys::load_log(&kernel_bytes)
        );
        *verdicts.entry((ours.is_ok(), theirs.is_ok())).or_insert(0) += 1;
    }
    if kernel.is_some() {
        let agreed = |verdict: (bool, bool)| verdicts.get(&verdict).copied().unwrap_or(0);
        // Both verdicts occur, so the comparison means something.
        assert!(agreed((true, true)) > DAMAGED / 20, "{verdicts:?}");
        assert!(agreed((false, false)) > DAMAGED / 4, "{verdicts:?}");
    }
}
