//! What an executable's file tells about preloading (System V gABI, chapters 4 and 5). Any file may
//! be given: what does not lie within it is not there.

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const SHT_STRTAB: u32 = 3;
const SHT_DYNSYM: u32 = 11;
const SHN_UNDEF: u16 = 0;
const SECTION_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const SYMBOL_BYTES: usize = 24;

/// Machine of this build, as `e_machine` numbers it.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};

/// An executable or library.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

impl<'a> Elf<'a> {
    /// `None` when the bytes are no ELF file at all.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF").then_some(Self { bytes })
    }

    /// Built for the machine and word size of this library.
    pub(crate) fn is_native(&self) -> bool {
        self.bytes.get(4..6) == Some(&[2, 1]) && self.u16(18) == Some(MACHINE)
    }

    /// The dynamic loader that the file asks for; without one no preload library is loaded.
    pub(crate) fn interpreter(&self) -> Option<String> {
        let (_, at, size) = self.segments().find(|(kind, ..)| *kind == PT_INTERP)?;
        let path = self.bytes.get(at..at.checked_add(size)?)?;
        Some(crate::out::clean(path.strip_suffix(b"\0").unwrap_or(path)))
    }

    pub(crate) fn is_dynamic(&self) -> bool {
        self.segments().any(|(kind, ..)| kind == PT_DYNAMIC)
    }

    /// Built by the Go toolchain, whose programs make their system calls themselves.
    pub(crate) fn is_go(&self) -> bool {
        let names = self.u16(62).and_then(|index| self.section(index.into()));
        let Some(names) = names else { return false };
        self.sections().any(|section| {
            let name = self.string(&names, section.name);
            name == Some(&b".go.buildinfo"[..]) || name == Some(&b".note.go.buildid"[..])
        })
    }

    /// Functions that the file takes from libraries; `None` when it has no table of them.
    pub(crate) fn imports(&self) -> Option<Vec<String>> {
        let table = self.sections().find(|section| section.kind == SHT_DYNSYM)?;
        let strings = self.section(table.link).filter(|s| s.kind == SHT_STRTAB)?;
        let count = table.size.min(self.bytes.len()) / SYMBOL_BYTES;
        let mut names: Vec<_> = (1..count)
            .filter_map(|index| table.offset.checked_add(index * SYMBOL_BYTES))
            .filter(|at| self.u16(at.saturating_add(6)) == Some(SHN_UNDEF))
            .filter_map(|at| self.string(&strings, self.u32(at)? as usize))
            .map(crate::out::clean)
            .collect();
        names.sort();
        names.dedup();
        Some(names)
    }

    /// Kind, place and size in the file of each program header.
    fn segments(&self) -> impl Iterator<Item = (u32, usize, usize)> {
        let (table, count) = (self.word(32).unwrap_or(0), self.u16(56).unwrap_or(0));
        (0..usize::from(count)).filter_map(move |index| {
            let at = table.checked_add(index * SEGMENT_BYTES)?;
            let offset = self.word(at.checked_add(8)?)?;
            Some((self.u32(at)?, offset, self.word(at.checked_add(32)?)?))
        })
    }

    fn sections(&self) -> impl Iterator<Item = Section> {
        (0..usize::from(self.u16(60).unwrap_or(0))).filter_map(|index| self.section(index))
    }

    fn section(&self, index: usize) -> Option<Section> {
        let at = self
            .word(40)?
            .checked_add(index.checked_mul(SECTION_BYTES)?)?;
        let field = |offset: usize| at.checked_add(offset);
        Some(Section {
            name: self.u32(at)? as usize,
            kind: self.u32(field(4)?)?,
            offset: self.word(field(24)?)?,
            size: self.word(field(32)?)?,
            link: self.u32(field(40)?)? as usize,
        })
    }

    fn string(&self, table: &Section, at: usize) -> Option<&'a [u8]> {
        let all = self
            .bytes
            .get(table.offset..table.offset.checked_add(table.size)?)?;
        all.get(at..)?.split(|byte| *byte == 0).next()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn word(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_a_dynamic_program_that_imports_read() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::new(&bytes).unwrap();
        assert!(elf.is_native() && elf.is_dynamic() && !elf.is_go());
        assert!(elf.interpreter().unwrap().contains("ld-linux"));
        assert!(elf.imports().unwrap().contains(&"read".to_owned()));
    }

    #[test]
    fn cut_and_damaged_files_are_read_without_a_panic() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in (0..4096).chain([whole.len() / 2, whole.len() - 1]) {
            look(&whole[..length]);
        }
        let mut bytes = whole[..4096].to_vec();
        let mut seed = 1u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes[4 + (seed >> 8) as usize % 120] = (seed >> 24) as u8;
            look(&bytes);
        }
    }

    fn look(bytes: &[u8]) {
        if let Some(elf) = Elf::new(bytes) {
            let _ = (elf.is_native(), elf.is_dynamic(), elf.is_go());
            let _ = (elf.interpreter(), elf.imports());
        }
    }
}
