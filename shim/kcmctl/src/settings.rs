//! Settings of the in-process stack, checked before a program starts by the code that will read them.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU16;
use std::path::{self, PathBuf};
use std::process::Command;

use kcm_stack::device::{self, DeviceName, OpenOptions};

use crate::Outcome;
use crate::out::clean;
use crate::plan::{FILE_BYTES_MAX, Interface, Settings, VALUE_BYTES_MAX};

const CONFIG: &str = "KCMSHIM_CONFIG";
const STACK: &str = "KCMSHIM_STACK";

/// Where settings stand: what the command line says, or else the environment, which the program gets
/// all the same.
pub(crate) struct Sources {
    file: Option<PathBuf>,
    line: Option<OsString>,
}

impl Sources {
    pub(crate) fn given(file: Option<&PathBuf>, line: Option<&OsString>) -> Outcome<Self> {
        let variable = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let file = file
            .cloned()
            .or_else(|| variable(CONFIG).map(PathBuf::from));
        Ok(Self {
            // The program's own children may run elsewhere.
            file: file.map(path::absolute).transpose()?,
            line: line.cloned().or_else(|| variable(STACK)),
        })
    }

    pub(crate) fn pass_on(&self, command: &mut Command) {
        if let Some(file) = &self.file {
            command.env(CONFIG, file);
        }
        if let Some(line) = &self.line {
            command.env(STACK, line);
        }
    }

    /// What is wrong with them, a sentence each.
    pub(crate) fn problems(&self) -> Vec<String> {
        match self.read() {
            Ok(None) => Vec::new(),
            Ok(Some(settings)) => settings.interfaces.iter().filter_map(obstacle).collect(),
            Err(problems) => problems,
        }
    }

    /// Interfaces that they name.
    ///
    /// # Errors
    /// What is wrong with them, a sentence each.
    pub(crate) fn interfaces(&self) -> Result<Vec<Interface>, Vec<String>> {
        let settings = self.read()?;
        Ok(settings.map_or_else(Vec::new, |settings| settings.interfaces))
    }

    fn read(&self) -> Result<Option<Settings>, Vec<String>> {
        if self.file.is_none() && self.line.is_none() {
            return Ok(None);
        }
        let file = match &self.file {
            Some(path) => {
                let bytes = path.as_os_str().as_encoded_bytes();
                let name = clean(bytes);
                if bytes.len() > VALUE_BYTES_MAX {
                    return Err(vec![format!(
                        "{CONFIG}: longer than {VALUE_BYTES_MAX} bytes"
                    )]);
                }
                match contents(path) {
                    Ok(text) => Some((name, text)),
                    Err(err) => return Err(vec![format!("{name}: {err}")]),
                }
            }
            None => None,
        };
        let file = file.as_ref().map(|(name, text)| (name.as_str(), &text[..]));
        let line = self.line.as_ref().map(|line| line.as_encoded_bytes());
        let told = |problem: &crate::plan::Problem| clean(problem.to_string().as_bytes());
        match Settings::read(file, line) {
            Ok(settings) => Ok(Some(settings)),
            Err(problems) => Err(problems.iter().map(told).collect()),
        }
    }
}

fn contents(path: &PathBuf) -> io::Result<Vec<u8>> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    // One byte more than allowed is enough to be told so.
    let room = FILE_BYTES_MAX as u64 + 1;
    File::open(path)?.take(room).read_to_end(&mut text)?;
    Ok(text)
}

/// Why the program could not use an interface, found by opening its device as the program will.
fn obstacle(interface: &Interface) -> Option<String> {
    // A shared memory device has two ends, and its peer may be waiting for the program.
    if let Ok(DeviceName::SharedMemory(_)) = interface.device.parse() {
        return None;
    }
    let options = OpenOptions {
        queues: NonZeroU16::new(interface.queues)?,
        mtu: interface.mtu.map(usize::from),
        offloads: interface.offloads,
        ..OpenOptions::default()
    };
    let problem = device::open(&interface.device, &options).err()?;
    Some(clean(problem.to_string().as_bytes()))
}
