//! The dynamic symbols of a 64-bit little-endian ELF library (System V gABI, chapters 4 and 5), as
//! far as the test wants to know them. Our own files, so a malformed one may end the test.

use std::fs;
use std::path::Path;

const SHT_DYNSYM: u32 = 11;
const SHT_GNU_VERDEF: u32 = 0x6fff_fffd;
const SHT_GNU_VERSYM: u32 = 0x6fff_ffff;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const SHN_UNDEF: u16 = 0;

/// A library's file.
pub(crate) struct Library {
    bytes: Vec<u8>,
    sections: Vec<Section>,
}

struct Section {
    kind: u32,
    /// Where in the file it lies.
    offset: usize,
    size: usize,
    /// Index of the section that holds its strings.
    link: usize,
}

/// A symbol that the library defines.
pub(crate) struct Symbol {
    pub(crate) name: String,
    kind: u8,
    /// Its version is one that only the C library's own parts may bind to.
    pub(crate) private: bool,
}

impl Library {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        assert_eq!(
            bytes.get(..6),
            Some(&b"\x7fELF\x02\x01"[..]),
            "{}",
            path.display()
        );
        let mut library = Self {
            bytes,
            sections: Vec::new(),
        };
        let (table, size, count) = (library.u64(0x28), library.u16(0x3a), library.u16(0x3c));
        library.sections = (0..usize::from(count))
            .map(|index| {
                let at = table as usize + index * usize::from(size);
                Section {
                    kind: library.u32(at + 4),
                    offset: library.u64(at + 24) as usize,
                    size: library.u64(at + 32) as usize,
                    link: library.u32(at + 40) as usize,
                }
            })
            .collect();
        library
    }

    /// Functions that it defines, once for each version.
    pub(crate) fn functions(&self) -> impl Iterator<Item = Symbol> {
        self.symbols()
            .filter(|symbol| matches!(symbol.kind, STT_FUNC | STT_GNU_IFUNC))
    }

    /// All that it defines.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        const SIZE: usize = 24;
        let table = self.section(SHT_DYNSYM).expect("no dynamic symbols");
        let versions = self.section(SHT_GNU_VERSYM);
        let private = self.version("GLIBC_PRIVATE");
        (0..table.size / SIZE).filter_map(move |index| {
            let at = table.offset + index * SIZE;
            if self.u16(at + 6) == SHN_UNDEF {
                return None;
            }
            let version = versions.map(|section| self.u16(section.offset + 2 * index) & 0x7fff);
            Some(Symbol {
                name: self.string(table, self.u32(at) as usize),
                kind: self.bytes[at + 4] & 0xf,
                private: private.is_some() && version == private,
            })
        })
    }

    /// Names of the versions it defines.
    pub(crate) fn versions(&self) -> impl Iterator<Item = String> {
        self.version_definitions().map(|(_, name)| name)
    }

    fn version(&self, name: &str) -> Option<u16> {
        self.version_definitions()
            .find(|(_, defined)| defined == name)
            .map(|(index, _)| index)
    }

    /// Index and name of each version definition (`Elf64_Verdef` and its first `Elf64_Verdaux`).
    fn version_definitions(&self) -> impl Iterator<Item = (u16, String)> {
        let section = self.section(SHT_GNU_VERDEF);
        let mut next = section.map(|section| section.offset);
        std::iter::from_fn(move || {
            let at = next?;
            let name = self.u32(at + self.u32(at + 12) as usize) as usize;
            let step = self.u32(at + 16) as usize;
            next = (step != 0).then_some(at + step);
            Some((self.u16(at + 4), self.string(section?, name)))
        })
    }

    fn section(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    fn string(&self, user: &Section, at: usize) -> String {
        let start = self.sections[user.link].offset + at;
        let length = self.bytes[start..]
            .iter()
            .position(|byte| *byte == 0)
            .unwrap();
        String::from_utf8(self.bytes[start..start + length].to_vec()).unwrap()
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
}
